"""The tables, figures and verdicts of dose and response, counted from a finished run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.figures import FigureOutput, line_ci, save_figure
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.stats import NOT_RUN, Estimate, own_claim, verdict
from chameleon_lib.kit.tables import estimate_columns, part_columns, span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.controls.views import line_names
from chameleon_lib.sections.estimates import where_defined
from chameleon_lib.sections.paired import Term, contrast, difference
from chameleon_lib.sections.results import FAMILY_TITLES, Run

METHODS = {
    "chameleon": "CHAMELEON (paper)",
    "fitted": "CHAMELEON fitted (ours)",
    "random": "random directions",
}


def responses(done: Run) -> pd.DataFrame:
    """Every edit against Instruct at every dose: primary metric and margin."""
    rows = []
    for task in done.data:
        metric = get_task(task).metrics[0]
        for family in done.families:
            for method, title in METHODS.items():
                for condition in done.conditions:
                    cells = done.of(task, family, condition)
                    row: dict[str, Any] = {
                        "task": task.replace("_", "-"),
                        "family": FAMILY_TITLES[family],
                        "edit": title,
                        "strength": float(condition.split()[1]),
                        "metric": metric,
                    }
                    found = difference(done, cells, method, "instruct", metric)
                    row |= estimate_columns(found, f"{metric} change")
                    margin = where_defined(difference, done, cells, method, "instruct", "margin")
                    row |= part_columns(margin, "margin change")
                    logs = [log for cell in cells for log in cell.draws]
                    row["pairs kept"] = float(np.mean([log["kept"] for log in logs]))
                    rows.append(row)
    return pd.DataFrame(rows)


def slope(done: Run, task: str, family: str, method: str, metric: str, against: str) -> Estimate:
    """Least-squares slope of ``method`` minus ``against`` over the strength, per unit of it.

    The slope is a weighted sum of the differences at the doses, so it is resampled over users like
    any other contrast.
    """
    doses = np.array([float(condition.split()[1]) for condition in done.conditions])
    centred = doses - doses.mean()
    weights = centred / (centred**2).sum()
    terms = []
    for weight, condition in zip(weights, done.conditions, strict=True):
        cells = done.of(task, family, condition)
        terms += [Term(float(weight), cells, method), Term(-float(weight), cells, against)]
    return contrast(done, terms, metric)


def slopes(done: Run) -> pd.DataFrame:
    """Slopes of the differences to Instruct, per unit of strength."""
    rows = []
    for task in done.data:
        metric = get_task(task).metrics[0]
        for family in done.families:
            for method, title in METHODS.items():
                row: dict[str, Any] = {
                    "task": task.replace("_", "-"),
                    "family": FAMILY_TITLES[family],
                    "edit": title,
                }
                found = slope(done, task, family, method, metric, "instruct")
                row |= estimate_columns(found, f"{metric} slope")
                margin = where_defined(slope, done, task, family, method, "margin", "instruct")
                row |= part_columns(margin, "margin slope")
                rows.append(row)
    return pd.DataFrame(rows)


def verdicts(done: Run | None, profile: RunProfile, notebook: str) -> list[Verdict]:
    """Does the effect follow the dose? One verdict per family and edit, against random directions.

    Judged by the margin: accuracy follows the dose by itself, since the golds do.
    """
    shared: dict[str, Any] = {
        "section": "4.2",
        "notebook": notebook,
        "paper": "not in the paper",
        "own": True,
        "scorer": "margin of the user's over the generic answer, nats per unit of strength",
        "csv": "tables/controls_g_slopes.csv",
        "split": "test users of the embedded world",
        "measure": "margin slope, nats per unit of strength",
    }
    claim = "the effect grows with the planted preference strength"
    if done is None:
        note = f"Only the embedded world plants tastes; the {profile.name} profile reads real users"
        return [Verdict(words=claim, ours=None, status=NOT_RUN, n=0, seeds=0, note=note, **shared)]
    found = []
    for task in done.data:
        for family in done.families:
            for method in ("chameleon", "fitted"):
                effect, beyond = (
                    where_defined(slope, done, task, family, method, "margin", other)
                    for other in ("instruct", "random")
                )
                status = own_claim(verdict(effect, [beyond] if beyond else []))
                found.append(
                    Verdict(
                        words=f"{METHODS[method]}: {claim}",
                        setting=f"{task.replace('_', '-')}, {FAMILY_TITLES[family]}",
                        ours=effect,
                        status=status,
                        n=effect.n if effect else 0,
                        seeds=effect.seeds if effect else 0,
                        note="must also beat: the slope of random directions",
                        **shared,
                    )
                )
    return found


def figure(frame: pd.DataFrame, task: str, metric: str, profile: str) -> FigureOutput:
    """The change against Instruct over the strength, a line per edit and family."""
    title = task.replace("_", "-")
    part = frame[frame["task"] == title]
    column = f"{metric} change"
    names = {column: "value", f"{column}_low": "ci_low", f"{column}_high": "ci_high"}
    if f"{column} n" in part:  # a measure that some users lack counts those who have it
        part = part.drop(columns="n")
        names[f"{column} n"] = "n"
    drawn = part.rename(columns=names)
    drawn = drawn.assign(line=line_names(drawn))
    drawn = drawn[["line", "strength", "value", "ci_low", "ci_high", "n", "seeds"]]
    image = line_ci(
        drawn,
        title=f"{title}: {metric} change by dose",
        profile=profile,
        x="strength",
        xlabel="planted strength of the taste",
        ylabel=f"{metric} change" + (", nats" if metric == "margin" else ""),
        group="line",
        reference=0.0,
        reference_label="Instruct",
        better="higher" if metric == "margin" or higher_is_better(metric) else "lower",
    )
    ends = []
    for line, one in drawn.groupby("line", sort=False):
        values = one.sort_values("strength")["value"]
        if values.notna().all():
            ends.append(f"{line} from {values.iloc[0]:+.3f} to {values.iloc[-1]:+.3f}")
    return save_figure(
        image,
        f"06_dose_{metric}_{task}",
        alt="Lines over the planted strength, weakest to strongest: "
        f"{'; '.join(ends) or 'no user has a value'}.",
        caption=(
            f"Change of {metric} against Instruct in worlds of weaker and stronger tastes, 95 % "
            f"intervals over the same {span(drawn['n'])} test users ({profile} profile)."
        ),
        data=drawn,
        profile=profile,
    )
