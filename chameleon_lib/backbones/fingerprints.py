"""SHA-256 of what a backbone computes with: files of a folder, or weights in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_CHUNK = 1 << 20
_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}


def hash_files(files: Sequence[Path], start: str = "") -> str:
    """SHA-256 of a word, then of the names and contents of files."""
    digest = hashlib.sha256(start.encode())
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
    return digest.hexdigest()


def hash_folder(folder: Path, form: str) -> str:
    """SHA-256 of a local checkpoint folder and the form (precision) it is loaded in."""
    return hash_files([path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES], form)


def hash_state(model: Any, tokenizer: Any) -> str:
    """SHA-256 of configuration, vocabulary and every weight in memory."""
    config = model.config.to_dict()
    config.pop("_name_or_path", None)  # where it came from is not what it is
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
