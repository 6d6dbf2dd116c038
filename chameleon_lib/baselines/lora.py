"""Low-rank adapters: their shape on a given model, and their weights after a training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.baselines.options import TunerSettings

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
    """Weights and shape of a trained adapter, on the CPU.

    Args:
        model: A PEFT model with one LoRA adapter.
    """
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
