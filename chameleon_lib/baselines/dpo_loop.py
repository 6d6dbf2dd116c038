"""DPO for encoder-decoders, which TRL's trainer does not take: the same loss in a loop of our own.

Prompt in the encoder, answer in the decoder. Both answers of a pair share one encoder pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batching import pad
from chameleon_lib.baselines.dpo_loss import IGNORED, answer_logp, dpo_loss
from chameleon_lib.baselines.rows import PairRow
from chameleon_lib.baselines.settings import DpoSettings
from chameleon_lib.kit.progress import Progress

if TYPE_CHECKING:
    from chameleon_lib.baselines.trainers import Meter


def train_pairs(
    backbone: HFBackbone,
    model: Any,
    rows: Sequence[PairRow],
    reference: Tensor,
    settings: DpoSettings,
    adapter: Any,
    seed: int,
    max_steps: int | None,
    label: str,
    stop: Callable[[], bool] | None = None,
) -> tuple[Any, Meter]:
    """Tune an adapter on an encoder-decoder.

    Args:
        backbone: Tells padding and device.
        model: A copy of its model, own dropout silenced; the adapter is put into it.
        rows: Pairs.
        reference: ``(n, 2)`` log-probabilities of chosen and rejected answers, nats.
        settings: The recipe.
        adapter: PEFT's configuration.
        seed: Seeds the order of the pairs; the adapter takes torch's global state.
        max_steps: Optimiser steps, or None for whole epochs.
        label: Progress line.
        stop: Asked after every step whether time is up.

    Returns:
        The PEFT model and the counts.
    """
    from peft import get_peft_model
    from transformers import get_scheduler

    from chameleon_lib.baselines.trainers import REENTRANT, Meter

    if settings.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(REENTRANT))
    tuned = get_peft_model(model, adapter)
    tuned.train()  # after silencing, the adapter's is the only dropout left
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=settings.weight_decay)
    batches = -(-len(rows) // settings.batch)
    per_epoch = -(-batches // settings.accumulation)
    steps = max_steps or per_epoch * settings.epochs
    warmup = -int(-steps * settings.warmup // 1)  # rounded up, as the library does
    schedule = get_scheduler(settings.schedule, optimizer, warmup, steps)
    meter = Meter(planned=steps)
    order = _batches(len(rows), settings, seed)
    with Progress(label, steps) as progress:
        for _ in range(steps):
            parts = next(order)
            for part, share in _pieces(parts, settings.at_once):
                chosen = [rows[at] for at in part]
                with settings.autocast(backbone.device):
                    policy = pair_logp(backbone, tuned.get_base_model(), chosen)  # (2, b)
                ref = reference[part].T.to(policy.device)  # (2, b)
                loss = dpo_loss(policy[0], policy[1], ref[0], ref[1], settings.beta) * share
                loss.backward()
                meter.batch(float(loss.detach()), len(chosen), *_counts(chosen))
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            meter.step()
            progress.advance()
            if stop is not None and stop():
                break
    return tuned, meter


def pair_logp(backbone: HFBackbone, model: Any, rows: Sequence[PairRow]) -> Tensor:
    """``log p`` of chosen and rejected answers, ``(2, b)`` float32 in nats, with gradients."""
    prompts = [row.prompt for row in rows]
    ids, mask = pad(prompts, value=backbone.codec.pad_id, side="right", device=backbone.device)
    answers = [*(row.chosen for row in rows), *(row.rejected for row in rows)]
    labels, _ = pad(answers, value=IGNORED, side="right", device=backbone.device)  # (2b, T)
    states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    output = model(
        encoder_outputs=(torch.cat([states, states]),),
        attention_mask=torch.cat([mask, mask]),
        labels=labels,  # shifted to decoder inputs by the model
    )
    return answer_logp(output.logits, labels).view(2, len(rows))


def _batches(rows: int, settings: DpoSettings, seed: int) -> Iterator[list[list[int]]]:
    """Endless optimiser steps, each a list of batches of rows; every epoch in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(rows, generator=generator).tolist()
        parts = [order[at : at + settings.batch] for at in range(0, rows, settings.batch)]
        for at in range(0, len(parts), settings.accumulation):
            yield parts[at : at + settings.accumulation]


def _pieces(parts: list[list[int]], at_once: int) -> Iterator[tuple[list[int], float]]:
    """Rows that are in memory together, and their weight in the loss of the optimiser step.

    A step's loss is the mean over all its pairs, however they are divided.
    """
    pairs = sum(map(len, parts))
    for part in parts:
        for at in range(0, len(part), at_once):
            piece = part[at : at + at_once]
            yield piece, len(piece) / pairs


def _counts(rows: Sequence[PairRow]) -> tuple[int, int]:
    """Tokens with a loss and tokens read, one encoder pass per pair."""
    answers = sum(len(row.chosen) + len(row.rejected) for row in rows)
    return answers, answers + sum(len(row.prompt) for row in rows)
