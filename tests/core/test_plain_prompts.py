from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.fitting import Contrast, fit_by_preference
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.settings import EditSettings
from tests.backbones.tiny import ANSWERS, PROMPTS, make_backbone

SETTINGS = EditSettings(fit_steps=4, fit_batch=4, fit_holdout=0.25)


class Counting:
    """A backbone that remembers what it was told to prepare."""

    def __init__(self, backbone: HFBackbone) -> None:
        self.backbone = backbone
        self.read: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def prepare(self, prompts: Sequence[str], **rest: Any) -> Any:
        self.read.append(list(prompts))
        return self.backbone.prepare(prompts, **rest)


@pytest.fixture
def counting() -> Any:
    return Counting(make_backbone("mistral"))


def test_prompts_are_read_at_the_first_chunk_together_and_once(counting: Any) -> None:
    prompts = PlainPrompts(counting, [*PROMPTS, PROMPTS[0]])
    assert prompts.texts == PROMPTS and counting.read == []
    for rows in ([3], [5, 1], [0, 0, 2]):
        asked = [PROMPTS[row] for row in rows]
        answers = [ANSWERS[row] for row in rows]
        found = counting.score(prompts.chunk(asked), answers)
        alone = counting.score(counting.backbone.prepare(asked), answers)
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-4)
    assert counting.read == [PROMPTS]


def test_a_prompt_that_was_not_announced_is_refused(counting: Any) -> None:
    with pytest.raises(ValueError, match="1 prompts were not announced, first 'new'"):
        PlainPrompts(counting, PROMPTS).chunk([PROMPTS[0], "new"])
    assert counting.read == []


def test_a_fit_is_the_same_whether_another_read_the_prompts_before_it(counting: Any) -> None:
    def contrasts(chosen: str, rejected: str) -> list[Contrast]:
        texts = [f"{PROMPTS[row % 6]} {row}" for row in range(9)]
        return [Contrast(text, chosen, rejected, f"u{at}") for at, text in enumerate(texts)]

    own, other = contrasts("comedy", "action"), contrasts("action", "comedy")
    every = [contrast.prompt for contrast in own]

    def fit(some: list[Contrast], prompts: PlainPrompts) -> torch.Tensor:
        done = fit_by_preference(counting, some, (0, 1, 2), SETTINGS, prompts=prompts)
        return done.edit.theta_p

    shared = PlainPrompts(counting, every)
    first, second = fit(own, shared), fit(other, shared)
    assert counting.read == [every]
    assert torch.equal(second, fit(other, PlainPrompts(counting, every)))
    assert not torch.equal(first, second)
    alone = fit_by_preference(counting, own, (0, 1, 2), SETTINGS)
    assert torch.equal(alone.edit.theta_p, first) and counting.read == [every] * 3
