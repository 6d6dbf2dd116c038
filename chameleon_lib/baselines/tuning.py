"""What a training leaves behind: the weights that changed and a log; and a backbone made of both.

A tuned model is an ordinary backbone of the kit, so every room that generates, scores or reads
activations takes it as it is. The backbone it came from is never touched.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.baselines.undisturbed import calm
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest


@dataclass(frozen=True)
class TrainLog:
    """What a training did. Two trainings with one seed give equal logs (seconds do not count).

    Attributes:
        method: ``aloe`` or ``dpo``.
        uses_gold: Whether gold answers were seen.
        params: ``full`` or ``lora``.
        trainable_params: Weights the optimiser moved.
        queries: Training queries drawn, before ties are dropped.
        ties: Queries dropped because both answers are the same.
        rows: Training rows made of the queries.
        mix: Where mixed-in dialogues come from; ``none`` if there are none.
        mix_rows: Their number.
        steps: Optimiser steps.
        samples: Rows seen, repeats counted; packed rows count as the rows they hold, on average.
        trained_tokens: Tokens that carried a loss, repeats counted.
        forward_tokens: Tokens sent through the model, the reference's pass included, padding not.
        backward_tokens: Those of them that a gradient came back through.
        loss: Mean loss per optimiser step, nats (per token for ALOE, per pair for DPO).
        assumed: ``name=value`` of settings on which the paper is silent.
        departures: ``name=value`` of settings that differ from the paper's.
        notes: What else a reader of the row must know.
        seconds: Wall-clock time of the training: its data, the reference and the steps.
    """

    method: str
    uses_gold: bool
    params: str
    trainable_params: int
    queries: int
    ties: int
    rows: int
    mix: str
    mix_rows: int
    steps: int
    samples: int
    trained_tokens: int
    forward_tokens: int
    backward_tokens: int
    loss: tuple[float, ...]
    assumed: tuple[str, ...]
    departures: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float = field(compare=False)


@dataclass(frozen=True, eq=False)
class Tuned:
    """A finished training.

    Attributes:
        tensors: Changed weights by parameter name, or the adapter's under PEFT's names.
        adapter: Shape of the adapter (r, lora_alpha, target_modules, task_type); None for full
            weights.
        log: What was done.
    """

    tensors: Mapping[str, Tensor]
    adapter: Mapping[str, Any] | None
    log: TrainLog

    def record(self) -> dict[str, Any]:
        """The value the artifact store keeps."""
        return {
            "json": {"adapter": self.adapter, "log": asdict(self.log)},
            "tensors": dict(self.tensors),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Tuned:
        """The training of a stored record."""
        log = {
            item.name: _frozen(record["json"]["log"][item.name]) for item in fields(TrainLog)
        }
        tensors = {name: torch.as_tensor(value) for name, value in record["tensors"].items()}
        return cls(tensors, record["json"]["adapter"], TrainLog(**log))

    def fingerprint(self) -> str:
        """SHA-256 of the weights alone."""
        return digest([self.adapter, dict(self.tensors)])


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def tuned_backbone(backbone: HFBackbone, tuned: Tuned) -> HFBackbone:
    """The backbone after a training; the given one stays as it is.

    Args:
        backbone: The backbone the training started from.
        tuned: The training.

    Raises:
        UserError: The weights do not belong to this backbone.
    """
    model = copy.deepcopy(backbone.model)
    if tuned.adapter is None:
        _load_weights(model, tuned.tensors, backbone.name)
    else:
        model = _merged(model, tuned.adapter, tuned.tensors, backbone.name)
    model.eval().requires_grad_(False)
    found = type(backbone)(
        model,
        backbone.codec,
        name=f"{backbone.name}+{tuned.log.method}",
        fingerprint=tuned_fingerprint(backbone.fingerprint, tuned),
    )
    found.prefix_bytes = backbone.prefix_bytes
    return found


def tuned_fingerprint(base: str, tuned: Tuned) -> str:
    """The fingerprint of a tuned backbone, from that of the backbone it started from."""
    return hashlib.sha256(f"{base} {tuned.fingerprint()}".encode()).hexdigest()


def _load_weights(model: Any, tensors: Mapping[str, Tensor], name: str) -> None:
    # Parameters by name, not a state dict: tied weights appear once and stay tied.
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, value in tensors.items():
            if key not in parameters or parameters[key].shape != value.shape:
                raise UserError(f"{name} has no weight {key} of shape {tuple(value.shape)}.")
            parameters[key].copy_(value)


def _merged(
    model: Any, adapter: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str
) -> Any:
    """The model with the adapter added to its weights, or beside them where they are packed."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    with calm(model.device):
        wrapped = get_peft_model(model, LoraConfig(**adapter))
        expected = {key for key in wrapped.state_dict() if "lora_" in key}
        problem: Any = set_peft_model_state_dict(wrapped, dict(tensors))
        if problem.unexpected_keys or len(expected) != len(tensors):
            raise UserError(f"The adapter was not trained on a model like {name}.")
        if getattr(model, "is_quantized", False):
            # Added to packed weights and rounded again, most of an adapter would be lost.
            return wrapped.get_base_model()
        return wrapped.merge_and_unload()
