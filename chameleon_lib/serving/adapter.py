"""The edit as a PEFT adapter: rank 2, alpha 2, full module names; and reading one back.

Two files suffice, so none of PEFT is needed to write them; PEFT reads them back.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batches import pad
from chameleon_lib.backbones.hf import EncoderDecoderBackbone
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text
from chameleon_lib.serving.factors import LowRank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BASE = "__base__"  # PEFT's name for a row without adapter
_TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}


def adapter_name(number: int) -> str:
    """What PEFT calls the adapter of that number.

    PEFT finds the tensors of an adapter by looking for its name inside theirs, so that "1" meets
    "10" and "2" meets every layer 2. Names of one length with a letter that no module has do not.
    """
    return f"u-{number:06d}"


def adapter_config(
    updates: Sequence[LowRank], backbone: HFBackbone, *, base_model: str
) -> dict[str, Any]:
    """Contents of ``adapter_config.json`` for updates of one rank.

    ``base_model`` is what the server calls the base; vLLM's resolver compares it letter by letter.
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
    return config | ({"target_parameters": names} if experts else {})


def adapter_tensors(updates: Sequence[LowRank], dtype: torch.dtype) -> dict[str, Tensor]:
    """Contents of ``adapter_model.safetensors``: A ``(r, d_ff)``, B ``(d, r)``, bias ``(d,)``.

    PEFT stacks the factors of E experts: A by expert then rank, B by rank then expert.
    """
    tensors: dict[str, Tensor] = {}
    for update in updates:
        a, b = update.a, update.b
        key = PREFIX + update.name
        if a.dim() == 3:
            key = key.rpartition(".")[0]
            b = b[:, :, None].expand(-1, -1, a.shape[0]).flatten(1)
            a = a.flatten(0, 1)
        tensors[f"{key}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"{key}.lora_B.weight"] = b.to(dtype).contiguous()
        if update.bias is not None:
            tensors[f"{key}.lora_B.bias"] = update.bias.to(dtype).contiguous()
    return tensors


def write_adapter(
    folder: Path, updates: Sequence[LowRank], backbone: HFBackbone, *, base_model: str
) -> None:
    """Writes the two files of an adapter, in the dtype the base computes in."""
    config = adapter_config(updates, backbone, base_model=base_model)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapter_tensors(updates, backbone.model.dtype)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    replace_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


@contextmanager
def adapters(backbone: HFBackbone, folders: Sequence[Path]) -> Iterator[Any]:
    """The backbone's model with these adapters loaded; leaving the block takes them out again.

    Args:
        backbone: The base. Inside the block its own calls run the first adapter.
        folders: Adapter folders, at least one; the one at place i is called ``adapter_name(i)``.

    Yields:
        The ``PeftModel``.

    Raises:
        UserError: An adapter that PEFT cannot read, or one that leaves parts of itself unset.
    """
    from peft import PeftModel

    wrapped: Any = None
    options: dict[str, Any] = {"autocast_adapter_dtype": False}
    try:
        for number, folder in enumerate(folders):
            name = adapter_name(number)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of missing keys, which are counted below
                    if wrapped is None:
                        wrapped = PeftModel.from_pretrained(
                            backbone.model, folder, adapter_name=name, **options
                        )
                    else:
                        wrapped.load_adapter(folder, adapter_name=name, **options)
            except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"The adapter {folder} cannot be loaded on {backbone.name} ({reason}); export "
                    "it again for this model."
                ) from error
            _check_set(wrapped, name, folder)
        wrapped.eval()
        yield wrapped
    finally:
        _take_out(backbone, wrapped)


def _check_set(wrapped: Any, name: str, folder: Path) -> None:
    """Raises where the file lacks a tensor of the adapter: PEFT would leave it zero."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        given = set(file.keys())
    own = f".{name}."
    needed = {key.replace(own, ".") for key, _ in wrapped.named_parameters() if own in key}
    # A stacked parameter of experts is wrapped where it lies, a second time for "base_layer".
    if not {key.replace(".base_layer.", ".") for key in needed} <= given:
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


@torch.no_grad()
def adapter_rows(
    backbone: HFBackbone, model: Any, prompts: Sequence[str], names: Sequence[str]
) -> Tensor:
    """Logits of the next token of prompts that run in one batch, ``(B, V)`` float64 on the CPU.

    Args:
        backbone: The base.
        model: The ``PeftModel`` around it.
        prompts: As texts.
        names: Of the adapter of every row; ``BASE`` for none.
    """
    codec = backbone.codec
    ids, mask = pad(codec.prompts(list(prompts)), value=codec.pad_id, side="left",
                    device=backbone.device)  # fmt: skip
    inputs = {"input_ids": ids, "attention_mask": mask}
    if isinstance(backbone, EncoderDecoderBackbone):
        inputs["decoder_input_ids"] = torch.full_like(ids[:, :1], backbone.start_id)
    else:
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
    with backbone.lock, no_hook_stays(backbone.model):
        logits: Tensor = model(**inputs, adapter_names=list(names)).logits
    return logits[:, -1].double().cpu()


@contextmanager
def no_hook_stays(model: Any) -> Iterator[None]:
    """Takes out the pre-hooks that a call added to the model's modules, however it ends.

    PEFT hands the adapters of a batch to its layers by such hooks, and a call that ends in an
    exception leaves them there: the next one would be answered by the adapters of that call.
    """
    before = {module: set(module._forward_pre_hooks) for module in model.modules()}
    try:
        yield
    finally:
        for module, known in before.items():
            for key in set(module._forward_pre_hooks) - known:
                module._forward_pre_hooks.pop(key, None)
                module._forward_pre_hooks_with_kwargs.pop(key, None)
