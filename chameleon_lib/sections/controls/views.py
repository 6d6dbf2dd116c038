"""The controls in figures: insight × edit, control directions, the ledger, the strengths."""

from __future__ import annotations

from typing import Any

import pandas as pd

from chameleon_lib.kit.figures import FigureOutput, dot_ci, line_ci, save_figure
from chameleon_lib.kit.plots import Better
from chameleon_lib.kit.tables import estimate_columns, part_columns, span
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.controls.ledger import ledger_tests
from chameleon_lib.sections.controls.tables import EDITS
from chameleon_lib.sections.controls.variants import DEFAULT, STRENGTHS
from chameleon_lib.sections.estimates import where_defined
from chameleon_lib.sections.paired import difference
from chameleon_lib.sections.results import FAMILY_TITLES, Run


def factorial_figure(frame: pd.DataFrame, task: str, profile: str) -> FigureOutput:
    """Forest plot of the 2 × 2, a panel per family, a marker per edit."""
    part, metric = _of(frame, task)
    drawn = _dots(part, "change")[["effect", "edit", "family", *_DOTS]]
    image = dot_ci(
        drawn,
        title=f"{_title(task)}: insight and edit, alone and together",
        profile=profile,
        xlabel=f"{metric} change",
        row="effect",
        method="edit",
        panel="family",
        better=_better(metric),
    )
    on_top = drawn[drawn["effect"].str.startswith("edit on top")]
    return save_figure(
        image,
        f"06_insight_edit_{task}",
        alt=f"Forest plot of {len(drawn)} effects. On top of the insight: {_words(on_top)}.",
        caption=(
            f"Effects of the insight in the prompt and of the edit on {metric}, paired over "
            f"{_users(drawn)} test users, 95 % intervals ({profile} profile)."
        ),
        data=drawn,
        profile=profile,
    )


def control_figure(frame: pd.DataFrame, task: str, profile: str) -> FigureOutput:
    """Forest plot of the paper's edit minus its control directions, a panel per family.

    The fitted edit stands in the table alone: its differences are of another size.
    """
    part, metric = _of(frame, task)
    drawn = _dots(part[part["edit"] == EDITS["chameleon"]], "change")
    drawn = drawn[["control", "family", *_DOTS]]
    image = dot_ci(
        drawn,
        title=f"{_title(task)}: the paper's edit against control directions",
        profile=profile,
        xlabel=f"{metric} difference",
        row="control",
        panel="family",
        reference_label="the control",
        better=_better(metric),
    )
    apart = int(((drawn["ci_low"] > 0) | (drawn["ci_high"] < 0)).sum())
    return save_figure(
        image,
        f"06_directions_{task}",
        alt=(
            f"Forest plot of {len(drawn)} differences between the paper's edit and a control. "
            f"{apart} of the intervals leave out 0; the differences reach from "
            f"{drawn['value'].min():+.3f} to {drawn['value'].max():+.3f}."
        ),
        caption=(
            f"The paper's edit minus a control on {metric}, paired over {_users(drawn)} test "
            "users, 95 % intervals. A direction that is personal must beat the common ones "
            f"({profile} profile)."
        ),
        data=drawn,
        profile=profile,
    )


def ledger_figure(run: Run, frame: pd.DataFrame, task: str, profile: str) -> FigureOutput:
    """Forest plot of every reading that changed an answer: against default and Instruct.

    The insight in the prompt (A13) is left to the figure of the 2 × 2, where what it does is told
    from what the edit does; its size would hide all others.
    """
    part, metric = _of(frame, task)
    part = part.assign(reading=part["id"] + " " + part["reading"])
    moved = part.groupby("reading", sort=False)["answers changed"].max()
    same = list(moved[moved == 0].index)
    part = part[~part["reading"].isin(same) & (part["id"] != "A13")]
    parts = [
        _dots(part, column).assign(comparison=column)
        for column in ("against the default", "against Instruct")
    ]
    drawn = pd.concat(parts, ignore_index=True)
    drawn = drawn[["reading", "family", "comparison", *_DOTS]]
    image = dot_ci(
        drawn,
        title=f"{_title(task)}: the paper's edit under every reading",
        profile=profile,
        xlabel=f"{metric} change",
        row="reading",
        method="family",
        panel="comparison",
        better=_better(metric),
    )
    tests = ledger_tests(run)
    answers, edit = (int(part["matters"].str.contains(kind).sum()) for kind in ("answers", "edit"))
    default = "; ".join(
        f"{family} {difference(run, cells, 'chameleon', 'instruct', metric)}"
        for family in run.families
        if (cells := run.of(task, family, DEFAULT))
    )
    return save_figure(
        image,
        f"06_ledger_{task}",
        alt=(
            f"Forest plot of {part['reading'].nunique()} readings of open points. Against the "
            f"default edit the changes reach from {part['against the default'].min():+.3f} to "
            f"{part['against the default'].max():+.3f}. At the width for all {tests} comparisons "
            f"{answers} of them move the answers and {edit} move what the edit adds."
        ),
        caption=(
            f"Change of {metric} when one reading is changed, 95 % intervals over {_users(drawn)} "
            f"test users; of {tests} comparisons {0.05 * tests:.1f} would leave out 0 by chance. "
            f"Instruct is asked in the wording of the reading; the default edit against it: "
            f"{default}. Not drawn: A13 (see the figure of insight and edit), and for want of a "
            f"changed answer {', '.join(same) or 'none'} ({profile} profile)."
        ),
        data=drawn,
        profile=profile,
    )


def strengths(run: Run) -> pd.DataFrame:
    """Both edits against Instruct at every strength (A12); ``run`` is the ledger's."""
    rows = []
    for task in run.data:
        metric = get_task(task).metrics[0]
        for family in run.families:
            for edit, title in EDITS.items():
                for strength in STRENGTHS:
                    name = DEFAULT if strength == 1 else f"A12 strength {strength:g}"
                    cells = run.of(task, family, name)
                    row: dict[str, Any] = {
                        "task": _title(task),
                        "family": FAMILY_TITLES[family],
                        "edit": title,
                        "strength": strength,
                        "metric": metric,
                    }
                    found = difference(run, cells, edit, "instruct", metric)
                    row |= estimate_columns(found, "change")
                    margin = where_defined(difference, run, cells, edit, "instruct", "margin")
                    row |= part_columns(margin, "margin change")
                    rows.append(row)
    return pd.DataFrame(rows)


def strength_figure(frame: pd.DataFrame, task: str, profile: str) -> FigureOutput:
    """The change against Instruct over the strength, a line per edit and family."""
    part, metric = _of(frame, task)
    drawn = _dots(part, "change")
    drawn = drawn.assign(line=line_names(drawn))[["line", "strength", *_DOTS]]
    image = line_ci(
        drawn,
        title=f"{_title(task)}: strength of the edit",
        profile=profile,
        x="strength",
        xlabel="strength of boost and removal (1: the paper's)",
        ylabel=f"{metric} change",
        group="line",
        reference=0.0,
        reference_label="Instruct",
        better=_better(metric),
        logx=True,
    )
    words = []
    for line, one in drawn.groupby("line", sort=False):
        at = dict(zip(one["strength"], one["value"], strict=True))
        words.append(f"{line} {at[1.0]:+.3f} at 1 and {at[max(at)]:+.3f} at {max(at):g}")
    return save_figure(
        image,
        f"06_strength_{task}",
        alt=f"Lines of the {metric} change over the strength: {'; '.join(words)}.",
        caption=(
            f"Change of {metric} against Instruct at other strengths of the same directions, 95 % "
            f"intervals over {_users(drawn)} test users ({profile} profile)."
        ),
        data=drawn,
        profile=profile,
    )


def line_names(frame: pd.DataFrame) -> pd.Series:
    """Short names of lines: the edit in one word, and the family."""
    words = {"CHAMELEON (paper)": "paper's", "CHAMELEON fitted (ours)": "fitted"}
    edit = frame["edit"].map(lambda title: words.get(title, title.split(" ")[0]))
    return edit + ", " + frame["family"].str.split(" ").str[0]


_DOTS = ["value", "ci_low", "ci_high", "n", "seeds"]


def _dots(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    return frame.rename(
        columns={column: "value", f"{column}_low": "ci_low", f"{column}_high": "ci_high"}
    )


def _of(frame: pd.DataFrame, task: str) -> tuple[pd.DataFrame, str]:
    return frame[frame["task"] == _title(task)], get_task(task).metrics[0]


def _title(task: str) -> str:
    return task.replace("_", "-")


def _better(metric: str) -> Better:
    return "higher" if higher_is_better(metric) else "lower"


def _users(frame: pd.DataFrame) -> str:
    return span(frame["n"])


def _words(frame: pd.DataFrame) -> str:
    return "; ".join(
        f"{row.edit}, {row.family} {row.value:+.3f}" for row in frame.itertuples(index=False)
    )
