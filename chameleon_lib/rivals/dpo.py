"""DPO on the method's own pairs: prefer y^P to y^N under the plain prompt (A.5, figure 4).

The paper gives optimiser and adapter, but neither beta nor what the pairs are. Ours are those the
fitted edit learns from: the plain prompt, the personalised answer to prefer, the neutral one to
leave, identical answers dropped. No gold label is seen. With log p summed over the tokens of an
answer and its EOS,

    h    = beta * [ (log pi(c|x) - log ref(c|x)) - (log pi(r|x) - log ref(r|x)) ]
    loss = mean( -log sigmoid(h) )
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batches import pad
from chameleon_lib.core.backbone import Family
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import Progress
from chameleon_lib.rivals.registry import Lesson, register
from chameleon_lib.rivals.rows import IGNORED, PairRow, answer_logp, pair_rows
from chameleon_lib.rivals.settings import DpoSettings, drawn, in_memory
from chameleon_lib.rivals.tuned import (
    REENTRANT,
    Meter,
    Tuned,
    adapter_of,
    copy_to_adapt,
    lora_config,
    silence_dropout,
    train_log,
    undisturbed,
)

_REFERENCE_ROWS = 32


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """The loss of a batch.

    Args:
        chosen: ``(B,)`` log-probabilities of the chosen answers under the policy, nats.
        rejected: ``(B,)`` those of the rejected answers.
        ref_chosen: ``(B,)`` the same under the frozen reference.
        ref_rejected: ``(B,)`` likewise.
        beta: Strength of the tie to the reference.

    Returns:
        Scalar, nats.
    """
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)  # (B,)
    return -logsigmoid(beta * margin).mean()


def train_dpo(
    backbone: HFBackbone,
    contrasts: Sequence[Contrast],
    settings: DpoSettings,
    *,
    seed: int,
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

    Raises:
        UserError: No pair with two different answers, or one that does not fit the context.
    """
    from chameleon_lib.rivals import trainers

    start = time.perf_counter()
    order = drawn("dpo", len(contrasts), settings.share, seed)
    pairs = [contrasts[at] for at in order if contrasts[at].rejected is not None]
    if not pairs:
        raise UserError("DPO needs at least one pair with two different answers; got none.")
    rows = pair_rows(backbone, pairs)
    reference = reference_scores(backbone, pairs, settings)
    model = copy_to_adapt(backbone.model)
    silence_dropout(model)
    adapter, notes = lora_config(backbone, settings)
    with undisturbed(backbone.device) as folder:
        torch.manual_seed(seed)
        label = f"{backbone.name} DPO"
        if backbone.family == "decoder":
            common = trainers.arguments(settings, seed, folder, backbone.device)
            trainer = decoder_trainer(backbone, model, rows, reference, settings, common, adapter)
            meter = trainers.run(trainer, label, settings)
            tuned = trainer.model
        else:
            tuned, meter = train_pairs(
                backbone, model, rows, reference, settings, adapter, seed, label
            )
        trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        tensors, shape = adapter_of(tuned)
    if settings.quantisation == "none":
        notes += ("quantisation none (the paper: bnb.nf4)",)
    log = train_log(
        settings,
        meter,
        start,
        notes=notes,
        # The prompt is read once for both answers.
        unlearned=sum(len(row.prompt) + len(row.chosen) + len(row.rejected) for row in rows),
        method="dpo",
        uses_gold=settings.pairs == "gold",
        params="lora",
        trainable_params=trainable,
        queries=len(order),
        ties=len(order) - len(pairs),
        rows=len(rows),
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

    from chameleon_lib.rivals.trainers import PairTrainer

    trainer: Any = PairTrainer(
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


def train_pairs(
    backbone: HFBackbone,
    model: Any,
    rows: Sequence[PairRow],
    reference: Tensor,
    settings: DpoSettings,
    adapter: Any,
    seed: int,
    label: str,
) -> tuple[Any, Meter]:
    """Tune an adapter on an encoder-decoder: both answers of a pair share one encoder pass.

    ``model`` is a copy whose own dropout is silenced, ``reference`` ``(n, 2)`` the frozen
    log-probabilities in nats; ``seed`` orders the pairs, the adapter takes torch's global state.
    """
    from peft import get_peft_model
    from transformers import get_scheduler

    if settings.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(REENTRANT))
    tuned = get_peft_model(model, adapter)
    tuned.train()  # after silencing, the adapter's is the only dropout left
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=settings.weight_decay)
    steps = settings.steps(len(rows))
    warmup = math.ceil(steps * settings.warmup)  # rounded up, as the library does
    schedule = get_scheduler(settings.schedule, optimizer, warmup, steps)
    meter = Meter()
    with Progress(label, steps) as progress:
        for parts in islice(_batches(len(rows), settings, seed), steps):
            pairs = sum(map(len, parts))
            for part in _pieces(parts, settings.at_once):
                chosen = [rows[at] for at in part]
                with settings.autocast(backbone.device):
                    policy = pair_logp(backbone, tuned.get_base_model(), chosen)  # (2, b)
                ref = reference[part].T.to(policy.device)  # (2, b)
                loss = dpo_loss(policy[0], policy[1], ref[0], ref[1], settings.beta)
                loss = loss * (len(part) / pairs)  # a step's loss is the mean over all its pairs
                loss.backward()
                meter.batch(float(loss.detach()), len(chosen), *_counts(chosen))
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            meter.step()
            progress.advance()
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


def _pieces(parts: list[list[int]], at_once: int) -> Iterator[list[int]]:
    """Rows that are in memory together."""
    for part in parts:
        for at in range(0, len(part), at_once):
            yield part[at : at + at_once]


def _counts(rows: Sequence[PairRow]) -> tuple[int, int]:
    """Tokens with a loss and tokens read, one encoder pass per pair."""
    answers = sum(len(row.chosen) + len(row.rejected) for row in rows)
    return answers, answers + sum(len(row.prompt) for row in rows)


@dataclass(frozen=True)
class Dpo:
    """DPO as a rival: exactly the pairs that the edits are made from."""

    id: str = "dpo"
    title: str = "DPO, LoRA on the same pairs"
    paper: str = ""
    uses_gold: bool = False

    def settings(
        self,
        run: RunProfile,
        embedded: bool,
        family: Family,  # noqa: ARG002  (one recipe for both)
        **changes: Any,
    ) -> DpoSettings:
        """The paper's recipe, or the embedded models' own."""
        if embedded:
            return DpoSettings.demo().with_(**changes)
        size = {**in_memory(run), "quantisation": run.quantization}
        return DpoSettings(**{**size, **changes})

    def prompt(self, settings: DpoSettings) -> str:  # noqa: ARG002  (pairs have one prompt)
        """The plain prompt of A.3, as the pairs have it."""
        return "instruct"

    def material(self, lesson: Lesson, settings: DpoSettings) -> dict[str, Any]:  # noqa: ARG002
        """The contrasts, ties included."""
        return {"contrasts": list(lesson.contrasts)}

    def fit(
        self, backbone: HFBackbone, lesson: Lesson, settings: DpoSettings, *, seed: int
    ) -> Tuned:
        """Train on the lesson's contrasts."""
        return train_dpo(backbone, lesson.contrasts, settings, seed=seed)


register(Dpo())
