"""Figure 3's tables, counted from a finished run: every number with n users, seeds and interval.

The interval is over test users. How much the choice of the random set of train users moves a number
stands beside it, as the standard deviation over the sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import seed_sd
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.estimates import STATISTICS, estimate, methods_in, where_defined
from chameleon_lib.sections.group_size.agreement import FITTED, PAPER, chance
from chameleon_lib.sections.group_size.ladder import OTHER, OWN
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.results import FAMILY_TITLES, Cell, Run

THETAS = {
    (PAPER, "theta_p"): "θP (paper)",
    (PAPER, "theta_n"): "θN (paper)",
    (FITTED, "theta_p"): "θP (fitted)",
    (FITTED, "theta_n"): "θN (fitted)",
}
_WHOSE = {OWN: "the user's own", OTHER: "one other user's"}


def size_of(cells: Sequence[Cell]) -> int:
    """Users behind one set of directions in these cells of one condition."""
    return int(cells[0].draws[0]["size"])


def cells_of(run: Run, task: str, family: str) -> dict[str, list[Cell]]:
    """Condition → its cells, by size; single users first."""
    found = {condition: run.of(task, family, condition) for condition in run.conditions}
    there = {condition: cells for condition, cells in found.items() if cells}
    return dict(sorted(there.items(), key=lambda item: size_of(item[1])))


def groups_of(run: Run, task: str, family: str) -> list[list[Cell]]:
    """The cells of every group of two or more users, by size."""
    found = cells_of(run, task, family)
    return [cells for condition, cells in found.items() if condition not in _WHOSE]


def curve(run: Run, task: str) -> pd.DataFrame:
    """Every method at every size: its level, and its change against Instruct.

    A method that does not depend on the size (Instruct) has one row, at 0 users.
    """
    metrics = get_task(task).metrics
    rows: list[dict[str, Any]] = []
    for family in run.families:
        for condition, cells in cells_of(run, task, family).items():
            for method in methods_in(cells):
                plain = method.id == "instruct"
                if plain and any(row["family"] == FAMILY_TITLES[family] for row in rows):
                    continue
                row: dict[str, Any] = {
                    "family": FAMILY_TITLES[family],
                    "users": 0 if plain else size_of(cells),
                    "directions": "none" if plain else _WHOSE.get(condition, "the group's"),
                    "method": method.title,
                    "kind": method.kind,
                }
                row |= estimate_columns(estimate(run, cells, method.id, metrics[0]), metrics[0])
                for metric in metrics:
                    change = estimate(run, cells, method.id, metric, "instruct")
                    row |= estimate_columns(change, f"{metric} change")
                margin = where_defined(estimate, run, cells, method.id, "margin", "instruct")
                row |= part_columns(margin, "margin change")
                row[f"{metrics[0]} sd over sets"] = _spread(cells, method.id, metrics[0])
                for score in ("changed", "valid"):
                    values = [cell.scores[method.id][score] for cell in cells]
                    row[f"{score} rate"] = float(np.mean(np.concatenate(values)))
                rows.append(row)
    return _counts_last(pd.DataFrame(rows))


def _spread(cells: Sequence[Cell], method: str, metric: str) -> float:
    """Standard deviation over the sets of train users, mean over models; NaN for one set."""
    score, _ = STATISTICS[metric]
    return float(np.mean([seed_sd(cell.scores[method][score]) for cell in cells]))


def _counts_last(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]


def pairs(run: Run, task: str) -> pd.DataFrame:
    """Per family and condition: pairs behind one set of directions, and the layers they edit.

    For single users ``users`` counts those who have directions, and ``layers`` says how many of
    them edit each layer.
    """
    rows = []
    for family in run.families:
        for condition, cells in cells_of(run, task, family).items():
            # A test user's own pairs are the same in every draw.
            own = slice(0, 1) if condition == OWN else slice(None)
            logs = [log for cell in cells for log in cell.draws[own]]
            single = condition in _WHOSE
            kept = [log["kept"] / (log["users"] if single else 1) for log in logs]
            rows.append(
                {
                    "family": FAMILY_TITLES[family],
                    "condition": condition,
                    "users": float(np.mean([log["users"] for log in logs])),
                    "pairs per direction": float(np.mean(kept)),
                    "drop rate": float(np.mean([log["identical"] / log["pairs"] for log in logs])),
                    "fewer pairs than pairs_k_min": min(kept) < run.settings.pairs_k_min,
                    "edited layers": " | ".join(_layers(log["layers"]) for log in logs),
                    "n": min(log["users"] for log in logs),
                    "seeds": len(logs),
                }
            )
    return pd.DataFrame(rows)


def _layers(layers: Sequence[int] | dict[int, int]) -> str:
    if isinstance(layers, dict):
        return ",".join(f"{layer}:{count}" for layer, count in layers.items())
    return ",".join(map(str, layers))


def agreement(run: Run, task: str) -> pd.DataFrame:
    """Absolute cosine of every condition's directions to those of the largest groups.

    Mean over draws with the lowest and highest draw; ``n`` counts the users behind the directions.
    """
    rows = []
    for family in run.families:
        for condition, cells in cells_of(run, task, family).items():
            logs = [log for cell in cells for log in cell.draws]
            for (method, theta), title in THETAS.items():
                for against in ("own draw", "other draws"):
                    found = [
                        log["agreement"][method][theta][against]
                        for log in logs
                        if against in log["agreement"].get(method, {}).get(theta, {})
                    ]
                    if not found:
                        continue
                    shared = 1.0 if against == "own draw" else _mean(logs, "shared")
                    if condition == OWN:
                        shared = 0.0
                    rows.append(
                        {
                            "family": FAMILY_TITLES[family],
                            "condition": condition,
                            "users": size_of(cells),
                            "direction": title,
                            "large group of the": against,
                            "cosine": float(np.mean(found)),
                            "lowest": min(found),
                            "highest": max(found),
                            "chance": chance(logs[0]["d"]),
                            "users shared": shared,
                            "n": min(log["users"] for log in logs),
                            "seeds": len(found),
                        }
                    )
    return pd.DataFrame(rows)


def _mean(logs: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([log[name] for log in logs]))


def title_of(method: str) -> str:
    """Row name of a method."""
    return next(each.title for each in METHODS if each.id == method)
