"""Trainings that are asked after every step whether time is up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from chameleon_lib.baselines.aloe import train_aloe
from chameleon_lib.baselines.dpo import train_dpo
from chameleon_lib.baselines.options import drawn
from chameleon_lib.baselines.tuning import Tuned
from tests.backbones.tiny import make_backbone
from tests.baselines.planted import FAMILIES, aloe, contrasts, dpo, examples


def after(steps: int) -> Callable[[], bool]:
    """Time is up when it is asked for the ``steps``-th time."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= steps


def train(method: str, family: str, stop: Callable[[], bool] | None) -> Tuned:
    backbone = make_backbone(family)
    if method == "aloe":
        return train_aloe(backbone, examples(), aloe(epochs=3), seed=0, stop=stop)
    return train_dpo(backbone, contrasts(8), dpo(epochs=3), seed=0, stop=stop)


@pytest.mark.parametrize("method", ["aloe", "dpo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_stops_in_time_on_the_way_of_the_full_one(method: str, family: str) -> None:
    full = train(method, family, None)
    assert full.log.steps == 6 and not any("stopped" in note for note in full.log.notes)
    cut = train(method, family, after(3))
    # The schedule is that of the full run, so the steps made are the very same.
    assert cut.log.steps == 3 and cut.log.loss == full.log.loss[:3]
    assert "stopped by the clock after 3 of 6 steps" in cut.log.notes
    assert cut.log.backward_tokens < full.log.backward_tokens
    never = train(method, family, lambda: False)
    assert never.log == full.log
    assert all(torch.equal(never.tensors[name], full.tensors[name]) for name in full.tensors)


def test_what_a_method_draws_can_be_asked_beforehand() -> None:
    assert drawn("dpo", 0, 0.5, 0) == []
    assert len(drawn("aloe", 10, 0.01, 0)) == 1
    assert sorted(drawn("aloe", 10, 1.0, 3)) == list(range(10))
    assert drawn("aloe", 30, 0.5, 3) != drawn("dpo", 30, 0.5, 3) != drawn("dpo", 30, 0.5, 4)
