"""The edit merged into the weights: a full checkpoint with ``W + U (Z W)`` and ``b + U (Z b)``.

The graph is the base's, so serving it costs nothing more; the price is one full copy per user.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from chameleon_lib.backbones import HFBackbone, backbone_from
from chameleon_lib.core.edit import Edit
from chameleon_lib.kit.hashing import digest
from chameleon_lib.profiles.factors import compile_layers, hash_projection


@contextmanager
def merged_weights(edit: Edit, backbone: HFBackbone) -> Iterator[str]:
    """The backbone's own weights hold the edit inside the block; bit for bit the old ones after.

    Yields:
        The hash of the matrices before the edit, as ``factors.compile_edit`` gives it.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        yield _merge(edit, backbone, saved)
    finally:
        with torch.no_grad():
            for parameter, before in saved:
                parameter.copy_(before)


@torch.no_grad()
def _merge(edit: Edit, backbone: HFBackbone, saved: list[tuple[Tensor, Tensor]]) -> str:
    hashes = {}
    for found, update in compile_layers(edit, backbone):
        hashes[found.name] = hash_projection(found)
        # ``found.weight`` is the model's own storage (a view of it where it is transposed).
        changes = [(found.weight, update.delta)]
        if found.bias is not None and update.bias is not None:
            changes.append((found.bias, update.bias))
        for parameter, change in changes:
            saved.append((parameter, parameter.clone()))
            # One rounding: the sum is made in float64 and cast once.
            parameter.copy_((parameter.cpu().double() + change).to(parameter.dtype))
    return digest(hashes)


def write_merged(folder: Path, edit: Edit, backbone: HFBackbone, *, max_shard: str = "4GB") -> str:
    """Writes a checkpoint with tokenizer in safetensors shards.

    Args:
        folder: Receives the files.
        edit: An edit of all positions.
        backbone: The base; unchanged afterwards.
        max_shard: Most bytes per weight file.

    Returns:
        The hash of the edited matrices before the edit.
    """
    with merged_weights(edit, backbone) as weights:
        backbone.model.save_pretrained(folder, max_shard_size=max_shard)
    backbone.codec.tokenizer.save_pretrained(folder)
    return weights


def load_merged(folder: Path, backbone: HFBackbone) -> HFBackbone:
    """The written checkpoint, in the dtype and on the device of the base."""
    encdec = backbone.family == "encoder-decoder"
    auto = AutoModelForSeq2SeqLM if encdec else AutoModelForCausalLM
    model: Any = auto.from_pretrained(folder, dtype=backbone.model.dtype)
    return backbone_from(
        model.to(backbone.device),
        backbone.codec.tokenizer,
        name=f"{backbone.name} (merged)",
        fingerprint="merged",
    )
