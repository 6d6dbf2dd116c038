"""Settings of the trained rivals that say where each value comes from; defaults are A.5's."""

from __future__ import annotations

import math
import random
import typing
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from chameleon_lib.core.backbone import Family
from chameleon_lib.core.checked import CheckedSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile


def _knob(source: str) -> Callable[..., Any]:
    """A kind of field; its bounds are those of `core.checked`."""

    def knob(default: Any, help: str, **bounds: Any) -> Any:
        return field(default=default, metadata={"source": source, "help": help, **bounds})

    return knob


stated = _knob("paper")  # the default stands in the paper (A.5)
assumed = _knob("assumed")  # the paper is silent; the help says why this default was taken
ours = _knob("ours")  # sizes a run of ours and is no claim about the paper
fitting = _knob("memory")  # fits a training into memory: it changes rounding, nothing else


@dataclass(frozen=True, kw_only=True)
class TunerSettings(CheckedSettings):
    """What every trained rival can be told."""

    share: float = ours(
        1.0, "Share of the training queries that is used, drawn by the seed; A.5 ties shares to "
        "time budgets.", above=0, at_most=1)
    epochs: int = stated(1, "Passes over the rows.", at_least=1)
    max_steps: int | None = ours(
        None, "Optimiser steps; None means the steps of `epochs`. The schedule is sized to it.",
        at_least=1)
    weight_decay: float = assumed(0.0, "Not given; the library's default.", at_least=0)
    precision: str = stated(
        "bf16", "bf16 (mixed) or fp32. The paper states bfloat16 for DPO; ALOE's code uses it.",
        options=("bf16", "fp32"))
    lora_r: int = stated(
        256, "Rank; capped at half the model's width, where it is more than the matrices hold.",
        at_least=1)
    lora_alpha: float = stated(128.0, "Scale is alpha / r.", above=0)
    lora_dropout: float = stated(0.05, "Dropout before the adapter.", at_least=0, below=1)
    target_modules: str = assumed(
        "all-linear", "Adapted modules are not given; all linear ones but the head. Or module "
        "names separated by commas.")
    micro_batch: int = fitting(
        0, "Rows of `batch` that are in memory at once; their gradients add up to those of the "
        "whole batch. Must divide it; 0 for all rows.", at_least=0)
    checkpointing: bool = fitting(
        False, "Keep only the inputs of the layers for the way back and compute the rest again.")
    if typing.TYPE_CHECKING:  # fields of every subclass, with the paper's own numbers
        batch: int
        accumulation: int
        lr: float
        schedule: str
        warmup: float
        max_grad_norm: float

    def _check_combinations(self) -> None:
        if self.micro_batch and self.batch % self.micro_batch:
            raise UserError(
                f"micro_batch is {self.micro_batch}, which does not divide batch {self.batch}; "
                "give a divisor, or 0 for all rows at once."
            )

    @property
    def at_once(self) -> int:
        """Rows in memory at once."""
        return self.micro_batch or self.batch

    def steps(self, rows: int) -> int:
        """Optimiser steps of a training, the last partial one of an epoch counted."""
        return self.max_steps or math.ceil(rows / (self.batch * self.accumulation)) * self.epochs

    def autocast(self, device: torch.device) -> Any:
        """The context of a forward pass in the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    def assumptions(self) -> tuple[str, ...]:
        """``name=value`` of every value that the paper does not give."""
        return self._named(lambda item, _: item.metadata["source"] == "assumed")

    def departures(self) -> tuple[str, ...]:
        """``name=value`` of every value that differs from the default, which is the paper's.

        What only fits the training into memory is no departure, nor is a value of the paper's own
        that the default could not take (``paper`` of a field's metadata).
        """
        return self._named(
            lambda item, value: value not in (item.default, item.metadata.get("paper"))
            and item.metadata["source"] != "memory"
        )

    def _named(self, wanted: Callable[[Any, Any], bool]) -> tuple[str, ...]:
        values = [(item, getattr(self, item.name)) for item in fields(self)]
        return tuple(f"{item.name}={value}" for item, value in values if wanted(item, value))


def in_memory(run: RunProfile) -> dict[str, Any]:
    """What of a run profile fits a training into memory, and changes no hyperparameter."""
    return {"micro_batch": run.micro_batch, "checkpointing": run.checkpointing}


def drawn(method: str, n: int, share: float, seed: int) -> list[int]:
    """Which of ``n`` training queries a method is given, in the order in which it gets them.

    Args:
        method: ``aloe`` or ``dpo``; each has draws of its own.
        n: Training queries.
        share: Share that is used; at least one query if there is any.
        seed: Seed of the training.
    """
    taken = max(1, round(share * n)) if n else 0
    return random.Random(f"{method}/{seed}").sample(range(n), taken)


_SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class AloeSettings(TunerSettings):
    """ALOE's recipe on LaMP: supervised fine-tuning on gold answers, mixed with other dialogues.

    The row sees gold labels of train users, which CHAMELEON does not. Each field's metadata tells
    whether the paper gives it.
    """

    params: str = assumed(
        "full", "A.5 is silent; ALOE's code trains every weight.", options=("full", "lora"))
    history: str = assumed(
        "a3", "Whether prompts show the history is not stated; a3 is the plain prompt of A.3.",
        options=("a3", "none"))
    loss_on: str = assumed(
        "full", "Not stated; ALOE's code takes every token, the prompt's too. No meaning for an "
        "encoder-decoder, whose loss is on the answer.", options=("full", "assistant"))
    mix: str = stated(
        "codeact", "Dialogues mixed in. codeact needs a local copy in mix_path; standin is a small "
        "set of our own that keeps the proportions alive and does not imitate CodeAct.",
        options=("codeact", "standin", "none"))
    mix_path: str = ours(
        "", "Local file of CodeActInstruct (.parquet, .json or .jsonl).", may_be_empty=True)
    mix_ratio: str = assumed(
        "fraction", "'A relatively equal percentage': the same share of the dialogues as of the "
        "queries, or as many dialogues as queries.", options=("fraction", "count"))
    packing: str = assumed(
        "wrapped", "A.5 gives only the length; ALOE's code packs. wrapped: concatenate and cut "
        "anywhere, documents see each other (nearest to the library of that time); bfd: whole "
        "documents, kept apart; off. No meaning for an encoder-decoder.",
        options=("wrapped", "bfd", "off"))
    max_length: int = stated(
        8192, "Tokens of a packed row; capped at the model's context.", at_least=8)
    batch: int = stated(1, "Rows per device.", at_least=1)
    accumulation: int = stated(48, "Batches per optimiser step.", at_least=1)
    lr: float = stated(1e-5, "Peak learning rate.", above=0)
    schedule: str = assumed("linear", "Not given; the library's default.", options=_SCHEDULES)
    warmup: float = assumed(
        0.0, "Share of the steps; not given, the library's default.", at_least=0, below=1)
    max_grad_norm: float = assumed(1.0, "Not given; the library's default.", above=0)

    def _check_combinations(self) -> None:
        super()._check_combinations()
        if self.mix == "codeact" and not self.mix_path:
            raise UserError(
                "mix codeact needs a local copy of CodeActInstruct: name its file in mix_path, or "
                "set mix to standin (a small set of the kit's own) or none."
            )
        if self.mix != "codeact" and self.mix_path:
            raise UserError(f"mix_path belongs to mix codeact, not to {self.mix}.")

    @classmethod
    def demo(cls, family: Family) -> AloeSettings:
        """The recipe at the scale of the embedded models.

        Rates and steps were chosen on train and dev users of the embedded world alone
        (``python -m workshop.candidates``). The loss is on answers: on every
        token, as ALOE's code has it, decoders do not reliably gain on LaMP-3.
        """
        return cls(
            mix="standin",
            packing="off",
            loss_on="assistant",
            precision="fp32",
            batch=8,
            accumulation=2,
            epochs=_DEMO_ALOE_EPOCHS[family],
            lr=1e-3,
        )


@dataclass(frozen=True, kw_only=True)
class DpoSettings(TunerSettings):
    """Preference tuning on self-generated pairs: chosen y^P, rejected y^N, LoRA on the backbone.

    Each field's metadata tells whether the paper gives it.
    """

    pairs: str = assumed(
        "self", "The pairs are not described; the method's own, identical answers dropped. gold "
        "declares that chosen answers are gold ones, and the row then counts as having seen them.",
        options=("self", "gold"))
    beta: float = assumed(0.1, "Not given; the library's default.", above=0)
    quantisation: str = stated(
        "none", "How the backbone was loaded, which is what the adapter is trained on. The paper "
        "has bnb.nf4, of the package bitsandbytes.", options=("none", "nf4"), paper="nf4")
    batch: int = stated(16, "Pairs per device.", at_least=1)
    accumulation: int = stated(1, "Batches per optimiser step.", at_least=1)
    lr: float = stated(5e-5, "Peak learning rate.", above=0)
    schedule: str = stated("cosine", "Learning-rate schedule.", options=_SCHEDULES)
    warmup: float = stated(0.1, "Share of the steps.", at_least=0, below=1)
    max_grad_norm: float = stated(0.3, "Gradients are clipped to this norm.", above=0)

    @classmethod
    def demo(cls) -> DpoSettings:
        """The recipe at the scale of the embedded models.

        Rates and steps were chosen on train and dev users of the embedded world alone
        (``python -m workshop.candidates``).
        """
        return cls(
            precision="fp32",
            batch=4,
            lora_r=16,
            lora_alpha=8.0,
            lr=2e-3,
        )


# At this rate two passes are not enough for decoders to reliably learn LaMP-3.
_DEMO_ALOE_EPOCHS: dict[Family, int] = {"decoder": 3, "encoder-decoder": 2}
