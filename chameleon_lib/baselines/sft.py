"""The supervised trainers of ALOE's fine-tuning: TRL's for decoders, transformers' for the rest."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batching import pad
from chameleon_lib.baselines.dpo_loss import IGNORED
from chameleon_lib.baselines.rows import AnswerRow
from chameleon_lib.baselines.settings import AloeSettings
from chameleon_lib.errors import UserError

# Families whose packed rows were found to give the logits of each row alone (a test repeats it).
BFD_FAMILIES = (
    "mistral", "mixtral", "llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "gemma3_text",
    "gpt2",
)  # fmt: skip


def decoder_trainer(
    backbone: HFBackbone,
    model: Any,
    rows: Sequence[AnswerRow],
    settings: AloeSettings,
    limit: int,
    common: dict[str, Any],
    adapter: Any,
) -> Any:
    """TRL's trainer over token rows.

    Args:
        backbone: Gives tokenizer and family.
        model: The copy that is trained.
        rows: Examples and dialogues, in the order in which they are packed.
        settings: ``loss_on`` and ``packing``.
        limit: Most tokens of a row.
        common: Arguments of `trainers.arguments`.
        adapter: PEFT's configuration, or None for all weights.

    Raises:
        UserError: A row is longer than the limit, or a family cannot be packed by ``bfd``.
    """
    from datasets import Dataset
    from trl import SFTConfig

    from chameleon_lib.baselines.trainers import Sft

    hidden = settings.loss_on == "assistant"
    ids = [[*row.prompt, *row.answer] for row in rows]
    labels = [
        [*([IGNORED] * len(row.prompt) if hidden else row.prompt), *row.answer] for row in rows
    ]
    packing: dict[str, Any] = {"packing": True, "packing_strategy": settings.packing}
    if settings.packing == "off":
        packing = {"packing": False}
    kind = backbone.model.config.model_type
    if settings.packing == "bfd" and kind not in BFD_FAMILIES:
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
    trainer: Any = Sft(
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

    from chameleon_lib.baselines.trainers import Seq2SeqSft

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
