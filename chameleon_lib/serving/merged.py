"""The edit in the weights: a full checkpoint, which old and new versions of the library read alike.

The graph is the base's, so serving it costs nothing more; the price is one copy per user.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils.hub import cached_file

from chameleon_lib.backbones import HFBackbone, backbone_from
from chameleon_lib.backbones.older_versions import tell_older_versions
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.editors import WeightEdit
from chameleon_lib.kit.hashing import digest
from chameleon_lib.serving.factors import compile_layers


@contextmanager
def merged_weights(edit: AnyEdit | WeightEdit, backbone: HFBackbone) -> Iterator[str]:
    """``W + U (Z W)`` and ``b + U (Z b)`` inside the block; bit for bit the old weights after.

    Yields:
        The hash of the matrices before the edit, as ``compile_edit`` gives it.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    hashes = {}
    try:
        with torch.no_grad():
            for found, update in compile_layers(edit, backbone):
                hashes[found.name] = found.hash()
                # ``found.weight`` is the model's own storage (a view where it is transposed).
                for parameter, change in ((found.weight, update.delta), (found.bias, update.bias)):
                    if parameter is not None and change is not None:
                        saved.append((parameter, parameter.clone()))
                        # One rounding: the sum is made in float64 and cast once.
                        parameter.copy_((parameter.cpu().double() + change).to(parameter.dtype))
        yield digest(hashes)
    finally:
        with torch.no_grad():
            for parameter, before in saved:
                parameter.copy_(before)


def served_name(backbone: HFBackbone) -> str:
    """Where the base was loaded from: what a server that loads it calls it."""
    return str(getattr(backbone.model.config, "_name_or_path", "") or backbone.name)


def merged_dtype(backbone: HFBackbone) -> torch.dtype:
    """The precision of merged weights: the base's own where it is the narrower, else as loaded."""
    stored, loaded = backbone.stored_dtype, backbone.model.dtype
    return stored if stored.itemsize < loaded.itemsize else loaded


def write_merged(folder: Path, edit: AnyEdit | WeightEdit, backbone: HFBackbone) -> str:
    """Writes the checkpoint in the base's own precision, the tokenizer and the licence.

    Returns:
        The hash of the edited matrices before the edit; the base is unchanged afterwards.
    """
    model, dtype = backbone.model, merged_dtype(backbone)
    with merged_weights(edit, backbone) as weights:
        state = None if dtype == model.dtype else _held_in(dtype, model.state_dict())
        model.save_pretrained(folder, state_dict=state, max_shard_size="4GB")
    backbone.codec.tokenizer.save_pretrained(folder)
    _copy_beside(backbone, folder)
    tell_older_versions(folder, dtype)
    return weights


def _held_in(dtype: torch.dtype, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in another precision; tied ones stay tied."""
    once: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    found = {}
    for name, value in state.items():
        if value.is_floating_point():
            key = (value.data_ptr(), value.shape, value.stride())
            value = once.setdefault(key, value.to(dtype))
        found[name] = value
    return found


_BESIDE = re.compile(r"(?i)(licen[cs]e|notice|copying|use_policy)([._-].*)?|.*\.model")


def _copy_beside(backbone: HFBackbone, folder: Path) -> None:
    """Takes along what of the base's files is no weight: its licence, the SentencePiece model."""
    source = Path(served_name(backbone))
    if not source.is_dir():  # a hub name: what its cache holds
        found = cached_file(str(source), "config.json", _raise_exceptions_for_missing_entries=False,
                            local_files_only=True, revision=backbone.revision or None)  # fmt: skip
        source = Path(found).parent if found else folder
    for path in sorted(source.iterdir()):
        if path.is_file() and _BESIDE.fullmatch(path.name) and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


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
