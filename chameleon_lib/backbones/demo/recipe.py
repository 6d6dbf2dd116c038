"""What decides a training run of an embedded model: its settings, its recipe, its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run."""

    family: str
    seed: int = 0
    steps: int = 6000
    batch: int = 32
    lr: float = 2e-3
    propensity: float = 0.5
    warmup: int = 200
    curriculum: float = 0.15
    task_shares: dict[str, float] | None = None  # after the curriculum; None: the same for each
    lesson_steps: int = 0
    lesson_lr: float = 1e-3

    @property
    def total(self) -> int:
        """Steps of both stages."""
        return self.steps + self.lesson_steps


# The encoder-decoder is slow on LaMP-2 (which cue of the query fits the insight) and quick on
# LaMP-7, hence the shares. The less sure a model is of a taste, the less likely it finds the
# personal answer; a propensity above one half makes up for that in the slower learner.
RECIPES: dict[str, dict[str, Any]] = {
    "decoder": {"steps": 3000},
    "encdec": {
        "steps": 12000,
        "propensity": 0.55,
        "task_shares": {"LaMP_2": 0.5, "LaMP_3": 0.32, "LaMP_7": 0.18},
        "lesson_steps": 2000,
    },
}


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Per stage: linear warm-up, then cosine to zero; a factor on the peak rate ``lr``."""
    peak, start, steps = 1.0, 0, settings.steps
    if step >= settings.steps:
        peak, start, steps = settings.lesson_lr / settings.lr, settings.steps, settings.lesson_steps
    if step - start < settings.warmup:
        return peak * (step - start + 1) / settings.warmup
    done = (step - start - settings.warmup) / max(1, steps - settings.warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
