"""Directions and preference fits of a study by the names that its callers know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from chameleon_lib.core.directions import (
    Directions,
)
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, PlainPrompts
from chameleon_lib.sections.study import Study


def stored_directions(
    study: Study, name: str, h_p: Tensor, h_n: Tensor, seed: int, main: Directions | None = None
) -> Directions:
    """``study.directions``."""
    return study.directions(name, h_p, h_n, seed, main)


def timed_directions(
    study: Study, name: str, h_p: Tensor, h_n: Tensor, seed: int, main: Directions | None = None
) -> tuple[Directions, float]:
    """``study.timed_directions``."""
    return study.timed_directions(name, h_p, h_n, seed, main)


def stored_fit(
    study: Study, contrasts: Sequence[Contrast], prompts: PlainPrompts, seed: int, name: str
) -> tuple[Edit, dict[str, Any]]:
    """``study.preference_fit``: the edit, and what a log keeps of the fit."""
    return timed_fit(study, contrasts, prompts, seed, name)[:2]


def timed_fit(
    study: Study,
    contrasts: Sequence[Contrast],
    prompts: PlainPrompts,
    seed: int,
    name: str,
    stop: Callable[[], bool] | None = None,
) -> tuple[Edit, dict[str, Any], float]:
    """:func:`stored_fit` with its seconds."""
    fit = study.preference_fit(contrasts, prompts, seed, name, stop=stop)
    return fit.edit, fit.log(), fit.seconds
