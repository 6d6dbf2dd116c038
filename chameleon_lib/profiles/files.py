"""The two files of a stored profile: tensors (safetensors) and everything else (JSON).

    <id>.json                      {"format": 1, "sha256": of "content", "content": {...}}
    <id>-<digest>.safetensors      tensors, named by their own content

The JSON names its tensors file with size, SHA-256, types and shapes, so it is the commit point:
whoever can read the JSON knows what must lie beside it. Both checksums tell accidents and careless
edits from what was saved; they are no signature against a forger. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import canonical_json

FORMAT = 1
AGAIN = "save the profile again, or restore the file from a backup"


@dataclass(frozen=True)
class Stored:
    """A profile as its files hold it.

    Attributes:
        content: JSON types only; the entry ``tensors`` describes the tensors file.
        tensors: Arrays by name.
    """

    content: dict[str, Any]
    tensors: dict[str, np.ndarray]


def tensors_payload(tensors: dict[str, np.ndarray]) -> bytes:
    """The bytes of a tensors file; equal tensors give equal bytes."""
    from safetensors.numpy import save

    return save({name: np.array(tensors[name], order="C") for name in sorted(tensors)})


def tensors_entry(
    profile_id: str, tensors: dict[str, np.ndarray], payload: bytes
) -> dict[str, Any]:
    """What the JSON says about the tensors file."""
    digest = hashlib.sha256(payload).hexdigest()
    return {
        "file": f"{profile_id}-{digest[:16]}.safetensors",
        "bytes": len(payload),
        "sha256": digest,
        "arrays": {
            name: [str(tensors[name].dtype), list(tensors[name].shape)] for name in sorted(tensors)
        },
    }


def json_payload(content: dict[str, Any]) -> bytes:
    """The bytes of a JSON file."""
    whole = {"format": FORMAT, "sha256": _content_digest(content), "content": content}
    return (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode("ascii")


def read_content(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is cut short, of another format, or not what was saved.
    """
    try:
        whole = json.loads(path.read_bytes())
    except ValueError as error:  # bad JSON, or bytes that are no text
        raise UserError(f"Profile {path} is cut short or no JSON; {AGAIN}.") from error
    if not isinstance(whole, dict) or not {"format", "sha256", "content"} <= set(whole):
        raise UserError(f"Profile {path} lacks format, sha256 or content; {AGAIN}.")
    if whole["format"] != FORMAT:
        raise UserError(
            f"Profile {path} has format {whole['format']!r}, this version reads {FORMAT}; use the "
            "version of chameleon_lib that wrote it, or fit and save the profile again."
        )
    content = whole["content"]
    if not isinstance(content, dict) or _content_digest(content) != whole["sha256"]:
        raise UserError(f"Profile {path} was changed after it was saved (checksum); {AGAIN}.")
    return content


def read_tensors(folder: Path, content: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors that a JSON's content names.

    Raises:
        FileNotFoundError: The file is not there.
        UserError: It is cut short, not what was saved, or its arrays have other types or shapes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    entry = content["tensors"]
    path = folder / Path(entry["file"]).name
    payload = path.read_bytes()
    if len(payload) < entry["bytes"]:
        raise UserError(
            f"Tensors {path} are cut short ({len(payload)} of {entry['bytes']} bytes); {AGAIN}."
        )
    if hashlib.sha256(payload).hexdigest() != entry["sha256"]:
        raise UserError(f"Tensors {path} were changed after they were saved (checksum); {AGAIN}.")
    try:
        arrays = dict(load(payload))
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file; {AGAIN}.") from error
    found = {name: [str(arrays[name].dtype), list(arrays[name].shape)] for name in arrays}
    if found != entry["arrays"]:
        raise UserError(
            f"Tensors {path} have other names, types or shapes than the profile says; {AGAIN}."
        )
    return {name: arrays[name] for name in sorted(arrays)}


def _content_digest(content: Any) -> str:
    return hashlib.sha256(canonical_json(content).encode("ascii")).hexdigest()
