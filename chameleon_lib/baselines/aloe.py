"""ALOE's fine-tuning on LaMP: gold answers of train users, mixed with other dialogues (A.5).

Only ALOE's supervised recipe; its conversations and its judge are not part of the comparison. The
row sees gold labels, which CHAMELEON does not.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.baselines.lora import adapter_of, changed_weights, copy_to_adapt, lora_config
from chameleon_lib.baselines.mix import choose_mix, load_mix
from chameleon_lib.baselines.options import drawn, out_of_time
from chameleon_lib.baselines.rows import AnswerRow, GoldExample, answer_rows, dialogue_rows
from chameleon_lib.baselines.settings import AloeSettings
from chameleon_lib.baselines.sft import decoder_trainer, encdec_trainer
from chameleon_lib.baselines.tuning import TrainLog, Tuned
from chameleon_lib.baselines.undisturbed import undisturbed
from chameleon_lib.errors import UserError


def train_aloe(
    backbone: HFBackbone,
    examples: Sequence[GoldExample],
    settings: AloeSettings,
    *,
    seed: int,
    max_steps: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> Tuned:
    """Fine-tune a copy of the backbone on gold answers.

    Decoders go through TRL's ``SFTTrainer``; encoder-decoders, which it cannot train, through
    ``Seq2SeqTrainer`` of transformers: the prompt in the encoder, the answer as labels, and
    neither ``loss_on`` nor ``packing`` has a meaning there.

    Args:
        backbone: Where the training starts; it is not touched.
        examples: Gold examples of train users (`gold_examples`).
        settings: The recipe.
        seed: Seeds the draw of examples and dialogues, adapters and the order of the rows.
        max_steps: Optimiser steps, instead of the settings'.
        stop: Asked after every step whether time is up; the schedule stays that of all steps.

    Raises:
        UserError: No example, or one that does not fit the model's context.
    """
    from chameleon_lib.baselines import trainers

    if not examples:
        raise UserError("ALOE needs at least one gold example of a train user; got none.")
    start = time.perf_counter()
    order = drawn("aloe", len(examples), settings.share, seed)
    rows = answer_rows(backbone, [examples[at] for at in order])
    limit, notes = _length_limit(backbone, settings)
    mixed, dropped = _mix_rows(backbone, settings, len(order), seed, limit)
    notes += dropped
    together = [*rows, *mixed]
    # Dialogues must not all come last, neither in packed rows nor for whoever reads the loss.
    random.Random(f"order/{seed}").shuffle(together)
    steps = settings.max_steps if max_steps is None else max_steps
    lora = settings.params == "lora"
    # Weights in 16 bits would round most updates away at such rates: a whole model is a copy in 32.
    model = copy_to_adapt(backbone.model) if lora else copy.deepcopy(backbone.model).float()
    with undisturbed(backbone.device) as folder:
        torch.manual_seed(seed)
        adapter = None
        if lora:
            adapter, more = lora_config(backbone, settings)
            notes += more
        else:
            model.requires_grad_(True)
            if backbone.model.dtype != torch.float32:
                loaded = str(backbone.model.dtype).removeprefix("torch.")
                notes += (f"trained as a float32 copy, rounded to {loaded} afterwards",)
        common = trainers.arguments(settings, steps, seed, folder, backbone.device)
        trainer = (
            decoder_trainer(backbone, model, together, settings, limit, common, adapter)
            if backbone.family == "decoder"
            else encdec_trainer(backbone, model, together, common, adapter)
        )
        meter = trainers.run(trainer, f"{backbone.name} ALOE", stop)
        trained = trainer.model
        trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
        if adapter is None:
            tensors, shape = changed_weights(trained, backbone.model), None
        else:
            tensors, shape = adapter_of(trained)
    if backbone.family != "decoder":
        notes += ("encoder-decoder: the loss is on the answer, rows are not packed",)
    if mixed:
        notes += (f"mix={settings.mix}",)
    notes += out_of_time(len(meter.loss), meter.planned)
    log = TrainLog(
        method="aloe",
        uses_gold=True,
        params=settings.params,
        trainable_params=trainable,
        queries=len(order),
        ties=0,
        rows=len(rows),
        mix=settings.mix if mixed else "none",
        mix_rows=len(mixed),
        steps=len(meter.loss),
        samples=round(meter.samples * len(together) / _countable(trainer, together)),
        trained_tokens=meter.trained,
        forward_tokens=meter.forward,
        backward_tokens=meter.forward,
        loss=tuple(meter.loss),
        assumed=settings.assumptions(),
        departures=settings.departures(),
        notes=notes,
        seconds=time.perf_counter() - start,
    )
    return Tuned(tensors, shape, log)


def _countable(trainer: Any, rows: Sequence[AnswerRow]) -> int:
    """Rows as the trainer counts them: cut rows no longer hold whole documents."""
    cut = getattr(trainer.args, "packing", False) and trainer.args.packing_strategy == "wrapped"
    return len(trainer.train_dataset) if cut else len(rows)


def _length_limit(
    backbone: HFBackbone, settings: AloeSettings
) -> tuple[int, tuple[str, ...]]:
    """Most tokens of a row, and a note if that is less than the settings ask."""
    context = backbone.context_limit
    if context is None or settings.max_length <= context:
        return settings.max_length, ()
    return context, (f"rows of at most {context} tokens, the model's context",)


def _mix_rows(
    backbone: HFBackbone, settings: AloeSettings, examples: int, seed: int, limit: int
) -> tuple[list[AnswerRow], tuple[str, ...]]:
    """Rows of the dialogues, and a note on those that had to stay out."""
    chosen = choose_mix(load_mix(settings), settings, examples, seed)
    rows = dialogue_rows(backbone.codec, chosen)
    if backbone.family == "decoder" and settings.packing == "wrapped":
        return rows, ()  # cut where a packed row ends, as everything is
    kept = [row for row in rows if len(row.prompt) + len(row.answer) <= limit]
    if len(kept) == len(rows):
        return rows, ()
    return kept, (f"{len(rows) - len(kept)} dialogues longer than {limit} tokens left out",)
