"""The controls that Table 1's own arms give: insight × edit, and every control direction.

Only counting and resampling, through :mod:`chameleon_lib.sections.paired`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.estimates import having, where_defined
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.paired import Term, contrast, difference
from chameleon_lib.sections.results import FAMILY_TITLES, Cell, Run

TITLES = {method.id: method.title for method in METHODS}
EDITS = {"chameleon": "CHAMELEON (paper)", "fitted": "CHAMELEON fitted (ours)"}
# Control directions of both edits (method reference, section 11), in Table 1's cells.
CONTROLS = {
    "chameleon": (
        "random",
        "from_neutral",
        "shuffled_pairs",
        "permute_answers",
        "answer_only",
        "mean_difference",
        "svd_diff",
        "logistic",
        "p_only",
        "n_only",
    ),
    "fitted": ("random", "fitted_shuffled", "chameleon"),
}


def factorial(edit: str) -> dict[str, dict[str, float]]:
    """Effects of the 2 × 2 of insight and edit (C3-C6) as weights of its four arms."""
    neither, insight, both = "instruct", "insight", f"{edit}+insight"
    return {
        "insight alone (C4 - C3)": {insight: 1, neither: -1},
        "edit alone (C5 - C3)": {edit: 1, neither: -1},
        "edit on top of the insight (C6 - C4)": {both: 1, insight: -1},
        "edit in place of the insight (C5 - C4)": {edit: 1, insight: -1},
        "main effect of the insight": {insight: 0.5, neither: -0.5, both: 0.5, edit: -0.5},
        "main effect of the edit": {edit: 0.5, neither: -0.5, both: 0.5, insight: -0.5},
        "interaction": {both: 1, edit: -1, insight: -1, neither: 1},
    }


def factorial_effect(
    run: Run, cells: Sequence[Cell], edit: str, effect: str, metric: str
) -> Estimate:
    """One effect of the 2 × 2 on the given cells."""
    weights = factorial(edit)[effect]
    return contrast(run, [Term(w, cells, method) for method, w in weights.items()], metric)


def two_by_two(run: Run) -> pd.DataFrame:
    """Insight × edit for both edits, every task and family; ``run`` is Table 1's."""
    rows = []
    for task, family, cells in _parts(run):
        for edit, title in EDITS.items():
            for effect in factorial(edit):
                metric = get_task(task).metrics[0]
                row: dict[str, Any] = {
                    "task": task.replace("_", "-"),
                    "family": FAMILY_TITLES[family],
                    "edit": title,
                    "effect": effect,
                    "metric": metric,
                }
                row |= estimate_columns(
                    factorial_effect(run, cells, edit, effect, metric), "change"
                )
                margin = where_defined(factorial_effect, run, cells, edit, effect, "margin")
                row |= part_columns(margin, "margin change")
                rows.append(row)
    return counts_last(pd.DataFrame(rows))


def against_controls(run: Run) -> pd.DataFrame:
    """Both edits minus each of their control directions; ``run`` is Table 1's."""
    rows = []
    for task, family, cells in _parts(run):
        for edit, controls in CONTROLS.items():
            for control in (name for name in controls if having(cells, name)):
                metric = get_task(task).metrics[0]
                row: dict[str, Any] = {
                    "task": task.replace("_", "-"),
                    "family": FAMILY_TITLES[family],
                    "edit": EDITS[edit],
                    "control": TITLES[control].removeprefix("control: "),
                    "metric": metric,
                }
                held = having(cells, control)
                row |= estimate_columns(difference(run, held, edit, control, metric), "change")
                margin = where_defined(difference, run, held, edit, control, "margin")
                row |= part_columns(margin, "margin change")
                rows.append(row)
    return counts_last(pd.DataFrame(rows))


def _parts(run: Run) -> list[tuple[str, str, list[Cell]]]:
    return [(task, family, run.of(task, family)) for task in run.data for family in run.families]


def counts_last(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with users and seeds at the end."""
    return frame[[*(c for c in frame.columns if c not in ("n", "seeds")), "n", "seeds"]]
