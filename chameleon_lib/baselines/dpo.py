"""DPO on the method's own pairs: prefer y^P to y^N under the plain prompt (A.5, figure 4).

The paper gives optimiser and adapter, but neither beta nor what the pairs are. Ours are those the
fitted edit learns from: the plain prompt, the personalised answer to prefer, the neutral one to
leave, identical answers dropped. No gold label is seen.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.baselines.lora import adapter_of, copy_to_adapt, lora_config, silence_dropout
from chameleon_lib.baselines.options import drawn, out_of_time
from chameleon_lib.baselines.rows import PairRow, pair_rows
from chameleon_lib.baselines.settings import DpoSettings
from chameleon_lib.baselines.tuning import TrainLog, Tuned
from chameleon_lib.baselines.undisturbed import undisturbed
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.errors import UserError

_REFERENCE_ROWS = 32


def train_dpo(
    backbone: HFBackbone,
    contrasts: Sequence[Contrast],
    settings: DpoSettings,
    *,
    seed: int,
    max_steps: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> Tuned:
    """Tune a LoRA adapter on a copy of the backbone by the DPO loss.

    Decoders go through TRL's ``DPOTrainer``, encoder-decoders, which it cannot train, through a
    loop of our own with the same loss. The reference is the given backbone, scored once per pair
    by the kit itself in evaluation mode. The backbone's own dropout is off, the adapter's is on.

    Args:
        backbone: Policy to start from and reference; it is not touched.
        contrasts: All queries; those without a rejected answer are ties and are dropped. The
            settings' ``share`` counts queries before that.
        settings: The recipe.
        seed: Seeds the draw of queries, the adapter, dropout and the order of the pairs.
        max_steps: Optimiser steps, instead of the settings'.
        stop: Asked after every step whether time is up; the schedule stays that of all steps.

    Raises:
        UserError: No pair with two different answers, or one that does not fit the context.
    """
    from chameleon_lib.baselines import trainers

    start = time.perf_counter()
    order = drawn("dpo", len(contrasts), settings.share, seed)
    pairs = [contrasts[at] for at in order if contrasts[at].rejected is not None]
    if not pairs:
        raise UserError("DPO needs at least one pair with two different answers; got none.")
    rows = pair_rows(backbone, pairs)
    reference = reference_scores(backbone, pairs, settings)
    steps = settings.max_steps if max_steps is None else max_steps
    model = copy_to_adapt(backbone.model)
    silence_dropout(model)
    adapter, notes = lora_config(backbone, settings)
    with undisturbed(backbone.device) as folder:
        torch.manual_seed(seed)
        label = f"{backbone.name} DPO"
        if backbone.family == "decoder":
            common = trainers.arguments(settings, steps, seed, folder, backbone.device)
            trainer = decoder_trainer(backbone, model, rows, reference, settings, common, adapter)
            meter = trainers.run(trainer, label, stop)
            tuned = trainer.model
        else:
            from chameleon_lib.baselines.dpo_loop import train_pairs

            tuned, meter = train_pairs(
                backbone, model, rows, reference, settings, adapter, seed, steps, label, stop
            )
        trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        tensors, shape = adapter_of(tuned)
    if settings.quantisation == "none":
        notes += ("quantisation none (the paper: bnb.nf4)",)
    notes += out_of_time(len(meter.loss), meter.planned)
    log = TrainLog(
        method="dpo",
        uses_gold=settings.pairs == "gold",
        params="lora",
        trainable_params=trainable,
        queries=len(order),
        ties=len(order) - len(pairs),
        rows=len(rows),
        mix="none",
        mix_rows=0,
        steps=len(meter.loss),
        samples=meter.samples,
        trained_tokens=meter.trained,
        forward_tokens=meter.forward + _reference_tokens(rows),
        backward_tokens=meter.forward,
        loss=tuple(meter.loss),
        assumed=settings.assumptions(),
        departures=settings.departures(),
        notes=notes,
        seconds=time.perf_counter() - start,
    )
    return Tuned(tensors, shape, log)


def reference_scores(
    backbone: HFBackbone, pairs: Sequence[Contrast], settings: DpoSettings
) -> Tensor:
    """``log p`` of chosen and rejected answers under the frozen backbone, ``(n, 2)``, nats."""
    parts = []
    for start in range(0, len(pairs), _REFERENCE_ROWS):
        part = pairs[start : start + _REFERENCE_ROWS]
        with torch.no_grad(), settings.autocast(backbone.device):
            prepared = backbone.prepare([pair.prompt for pair in part])
            scores = [
                backbone.score(prepared, [pair.chosen for pair in part]),
                backbone.score(prepared, [str(pair.rejected) for pair in part]),
            ]
        parts.append(torch.stack(scores, dim=1).cpu())  # (b, 2)
    return torch.cat(parts)


def _reference_tokens(rows: Sequence[PairRow]) -> int:
    # The prompt is read once for both answers.
    return sum(len(row.prompt) + len(row.chosen) + len(row.rejected) for row in rows)


def decoder_trainer(
    backbone: HFBackbone,
    model: Any,
    rows: Sequence[PairRow],
    reference: Tensor,
    settings: DpoSettings,
    common: dict[str, Any],
    adapter: Any,
) -> Any:
    """TRL's trainer over our rows and reference scores ``(n, 2)``."""
    from datasets import Dataset
    from trl import DPOConfig

    from chameleon_lib.baselines.trainers import Dpo

    trainer: Any = Dpo(
        model=model,
        args=DPOConfig(
            **common,
            beta=settings.beta,
            loss_type=["sigmoid"],
            max_length=None,  # lengths are checked; the default would cut answers silently
            disable_dropout=False,  # True would set the adapter's dropout to zero, too
        ),
        train_dataset=Dataset.from_dict(
            {
                "prompt_ids": [row.prompt for row in rows],
                "chosen_ids": [row.chosen for row in rows],
                "rejected_ids": [row.rejected for row in rows],
                "ref_chosen_logps": reference[:, 0].tolist(),
                "ref_rejected_logps": reference[:, 1].tolist(),
            }
        ),
        processing_class=copy.deepcopy(backbone.codec.tokenizer),
        peft_config=adapter,
    )
    trainer.precompute_ref_logps = True  # the columns above are the reference
    if len(trainer.train_dataset) != len(rows):
        raise RuntimeError("the library dropped pairs; rows in and rows out differ")
    return trainer
