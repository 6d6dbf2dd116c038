"""ALOE's fine-tuning on LaMP: gold answers of train users, mixed with other dialogues (A.5).

Only ALOE's supervised recipe; its conversations and its judge are not part of the comparison. The
row sees gold labels, which CHAMELEON does not.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batches import pad
from chameleon_lib.backbones.families import model_family
from chameleon_lib.core.backbone import Family
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.rivals.registry import Lesson, register
from chameleon_lib.rivals.rows import (
    IGNORED,
    AnswerRow,
    GoldExample,
    answer_rows,
    choose_mix,
    dialogue_rows,
    gold_examples,
    load_mix,
)
from chameleon_lib.rivals.settings import AloeSettings, drawn, in_memory
from chameleon_lib.rivals.tuned import (
    Tuned,
    adapter_of,
    changed_weights,
    copy_to_adapt,
    lora_config,
    train_log,
    undisturbed,
)


def train_aloe(
    backbone: HFBackbone,
    examples: Sequence[GoldExample],
    settings: AloeSettings,
    *,
    seed: int,
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

    Raises:
        UserError: No example, or one that does not fit the model's context.
    """
    from chameleon_lib.rivals import trainers

    if not examples:
        raise UserError("ALOE needs at least one gold example of a train user; got none.")
    start = time.perf_counter()
    order = drawn("aloe", len(examples), settings.share, seed)
    rows = answer_rows(backbone, [examples[at] for at in order])
    limit = settings.max_length
    notes: tuple[str, ...] = ()
    if backbone.context_limit is not None and backbone.context_limit < limit:
        limit = backbone.context_limit
        notes = (f"rows of at most {limit} tokens, the model's context",)
    mixed, dropped = _mix_rows(backbone, settings, len(order), seed, limit)
    notes += dropped
    together = [*rows, *mixed]
    # Dialogues must not all come last, neither in packed rows nor for whoever reads the loss.
    random.Random(f"order/{seed}").shuffle(together)
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
        common = trainers.arguments(settings, seed, folder, backbone.device)
        trainer = (
            decoder_trainer(backbone, model, together, settings, limit, common, adapter)
            if backbone.family == "decoder"
            else encdec_trainer(backbone, model, together, common, adapter)
        )
        meter = trainers.run(trainer, f"{backbone.name} ALOE", settings)
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
    log = train_log(
        settings,
        meter,
        start,
        notes=notes,
        method="aloe",
        uses_gold=True,
        params=settings.params,
        trainable_params=trainable,
        queries=len(order),
        rows=len(rows),
        mix=settings.mix if mixed else "none",
        mix_rows=len(mixed),
        samples=round(meter.samples * len(together) / _countable(trainer, together)),
    )
    return Tuned(tensors, shape, log)


def _countable(trainer: Any, rows: Sequence[AnswerRow]) -> int:
    """Rows as the trainer counts them: cut rows no longer hold whole documents."""
    cut = getattr(trainer.args, "packing", False) and trainer.args.packing_strategy == "wrapped"
    return len(trainer.train_dataset) if cut else len(rows)


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


def decoder_trainer(
    backbone: HFBackbone,
    model: Any,
    rows: Sequence[AnswerRow],
    settings: AloeSettings,
    limit: int,
    common: dict[str, Any],
    adapter: Any,
) -> Any:
    """TRL's trainer of ``model`` over token rows, packed in their order.

    ``common`` are `trainers.arguments`; without PEFT's ``adapter`` all weights are trained.

    Raises:
        UserError: A row is longer than the limit, or a family cannot be packed by ``bfd``.
    """
    from datasets import Dataset
    from trl import SFTConfig

    from chameleon_lib.rivals.trainers import RowTrainer

    hidden = settings.loss_on == "assistant"
    ids = [[*row.prompt, *row.answer] for row in rows]
    labels = [
        [*([IGNORED] * len(row.prompt) if hidden else row.prompt), *row.answer] for row in rows
    ]
    packing: dict[str, Any] = {"packing": True, "packing_strategy": settings.packing}
    if settings.packing == "off":
        packing = {"packing": False}
    kind = backbone.model.config.model_type
    if settings.packing == "bfd" and not model_family(kind).packs:
        raise UserError(
            f"packing bfd is not offered for {kind}, whose attention would mix the packed rows; "
            "set packing to off or wrapped."
        )
    longest = max(len(row) for row in ids)
    if settings.packing != "wrapped" and longest > limit:
        raise UserError(
            f"A training row has {longest} tokens, but rows are limited to {limit}; raise "
            "max_length or lower selection_k."
        )
    # Unpacked rows were checked above; given a limit, the library cuts or drops them silently.
    packing["max_length"] = None if settings.packing == "off" else limit
    trainer: Any = RowTrainer(
        model=model,
        args=SFTConfig(**common, **packing),
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": labels}),
        processing_class=copy.deepcopy(backbone.codec.tokenizer),
        peft_config=adapter,
    )
    tokens = sum(len(row) for row in trainer.train_dataset["input_ids"])
    if tokens != sum(len(row) for row in ids):
        raise RuntimeError("packing lost tokens; rows in and rows out differ")
    return trainer


def encdec_trainer(
    backbone: HFBackbone,
    model: Any,
    rows: Sequence[AnswerRow],
    common: dict[str, Any],
    adapter: Any,
) -> Any:
    """The trainer of transformers: prompts in the encoder, answers as labels; arguments as above.
    """
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import Seq2SeqTrainingArguments

    from chameleon_lib.rivals.trainers import Seq2SeqSft

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        cpu = torch.device("cpu")
        prompts = [row["input_ids"] for row in batch]
        ids, mask = pad(prompts, value=backbone.codec.pad_id, side="right", device=cpu)
        labels, _ = pad([row["labels"] for row in batch], value=IGNORED, side="right", device=cpu)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return Seq2SeqSft(
        model=model if adapter is None else get_peft_model(model, adapter),
        args=Seq2SeqTrainingArguments(**common, remove_unused_columns=False),
        train_dataset=Dataset.from_dict(
            {"input_ids": [row.prompt for row in rows], "labels": [row.answer for row in rows]}
        ),
        data_collator=collate,
    )


@dataclass(frozen=True)
class Aloe:
    """ALOE as a rival: gold answers of the group, asked as it was trained."""

    id: str = "aloe"
    title: str = "ALOE (trained on gold answers)"
    paper: str = "ALOE"
    uses_gold: bool = True

    def settings(
        self, run: RunProfile, embedded: bool, family: Family, **changes: Any
    ) -> AloeSettings:
        """The paper's recipe, or the embedded models' own.

        The mixed-in dialogues are those of the file that ``CHAMELEON_CODEACT`` names. Without one
        the small set of our own takes their place, and the log of the training says so.
        """
        if embedded:
            return AloeSettings.demo(family).with_(**changes)
        path = os.environ.get("CHAMELEON_CODEACT", "")
        mix = {"mix": "codeact", "mix_path": path} if path else {"mix": "standin"}
        size = {**in_memory(run), "params": run.aloe_params}
        return AloeSettings(**{**mix, **size, **changes})

    def prompt(self, settings: AloeSettings) -> str:
        """The plain prompt of A.3, or the one without history."""
        return "instruct" if settings.history == "a3" else "unseen"

    def material(self, lesson: Lesson, settings: AloeSettings) -> dict[str, Any]:
        """Gold examples and all dialogues that may be mixed in."""
        return {
            "examples": [asdict(example) for example in self._examples(lesson, settings)],
            "mix": [asdict(dialogue) for dialogue in load_mix(settings)],
        }

    def fit(
        self, backbone: HFBackbone, lesson: Lesson, settings: AloeSettings, *, seed: int
    ) -> Tuned:
        """Train on the gold answers of the lesson's group."""
        return train_aloe(backbone, self._examples(lesson, settings), settings, seed=seed)

    def _examples(self, lesson: Lesson, settings: AloeSettings) -> list[GoldExample]:
        return gold_examples(lesson.group, lesson.settings, settings.history)


register(Aloe())
