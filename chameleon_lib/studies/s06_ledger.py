"""The tables, figures and verdicts of the ambiguity ledger, from :mod:`.s06_readings`' results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import numpy as np
import pandas as pd

from chameleon_lib.core.task import get_task
from chameleon_lib.data.metrics import higher_is_better
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import LEVEL, Estimate
from chameleon_lib.kit.tables import estimate_columns, span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies.frame import (
    Claim,
    Row,
    alike,
    better,
    columns_of,
    contrast,
    counts_last,
    curve,
    difference,
    drawn,
    forest,
    having,
    judge,
    matrix,
    pick,
    places,
    tabulate,
)
from chameleon_lib.studies.methods import FITTED, PAPER, method_of, short_of, title_of
from chameleon_lib.studies.run import Run, split_of
from chameleon_lib.studies.s06_readings import (
    DEFAULT,
    STRENGTHS,
    VARIANTS,
    Variant,
    ledger_rows,
    strength_of,
)


def widened(found: Estimate, tests: int) -> Estimate:
    """The interval stretched to a Bonferroni width: it covers all of ``tests`` at once.

    Each side of the percentile interval is multiplied by the ratio of the normal quantiles. Percent
    points that far out could not be read off 10,000 resamples.
    """
    tail = (1 - LEVEL) / 2
    normal = NormalDist()
    factor = normal.inv_cdf(1 - tail / max(tests, 1)) / normal.inv_cdf(1 - tail)
    low = found.value - factor * (found.value - found.low)
    high = found.value + factor * (found.high - found.value)
    return replace(found, low=low, high=high)


def readings_in(frame: pd.DataFrame) -> Iterator[tuple[str, str, Variant, pd.DataFrame]]:
    """Every task, model and reading that gave an edit, with its rows."""
    for (task, model), part in places(frame, "task", "model"):
        for variant in VARIANTS:
            rows = pick(part, condition=variant.title)
            if PAPER in set(rows["method"].unique()):
                yield task, model, variant, having(rows, PAPER)


def n_tests(frame: pd.DataFrame) -> int:
    """How many readings are compared in one table: models times readings that gave answers."""
    return sum(1 for _ in readings_in(frame))


def against_default(frame: pd.DataFrame, rows: pd.DataFrame, metric: str) -> Estimate:
    """The edited model under a reading minus the same by default, from the same groups.

    ``rows`` are those of the reading, of one task and model; the metric is a mean.
    """
    edited = pick(rows, method=PAPER)
    return contrast([(1, edited), (-1, alike(_default(frame, rows, PAPER), edited))], metric)


def added_to_default(frame: pd.DataFrame, rows: pd.DataFrame, prompt: str, metric: str) -> Estimate:
    """What the edit adds to the ``prompt`` of a reading minus what it adds by default."""
    edited = pick(rows, method=PAPER)
    plain = having_backbones(_default(frame, rows, "instruct"), rows)
    terms = [
        (1, edited),
        (-1, alike(_default(frame, rows, PAPER), edited)),
        (-1, pick(rows, method=prompt)),
        (1, plain),
    ]
    return contrast(terms, metric)


def having_backbones(frame: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The rows of the backbones of ``other``."""
    return pick(frame, backbone=set(other["backbone"].unique()))


def _default(frame: pd.DataFrame, rows: pd.DataFrame, method: str) -> pd.DataFrame:
    task, model = (rows[name].iloc[0] for name in ("task", "model"))
    return pick(frame, task=task, model=model, condition=DEFAULT, method=method)


def effects(run: Run) -> pd.DataFrame:
    """Every reading against the default edit and against Instruct, with Bonferroni widths.

    Two questions are asked of every reading. Does it move the answers: is the edited model right
    more or less often than under the defaults (``against the default``)? And does it move what the
    edit does: does the edit add more or less to the same prompt without it (``added``)? Another
    prompt may answer the first alone. ``matters`` names what the widened interval, which covers all
    comparisons of a question at once, leaves 0 out of: "answers", "edit", both, or "no".

    ``answers changed`` is the share of answers that differ from the default edit's; where it is 0
    the reading is the same edit here.
    """
    frame = run.frame
    rows, tests = [], n_tests(frame)
    for task, model, variant, part in readings_in(frame):
        metric = get_task(task).metrics[0]
        moved = against_default(frame, part, metric)
        added = added_to_default(frame, part, variant.prompt, metric)
        wide = {"answers": widened(moved, tests), "edit": widened(added, tests)}
        matters = [name for name, found in wide.items() if not found.low <= 0 <= found.high]
        edited = pick(part, method=PAPER)
        answers = (matrix(each, "answer")[0]
                   for each in (edited, alike(_default(frame, part, PAPER), edited)))  # fmt: skip
        rows.append(
            {
                "task": task.replace("_", "-"),
                "model": title_of(model),
                "id": variant.id,
                "reading": variant.name,
                "metric": metric,
                **estimate_columns(moved, "against the default"),
                "against the default, widened_low": wide["answers"].low,
                "against the default, widened_high": wide["answers"].high,
                **estimate_columns(added, "added, against the default"),
                "added, widened_low": wide["edit"].low,
                "added, widened_high": wide["edit"].high,
                "matters": " and ".join(matters) or "no",
                **estimate_columns(difference(part, PAPER, "instruct", metric), "against Instruct"),
                **columns_of({metric: "added", "margin": "added margin"}, difference, part, PAPER,
                             variant.prompt),
                "answers changed": float(np.mean(np.not_equal(*answers).mean(axis=1))),
                "layers": _layers(run, task, model, variant),
            }
        )  # fmt: skip
    return counts_last(pd.DataFrame(rows))


def _layers(run: Run, task: str, model: str, variant: Variant) -> str:
    cells = run.at(task, model, variant.title)
    logs = [log for cell in cells for log in cell.draws if "refused" not in log]
    return " | ".join(",".join(map(str, log["layers"])) or "none" for log in logs)


def refused_readings(run: Run) -> list[str]:
    """One sentence per reading, backbone and reason that gave no edit in some group."""
    found = []
    for cell in run.cells:
        said = [log["refused"] for log in cell.draws if "refused" in log]
        for sentence in dict.fromkeys(said):
            found.append(
                f"{cell.backbone}: '{cell.condition}' gave no edit in {said.count(sentence)} of "
                f"{len(cell.draws)} groups. {sentence}"
            )
    return found


def open_points(run: Run) -> pd.DataFrame:
    """One row per open point: varied here, shown elsewhere, or why nothing can be run."""
    users = max(len(ids) for ids in run.test_users.values())
    seeds = max(len(cell.draws) for cell in run.cells)
    return pd.DataFrame(ledger_rows(run.profile, run.settings)).assign(n=users, seeds=seeds)


def strengths(frame: pd.DataFrame) -> pd.DataFrame:
    """Both edits against Instruct at every strength (A12)."""
    names = {strength_of(alpha).title if alpha != 1 else DEFAULT: alpha for alpha in STRENGTHS}

    def rows(part: pd.DataFrame) -> Iterator[Row]:
        for edit in (PAPER, FITTED):
            for name, strength in names.items():
                shown = {"edit": method_of(edit).title, "strength": strength}
                yield shown, partial(difference, pick(part, condition=name), edit, "instruct")

    return tabulate(frame, rows, "change")


def rescue(
    frame: pd.DataFrame, task: str, variant: Variant, rows: pd.DataFrame, tests: int
) -> tuple[Estimate, Estimate]:
    """What the edit adds under a reading, and more than by default: gains upwards, widened."""
    metric = get_task(task).metrics[0]
    found = (
        difference(rows, PAPER, variant.prompt, metric),
        added_to_default(frame, rows, variant.prompt, metric),
    )
    gain, against = (widened(one if higher_is_better(metric) else -one, tests) for one in found)
    return gain, against


def verdicts(run: Run, notebook: str) -> list[Verdict]:
    """Does some reading of an open point let the paper's edit add something to its prompt?"""
    frame, tests = run.frame, n_tests(run.frame)
    rescues: dict[tuple[str, str], dict[str, tuple[Estimate, Estimate]]] = {}
    for task, model, variant, rows in readings_in(frame):
        found = rescue(frame, task, variant, rows, tests)
        rescues.setdefault((task, model), {})[variant.title] = found
    claims = []
    for (task, model), some in rescues.items():
        title = max(some, key=lambda name: min(one.low for one in some[name]))
        gain, against = some[title]
        metric = get_task(task).metrics[0]
        claims.append(
            Claim(
                task,
                model,
                "some reading of an open point lets the paper's edit add to its prompt",
                gain,
                {"the default edit": against},
                split=split_of(run, task),
                note=f"the best of {len(some)}: {title}; interval widened to cover {tests} "
                "comparisons; must also add more than the default edit",
                measure=f"{metric} gain, interval widened",
                scorer=f"{metric}, LaMP evaluator's definition, gains upwards",
                upwards=True,
            )
        )
    return judge(claims, section="3.2", notebook=notebook, csv="tables/controls_d_ledger.csv")


# ---- How it is shown


def ledger_figure(run: Run, table: pd.DataFrame, task: str, publish: Publisher) -> FigureOutput:
    """Forest plot of every reading that changed an answer: against default and Instruct.

    The insight in the prompt (A13) is left to the figure of the 2 × 2, where what it does is told
    from what the edit does; its size would hide all others.
    """
    metric = get_task(task).metrics[0]
    part = table[table["task"] == task.replace("_", "-")]
    part = part.assign(reading=part["id"] + " " + part["reading"])
    moved = part.groupby("reading", sort=False)["answers changed"].max()
    same = list(moved[moved == 0].index)
    part = part[~part["reading"].isin(same) & (part["id"] != "A13")]
    compared = ("against the default", "against Instruct")
    data = pd.concat(
        [drawn(part.assign(comparison=column), column, "reading", "model", "comparison")
         for column in compared],
        ignore_index=True,
    )  # fmt: skip
    tests = n_tests(run.frame)
    default = "; ".join(
        f"{short_of(model)} {difference(rows, PAPER, 'instruct', metric)}"
        for (model,), rows in places(pick(run.frame, task=task, condition=DEFAULT), "model")
    )
    return forest(
        publish,
        data,
        f"06_ledger_{task}",
        made_by=ledger_figure,
        title=f"{task.replace('_', '-')}: the paper's edit under every reading",
        caption=(
            f"Change of {metric} when one reading is changed, 95 % intervals over "
            f"{span(data['n'])} test users; of {tests} comparisons {0.05 * tests:.1f} would leave "
            "out 0 by chance. Instruct is asked in the wording of the reading; the default edit "
            f"against it: {default}. Not drawn: A13 (see the figure of insight and edit), and for "
            f"want of a changed answer {', '.join(same) or 'none'}"
        ),
        xlabel=f"{metric} change",
        row="reading",
        method="model",
        panel="comparison",
        better=better(metric),
    )


def strength_figure(table: pd.DataFrame, task: str, publish: Publisher) -> FigureOutput:
    """The change against Instruct over the strength, a line per edit and model."""
    metric = get_task(task).metrics[0]
    part = table[table["task"] == task.replace("_", "-")]
    data = drawn(part.assign(line=line_names(part)), "change", "line", "strength")
    return curve(
        publish,
        data,
        f"06_strength_{task}",
        made_by=strength_figure,
        title=f"{task.replace('_', '-')}: strength of the edit",
        caption=(
            f"Change of {metric} against Instruct at other strengths of the same directions, 95 % "
            f"intervals over {span(data['n'])} test users"
        ),
        x="strength",
        xlabel="strength of boost and removal (1: the paper's)",
        ylabel=f"{metric} change",
        group="line",
        reference=0.0,
        reference_label="Instruct",
        better=better(metric),
        logx=True,
    )


def line_names(table: pd.DataFrame) -> pd.Series:
    """Short names of lines: the edit in one word, and the model in one."""
    words = {method_of(PAPER).title: "paper's", method_of(FITTED).title: "fitted"}
    edit = table["edit"].map(lambda title: words.get(title, title.split(" ")[0]))
    return edit + ", " + table["model"].str.split(" ").str[0]
