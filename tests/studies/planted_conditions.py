"""Planted runs with conditions: the cells of :func:`planted_run`, one per condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chameleon_lib.studies.run import Cell, Run
from tests.studies.planted import planted_run


def conditions_run(
    rates: Mapping[str, Mapping[str, float]],
    *,
    tasks: tuple[str, ...] = ("LaMP_2",),
    backbones: tuple[str, ...] = ("demo:decoder:0", "demo:encdec:0"),
    n_users: int = 120,
) -> Run:
    """A run whose methods answer right at ``rates[condition][method]``.

    Who is right depends on method and seed alone, so equal rates are equal answers.
    """
    runs = {
        name: planted_run(own, tasks=tasks, backbones=backbones, n_users=n_users)
        for name, own in rates.items()
    }
    cells = [under(cell, name) for name, run in runs.items() for cell in run.cells]
    return replace(next(iter(runs.values())), cells=cells)


def under(cell: Cell, condition: str) -> Cell:
    """The cell under a condition, with a log per draw."""
    logs: list[dict[str, Any]] = [
        {"draw": index, "users": 10, "kept": 8 + index, "identical": 2, "layers": [index]}
        for index in range(len(cell.answers["chameleon"]))
    ]
    return replace(cell, condition=condition, draws=logs)
