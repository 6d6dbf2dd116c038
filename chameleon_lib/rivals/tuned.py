"""What a training leaves behind: the weights that changed and a log; and a backbone made of both.

A tuned model is an ordinary backbone of the kit, so every room that generates, scores or reads
activations takes it as it is. The backbone it came from is never touched.
"""

from __future__ import annotations

import copy
import hashlib
import random
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.rivals.settings import TunerSettings


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


@dataclass
class Meter:
    """Counts of a training; one entry of ``loss`` per optimiser step."""

    loss: list[float] = field(default_factory=list)
    samples: int = 0
    trained: int = 0
    forward: int = 0
    _open: float = 0.0

    def batch(self, loss: float, samples: int, trained: int, forward: int) -> None:
        """Adds a micro-batch, with its share of the step's loss."""
        self._open += loss
        self.samples += samples
        self.trained += trained
        self.forward += forward

    def step(self) -> None:
        """Closes an optimiser step."""
        self.loss.append(self._open)
        self._open = 0.0


def train_log(
    settings: TunerSettings,
    meter: Meter,
    start: float,
    *,
    notes: tuple[str, ...],
    unlearned: int = 0,
    **counts: Any,
) -> TrainLog:
    """The log of a training that began at ``start`` (seconds of the performance counter).

    ``unlearned`` tokens were read without a gradient; ``counts`` are the other fields of the log.
    """
    return TrainLog(
        **{"samples": meter.samples, "ties": 0, "mix": "none", "mix_rows": 0, **counts},
        steps=len(meter.loss),
        trained_tokens=meter.trained,
        forward_tokens=meter.forward + unlearned,
        backward_tokens=meter.forward,
        loss=tuple(meter.loss),
        assumed=settings.assumptions(),
        departures=settings.departures(),
        notes=notes,
        seconds=time.perf_counter() - start,
    )


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


# The older way of the libraries loses the gradient where no input of a layer asks for one.
REENTRANT = {"use_reentrant": False}
_TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}


def rank_of(settings: TunerSettings, width: int) -> int:
    """The rank in use: the settings', but at most half the model's width."""
    return max(1, min(settings.lora_r, width // 2))


def copy_to_adapt(model: nn.Module) -> nn.Module:
    """A copy whose modules are its own and whose weights are those of ``model``.

    An adapter is trained beside frozen weights, so a second set of them would be memory lost.
    """
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def lora_config(backbone: HFBackbone, settings: TunerSettings) -> tuple[Any, tuple[str, ...]]:
    """PEFT's configuration, and notes for the log."""
    from peft import LoraConfig

    rank = rank_of(settings, backbone.d)
    notes: tuple[str, ...] = ()
    if rank < settings.lora_r:
        notes = (f"LoRA rank {rank} instead of {settings.lora_r}: the model is {backbone.d} wide",)
    names = settings.target_modules
    modules = [name.strip() for name in names.split(",")]
    shape: dict[str, Any] = {
        "r": rank,
        "lora_alpha": settings.lora_alpha * rank / settings.lora_r,  # alpha / r stays
        "lora_dropout": settings.lora_dropout,
        "target_modules": names if names == "all-linear" else modules,
        "task_type": _TASKS[backbone.family],
    }
    return LoraConfig(**shape), notes


def adapter_of(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and shape of the one LoRA adapter of a PEFT model, on the CPU."""
    from peft import get_peft_model_state_dict

    config = model.peft_config["default"]
    # The default would ask the hub whether the vocabulary grew; it cannot have.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: state[name].detach().cpu().clone() for name in sorted(state)}
    shape = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
        "task_type": str(getattr(config.task_type, "value", config.task_type)),
    }
    return tensors, shape


def changed_weights(model: nn.Module, before: nn.Module) -> dict[str, Tensor]:
    """Parameters of ``model`` that are not bit for bit those of ``before``, on the CPU.

    They are compared and returned in the types that ``before`` has them in.
    """
    old = dict(before.named_parameters())
    found = {}
    for name, value in sorted(model.named_parameters()):
        rounded = value.detach().to(old[name].dtype)
        if not torch.equal(rounded, old[name]):
            found[name] = rounded.cpu().clone()
    return found


def silence_dropout(model: nn.Module) -> None:
    """Switch a model's own dropout off for good, whatever mode it is put in.

    ``nn.Dropout`` modules are not all: attention drops with a rate kept as a plain attribute (T5,
    OPT), which the library's own switch does not reach.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@contextmanager
def calm(device: torch.device) -> Iterator[None]:
    """No warnings, and the global random states of Python, numpy and torch come back as they were.
    """
    devices = [device] if device.type == "cuda" else []
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[str]:
    """``calm``, and the libraries' logs and bars off; yields a folder that is gone afterwards."""
    import datasets
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with (
            calm(device),
            tempfile.TemporaryDirectory(prefix="chameleon-") as folder,
        ):
            yield folder
    finally:
        logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
