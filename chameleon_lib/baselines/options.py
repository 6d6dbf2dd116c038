"""Settings of the trained baselines that say where each value comes from."""

from __future__ import annotations

import math
import random
import types
import typing
from contextlib import nullcontext
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Self

import torch

from chameleon_lib.errors import UserError


def _knob(default: Any, source: str, help: str, bounds: dict[str, Any]) -> Any:
    return field(default=default, metadata={"source": source, "help": help, **bounds})


def stated(default: Any, help: str, **bounds: Any) -> Any:
    """A field whose default stands in the paper (A.5); ``bounds`` as in :func:`_checked`."""
    return _knob(default, "paper", help, bounds)


def assumed(default: Any, help: str, **bounds: Any) -> Any:
    """A field the paper is silent about; ``help`` says why this default was taken."""
    return _knob(default, "assumed", help, bounds)


def ours(default: Any, help: str, **bounds: Any) -> Any:
    """A field that sizes a run of ours and is no claim about the paper."""
    return _knob(default, "ours", help, bounds)


def fitting(default: Any, help: str, **bounds: Any) -> Any:
    """A field that fits a training into a machine's memory: it changes rounding, nothing else."""
    return _knob(default, "memory", help, bounds)


@dataclass(frozen=True, kw_only=True)
class TunerSettings:
    """What every trained baseline can be told.

    Raises:
        UserError: A value of the wrong type, outside its options or out of bounds.
    """

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
    if typing.TYPE_CHECKING:
        batch: int  # fields of every subclass, with the paper's own numbers
        accumulation: int

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in fields(self):
            value = _checked(item, getattr(self, item.name), hints[item.name])
            object.__setattr__(self, item.name, value)
        if self.micro_batch and self.batch % self.micro_batch:
            raise UserError(
                f"micro_batch is {self.micro_batch}, which does not divide batch {self.batch}; "
                "give a divisor, or 0 for all rows at once."
            )
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Hook of the subclasses: contradictions raise a UserError."""

    def with_(self, **changes: Any) -> Self:
        """A copy with these fields changed and everything checked again."""
        known = {item.name for item in fields(self)}
        for name in changes:
            if name not in known:
                raise UserError(f"{type(self).__name__} has no field {name!r}.")
        return replace(self, **changes)

    @property
    def at_once(self) -> int:
        """Rows in memory at once."""
        return self.micro_batch or self.batch

    def autocast(self, device: torch.device) -> Any:
        """The context of a forward pass in the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    def canonical(self) -> dict[str, Any]:
        """All fields by name, JSON-able; equal settings give equal dicts."""
        return {name: getattr(self, name) for name in sorted(item.name for item in fields(self))}

    def assumptions(self) -> tuple[str, ...]:
        """``name=value`` of every value that the paper does not give."""
        return tuple(
            f"{item.name}={getattr(self, item.name)}"
            for item in fields(self)
            if item.metadata["source"] == "assumed"
        )

    def departures(self) -> tuple[str, ...]:
        """``name=value`` of every value that differs from the default, which is the paper's.

        What only fits the training into memory is no departure, nor is a value of the paper's own
        that the default could not take (``paper`` of a field's metadata).
        """
        return tuple(
            f"{item.name}={getattr(self, item.name)}"
            for item in fields(self)
            if getattr(self, item.name) not in (item.default, item.metadata.get("paper"))
            and item.metadata["source"] != "memory"
        )


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


def out_of_time(steps: int, planned: int) -> tuple[str, ...]:
    """The note of a training that its clock has stopped, if it has."""
    return () if steps >= planned else (f"stopped by the clock after {steps} of {planned} steps",)


def _checked(item: Field[Any], value: Any, kind: Any) -> Any:
    """The value in its field's type, or a UserError that names the field."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 must give the same canonical form
    if type(value) is not kind:
        # A text here is often YAML's 5e-4, which its reader takes for a string.
        raise UserError(f"{item.name} must be {kind.__name__}, not {value!r}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{item.name} is {value}; give a finite number.")
    bounds = item.metadata
    if "options" in bounds and value not in bounds["options"]:
        known = ", ".join(bounds["options"])
        raise UserError(f"{item.name} is {value!r}; choose one of {known}.")
    for bound, broken, words in (
        ("at_least", lambda limit: value < limit, "at least"),
        ("at_most", lambda limit: value > limit, "at most"),
        ("above", lambda limit: value <= limit, "above"),
        ("below", lambda limit: value >= limit, "below"),
    ):
        if bound in bounds and broken(bounds[bound]):
            raise UserError(f"{item.name} is {value}; it must be {words} {bounds[bound]}.")
    return value
