"""Finished runs of the group-size study made by hand, from the planted ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chameleon_lib.studies.run import Cell, Run
from chameleon_lib.studies.s03_ladder import OTHER, OWN
from tests.studies.planted import planted_run

CONDITIONS = {OWN: 1, OTHER: 1, "20 users": 20, "100 users": 100}
EDITS = ("instruct", "chameleon", "random")
CONTROLS = ("from_neutral", "shuffled_pairs", "fitted", "fitted_shuffled")
Rates = Mapping[str, Mapping[str, float]]


def planted_sizes(
    rates: Rates | None = None,
    *,
    conditions: Mapping[str, int] = CONDITIONS,
    **planted: Any,
) -> Run:
    """A run whose method ``m`` under condition ``c`` answers right at ``rates[c][m]``."""
    runs = {name: planted_run((rates or {}).get(name), **planted) for name in conditions}
    first = next(iter(runs.values()))
    cells = [
        _cell(run.cells[at], name, conditions[name])
        for at in range(len(first.cells))
        for name, run in runs.items()
    ]
    return replace(first, cells=cells)


def _cell(cell: Cell, condition: str, size: int) -> Cell:
    names = EDITS if size == 1 else EDITS + CONTROLS
    return replace(
        cell,
        condition=condition,
        answers={name: cell.answers[name] for name in names},
        scores={name: cell.scores[name] for name in names},
        draws=[log(condition, size, index) for index in range(2)],
    )


def log(condition: str, size: int, index: int) -> dict[str, Any]:
    """What a draw logs, small enough to check by hand."""
    users = {OWN: 80, OTHER: 40}.get(condition, size)
    value = size / 100
    cosines = {"own draw": value, "other draws": value / 2 + index / 10}
    methods = ("chameleon",) if size == 1 else ("chameleon", "fitted")
    return {
        "size": size,
        "users": users,
        "pairs": users + 20,
        "kept": users,
        "identical": 20,
        "layers": {0: 30, 2: 50} if size == 1 else [index, 2],
        "agreement": {
            (method, theta, against): value
            for method in methods
            for theta in ("theta_p", "theta_n")
            for against, value in cosines.items()
        },
        "shared": 0.5 + index / 10,
        "d": 16,
    }
