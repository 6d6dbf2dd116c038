"""Section 4.2, Table 1: users with history, three tasks, two backbone families."""

from __future__ import annotations

from typing import Any

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.sections.grid import Plan, run_grid
from chameleon_lib.sections.per_user.cell import compute_cell
from chameleon_lib.sections.results import Cell, Run


def run(profile: RunProfile, settings: EditSettings, **options: Any) -> Run:
    """Compute Table 1; ``options`` are those of :func:`chameleon_lib.sections.grid.run_grid`."""
    return run_grid(_compute, profile, settings, **options)


def _compute(plan: Plan, backbone: str) -> list[Cell]:
    few = backbone not in plan.profile.studied
    draws = plan.draws[: plan.profile.repeats] if few else plan.draws
    return [compute_cell(plan.open(backbone), draws)]
