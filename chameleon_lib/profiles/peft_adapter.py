"""The edit as a PEFT adapter: rank 2, alpha 2, full module names; and reading one back.

Two files suffice, so none of PEFT is needed to write them; PEFT reads them back.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text
from chameleon_lib.profiles.factors import LowRank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}


def adapter_config(
    updates: Sequence[LowRank],
    backbone: HFBackbone,
    *,
    base_model: str,
    invocation_tokens: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Contents of ``adapter_config.json``.

    Args:
        updates: At least one, all of one rank.
        backbone: The base.
        base_model: What the server calls the base; vLLM's resolver compares it letter by letter.
        invocation_tokens: Token ids that start an aLoRA; None for a plain LoRA.
    """
    names = [update.name for update in updates]
    experts = updates[0].a.dim() == 3
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _TASKS[backbone.family],
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        # The strengths are in the factors: alpha / r must stay 1, whatever the rank.
        "r": updates[0].rank,
        "lora_alpha": updates[0].rank,
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": updates[0].bias is not None,
        "fan_in_fan_out": updates[0].transposed,
        "target_modules": [] if experts else names,
    }
    if experts:
        config["target_parameters"] = names
    if invocation_tokens is not None:
        config["alora_invocation_tokens"] = list(invocation_tokens)
    return config


def adapter_tensors(updates: Sequence[LowRank], dtype: torch.dtype) -> dict[str, Tensor]:
    """Contents of ``adapter_model.safetensors``."""
    tensors: dict[str, Tensor] = {}
    for update in updates:
        a, b = update.a, update.b
        key = PREFIX + update.name
        if a.dim() == 3:
            # PEFT stacks the experts' factors: A by expert then rank, B by rank then expert.
            key = key.rpartition(".")[0]
            b = b[:, :, None].expand(-1, -1, a.shape[0]).flatten(1)
            a = a.flatten(0, 1)
        tensors[f"{key}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"{key}.lora_B.weight"] = b.to(dtype).contiguous()
        if update.bias is not None:
            tensors[f"{key}.lora_B.bias"] = update.bias.to(dtype).contiguous()
    return tensors


def write_adapter(
    folder: Path,
    updates: Sequence[LowRank],
    backbone: HFBackbone,
    *,
    base_model: str,
    invocation_tokens: Sequence[int] | None = None,
) -> None:
    """Writes the two files of an adapter, in the dtype the base computes in."""
    config = adapter_config(
        updates, backbone, base_model=base_model, invocation_tokens=invocation_tokens
    )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapter_tensors(updates, backbone.model.dtype)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    replace_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


@contextmanager
def adapters(backbone: HFBackbone, folders: Mapping[str, Path]) -> Iterator[Any]:
    """The backbone's model with these adapters loaded; leaving the block takes them out again.

    Args:
        backbone: The base. Inside the block its own calls run the first adapter.
        folders: Adapter folder by name; at least one.

    Yields:
        The ``PeftModel``.

    Raises:
        UserError: An adapter that PEFT cannot read, or one that leaves parts of itself unset.
    """
    from peft import PeftModel

    wrapped: Any = None
    (first, folder), *others = folders.items()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                wrapped = PeftModel.from_pretrained(
                    backbone.model, folder, adapter_name=first, autocast_adapter_dtype=False
                )
                for name, folder in others:
                    result = wrapped.load_adapter(
                        folder, adapter_name=name, autocast_adapter_dtype=False
                    )
                    _check_unset(folder, result.missing_keys)
            except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
                if isinstance(error, UserError):
                    raise
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"The adapter {folder} cannot be loaded on {backbone.name} ({reason}); export "
                    "it again for this model."
                ) from error
        # PEFT only warns of keys it did not find; such an adapter is the bare base.
        _check_unset(folders[first], [str(w.message) for w in caught if _tells_missing(w.message)])
        wrapped.eval()
        yield wrapped
    finally:
        _take_out(backbone, wrapped)


def _tells_missing(message: Any) -> bool:
    return "missing adapter keys" in str(message)


def _check_unset(folder: Path, missing: Sequence[str]) -> None:
    if any("lora_" in key for key in missing):
        raise UserError(
            f"The adapter {folder} lacks weights that its configuration names, so it would leave "
            "the base unchanged; export it again."
        )


def _take_out(backbone: HFBackbone, wrapped: Any) -> None:
    """Removes all adapter layers; the base keeps its own modules, untouched."""
    from peft.tuners.lora import LoraLayer

    if wrapped is not None:
        wrapped.unload()
    else:
        # Loading failed half-way: put the wrapped modules back by hand.
        found = [
            (name, module)
            for name, module in backbone.model.named_modules()
            if isinstance(module, LoraLayer)
        ]
        for name, module in found:
            parent, _, child = name.rpartition(".")
            setattr(backbone.model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(backbone.model, "peft_config"):
        del backbone.model.peft_config
    backbone.model.requires_grad_(False)
