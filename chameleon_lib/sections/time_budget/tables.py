"""The tables of section 4.5, counted from a finished run, and the rule that compares budgets.

**The rule.** A budget is what one of our edits costs at its largest share, the writing of the
synthetic pairs included. A rival stands there with the largest of its shares that costs no more
(DPO pays for the pairs as well, ALOE reads gold answers instead); a rival whose smallest share
costs more is taken at that share, which is in its favour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import Estimate, bootstrap_metric
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.sections.estimates import STATISTICS, estimate, sums
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.results import FAMILY_TITLES, Cell, Run
from chameleon_lib.sections.seen import change_on_seen, has_learned, quarters
from chameleon_lib.sections.time_budget.study import OURS, RIVALS, TASK

TOLERANCE = 0.02  # accuracy; a method this close below another has its quality
PARAMETERS_GOAL, COMPUTE_GOAL = 1 / 10, 1 / 3

TITLES = {method.id: method.title for method in METHODS}
_COUNTS = {
    "share": "share",
    "queries": "queries",
    "gold labels": "gold",
    "rows": "rows",
    "steps": "steps",
    "trained parameters": "trainable",
    "tokens forward": "forward",
    "tokens backward": "backward",
    "FLOPs": "flops",
    "FLOPs of the pairs": "generation",
}


def counted(cells: Sequence[Cell], method: str, key: str) -> float:
    """Mean of a count over the draws of all cells."""
    return float(np.mean([log[method][key] for cell in cells for log in cell.draws]))


def flops(cells: Sequence[Cell], method: str) -> float:
    """Mean FLOPs of a method, the writing of its pairs included."""
    return counted(cells, method, "flops") + counted(cells, method, "generation")


def points(run: Run) -> pd.DataFrame:
    """One row per family, label and method: quality against Instruct, and what it cost."""
    rows = []
    for family in run.families:
        for condition in run.conditions:
            cells = run.of(TASK, family, condition)
            for method in (*OURS, *RIVALS):
                row: dict[str, Any] = {
                    "family": FAMILY_TITLES[family],
                    "budget": condition,
                    "method": TITLES[method],
                }
                for metric in ("accuracy", "f1"):
                    found = estimate(run, cells, method, metric, "instruct")
                    row |= estimate_columns(found, f"{metric} change")
                for metric in ("accuracy", "valid"):
                    row |= estimate_columns(estimate(run, cells, method, metric), metric)
                size = {name: row.pop(name) for name in ("n", "seeds")}
                row |= {title: counted(cells, method, key) for title, key in _COUNTS.items()}
                row["FLOPs with pairs"] = flops(cells, method)
                rows.append({**row, **size})
    return pd.DataFrame(rows)


def learned(run: Run) -> pd.DataFrame:
    """Did the rivals learn: their loss, and their answers to the very queries they were trained on.

    Without both the comparison would be void.
    """
    rows = []
    for family in run.families:
        cells = run.of(TASK, family, run.conditions[-1])
        for method in RIVALS:
            logs = [log[method] for cell in cells for log in cell.draws]
            ends = np.array([quarters(log["loss"]) for log in logs])  # (trainings, 2)
            gain = change_on_seen(logs)
            fell = int((ends[:, 1] < ends[:, 0]).sum())
            rows.append(
                {
                    "family": FAMILY_TITLES[family],
                    "method": TITLES[method],
                    "share": logs[0]["share"],
                    "gold labels": float(np.mean([log["gold"] for log in logs])),
                    "loss, first quarter": float(ends[:, 0].mean()),
                    "loss, last quarter": float(ends[:, 1].mean()),
                    "trainings whose loss fell": f"{fell} of {len(logs)}",
                    **estimate_columns(gain, "accuracy change on seen users"),
                    "learned": "yes" if has_learned(TASK, logs, gain) else "no",
                }
            )
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]


def across(
    run: Run, ours: tuple[Sequence[Cell], str], other: tuple[Sequence[Cell], str], metric: str
) -> Estimate:
    """Paired difference of two methods that stand in different conditions; users are the same."""
    return bootstrap_metric(
        STATISTICS[metric][1], sums(run, *ours, metric), sums(run, *other, metric)
    )


def rival_within(run: Run, family: str, ours: str, rival: str) -> tuple[str, bool]:
    """Where a rival stands under the budget of one of our edits, by the rule above.

    Returns:
        The condition, and whether its cost is within the budget.
    """
    budget = flops(run.of(TASK, family, run.conditions[-1]), ours)
    inside = [
        name for name in run.conditions if flops(run.of(TASK, family, name), rival) <= budget
    ]
    return (inside[-1], True) if inside else (run.conditions[0], False)


def same_compute(run: Run) -> pd.DataFrame:
    """Our edits at their largest share against every rival within the same compute."""
    rows = []
    for family in run.families:
        full = run.of(TASK, family, run.conditions[-1])
        for ours in OURS:
            for rival in RIVALS:
                condition, inside = rival_within(run, family, ours, rival)
                cells = run.of(TASK, family, condition)
                row: dict[str, Any] = {
                    "family": FAMILY_TITLES[family],
                    "ours": TITLES[ours],
                    "against": TITLES[rival],
                    "share of the rival": counted(cells, rival, "share"),
                    "within the budget": "yes" if inside else "no, its smallest costs more",
                    "FLOPs, ours": flops(full, ours),
                    "FLOPs, rival": flops(cells, rival),
                }
                for metric in ("accuracy", "f1"):
                    found = across(run, (full, ours), (cells, rival), metric)
                    row |= estimate_columns(found, f"{metric}, ours minus rival")
                size = {name: row.pop(name) for name in ("n", "seeds")}
                rows.append({**row, **size})
    return pd.DataFrame(rows)


def same_quality(run: Run) -> pd.DataFrame:
    """The fitted edit against DPO at its largest share: what does equal quality cost.

    Both learn from the same pairs, so the pairs are left out of the costs. A share has DPO's
    quality where the whole interval of the difference lies above minus :data:`TOLERANCE`.
    """
    rows = []
    for family in run.families:
        best = run.of(TASK, family, run.conditions[-1])
        for condition in run.conditions:
            cells = run.of(TASK, family, condition)
            found = across(run, (cells, "fitted"), (best, "dpo"), "accuracy")
            parameters, compute = ratios(cells, best)
            rows.append(
                {
                    "family": FAMILY_TITLES[family],
                    "share of the fitted edit": counted(cells, "fitted", "share"),
                    "share of DPO": counted(best, "dpo", "share"),
                    **estimate_columns(found, "accuracy, fitted minus DPO"),
                    "has DPO's quality": "yes" if found.low > -TOLERANCE else "not shown",
                    "trained parameters, fitted": counted(cells, "fitted", "trainable"),
                    "trained parameters, DPO": counted(best, "dpo", "trainable"),
                    "ratio of parameters": parameters,
                    "FLOPs, fitted": counted(cells, "fitted", "flops"),
                    "FLOPs, DPO": counted(best, "dpo", "flops"),
                    "ratio of FLOPs": compute,
                }
            )
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]


def ratios(fitted: Sequence[Cell], dpo: Sequence[Cell]) -> tuple[float, float]:
    """Trained parameters and training FLOPs of the fitted edit over those of DPO."""
    parameters, compute = (
        counted(fitted, "fitted", key) / counted(dpo, "dpo", key) for key in ("trainable", "flops")
    )
    return parameters, compute
