"""The training loop: AdamW on the soft prompts' module, the language model frozen.

The best epoch on the validation samples is kept: by teacher-forced loss, or, as released, by the
METEOR of sampled text. On one device: little is trained, and the paper's batch is one sample.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import get_linear_schedule_with_warmup

from chameleon_lib.difference.measures import meteor
from chameleon_lib.difference.model import Example, SoftPrompted, collate
from chameleon_lib.errors import UserError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the module is trained; the defaults are the paper's.

    Attributes:
        epochs: Passes over the samples.
        batch: Samples of a forward pass.
        accumulate: Forward passes per step of the optimiser.
        lr: Peak rate; toys need one near 1e-3.
        weight_decay: Of AdamW.
        warmup: Share of the steps in which the rate rises; then it falls to 0, linearly.
        seed: Of the order of samples, and of sampled text.
        select: Epoch that is kept: of the least validation ``loss``, or the most ``meteor``.
        new_tokens: Of sampled text, where that selects.
    """

    epochs: int = 5
    batch: int = 1
    accumulate: int = 16
    lr: float = 1e-5
    weight_decay: float = 0.025
    warmup: float = 0.01
    seed: int = 42
    select: str = "loss"
    new_tokens: int = 2048

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.accumulate) < 1:
            raise UserError(f"epochs, batch and accumulate must be 1 or more in {self}.")
        if self.select not in ("loss", "meteor"):
            raise UserError(f"select is {self.select!r}; use loss or meteor.")


@dataclass(frozen=True)
class Log:
    """How a training went: mean loss of every step, validation score of every epoch, the best."""

    losses: list[float]
    valid: list[float]
    best: int


def train(
    model: SoftPrompted,
    samples: Sequence[Example],
    valid: Sequence[Example],
    recipe: Recipe,
    golds: Sequence[str] = (),
) -> Log:
    """Trains ``model.soft`` in place; a module without parameters stays as it is.

    Args:
        model: The frozen model with its soft prompts.
        samples: To learn from.
        valid: To select by; without any the last epoch is kept.
        recipe: Everything else.
        golds: Texts of the validation reviews, where METEOR selects.

    Raises:
        UserError: No samples.
    """
    if not samples:
        raise UserError("There is no sample to train on; every user needs a review with peers.")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        return Log([], [], 0)
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay)
    passes = -(-len(samples) // recipe.batch)
    steps = recipe.epochs * -(-passes // recipe.accumulate)
    schedule = get_linear_schedule_with_warmup(optimizer, round(recipe.warmup * steps), steps)
    order = torch.Generator().manual_seed(recipe.seed)
    losses, scores = list[float](), list[float]()
    best, kept = 0, copy.deepcopy(model.soft.state_dict())
    for epoch in range(recipe.epochs):
        model.soft.train()
        rows = torch.randperm(len(samples), generator=order).tolist()
        batches = [rows[at : at + recipe.batch] for at in range(0, len(rows), recipe.batch)]
        for at in range(0, len(batches), recipe.accumulate):
            group = batches[at : at + recipe.accumulate]
            taken = 0.0
            for batch in group:
                loss = model(collate([samples[row] for row in batch])) / len(group)
                loss.backward()
                taken += float(loss.detach())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(taken)
        if valid:
            scores.append(_score(model, valid, recipe, golds))
            if scores[-1] == min(scores):
                best, kept = epoch, copy.deepcopy(model.soft.state_dict())
    if valid:
        model.soft.load_state_dict(kept)
    model.soft.eval()
    return Log(losses, scores, best if valid else recipe.epochs - 1)


def _score(
    model: SoftPrompted, valid: Sequence[Example], recipe: Recipe, golds: Sequence[str]
) -> float:
    """What selects, the less the better: nats per token, or minus METEOR."""
    model.soft.eval()
    if recipe.select == "loss":
        return float(np.mean(nll_of(model, valid)))
    said = write_all(
        model, valid, recipe.new_tokens, size=recipe.batch, temperature=0.8, seed=recipe.seed
    )
    return -float(np.mean([meteor(*pair) for pair in zip(golds, said, strict=True)]))


@torch.no_grad()
def nll_of(model: SoftPrompted, examples: Sequence[Example], size: int = 32) -> np.ndarray:
    """−log p per token of every sample's review, nats ``(n,)``."""
    parts = [
        model.nll(collate(examples[at : at + size]))[0].double().cpu().numpy()
        for at in range(0, len(examples), size)
    ]
    return np.concatenate(parts)


def write_all(
    model: SoftPrompted,
    examples: Sequence[Example],
    new_tokens: int,
    *,
    size: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Written reviews of all samples, greedy at temperature 0."""
    found: list[str] = []
    for at in range(0, len(examples), size):
        batch = collate(examples[at : at + size], with_answers=False)
        found += model.write(batch, new_tokens, temperature=temperature, seed=seed + at)
    return found
