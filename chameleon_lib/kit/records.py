"""One stored value as bytes: a line of JSON behind a checksum, then tensors in safetensors form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from chameleon_lib.kit.hashing import is_torch_tensor


class CorruptedRecord(Exception):
    """A record whose bytes are not the ones that were written."""


def encode(value: Any) -> bytes:
    """A value as the bytes of a record: equal values give equal bytes.

    Raises:
        TypeError: if the value is neither JSON-able nor made of arrays or tensors.
    """
    data, tensors = _split(value)
    content: dict[str, Any] = {"kind": _kind(value), "json": data}
    payload = b""
    if tensors:
        torch_names = sorted(name for name, tensor in tensors.items() if is_torch_tensor(tensor))
        content["torch"] = torch_names
        payload = _tensor_bytes(tensors, bool(torch_names))
    text = json.dumps(content, sort_keys=True, ensure_ascii=True).encode("ascii")
    checksum = hashlib.sha256(text + payload).hexdigest()
    return checksum.encode("ascii") + b" " + text + b"\n" + payload


def verify(record: bytes) -> tuple[dict[str, Any], bytes]:
    """Check a record's checksum and return its JSON part and its tensor bytes.

    Raises:
        CorruptedRecord: saying what is wrong.
    """
    line, newline, payload = record.partition(b"\n")
    checksum, _, text = line.partition(b" ")
    if not newline:
        raise CorruptedRecord("it is cut short")
    if hashlib.sha256(text + payload).hexdigest().encode("ascii") != checksum:
        raise CorruptedRecord("its checksum differs")
    return json.loads(text), payload


def decode(record: bytes) -> Any:
    """The value of a record; see `encode`."""
    content, payload = verify(record)
    if content["kind"] == "json":
        return content["json"]
    tensors: dict[str, Any] = {}
    if content.get("torch"):
        from safetensors.torch import load as load_torch

        loaded = load_torch(payload)
        tensors = {n: t if n in content["torch"] else t.numpy() for n, t in loaded.items()}
    elif payload:
        from safetensors.numpy import load as load_numpy

        tensors = dict(load_numpy(payload))
    tensors = {name: tensors[name] for name in sorted(tensors)}
    mixed = {"json": content["json"], "tensors": tensors}
    return tensors if content["kind"] == "tensors" else mixed


def _is_array(value: object) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "tobytes")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"json", "tensors"}:
        return "mixed"
    if isinstance(value, Mapping) and value:
        if all(_is_array(item) or is_torch_tensor(item) for item in value.values()):
            return "tensors"
    return "json"


def _split(value: Any) -> tuple[Any, dict[str, Any]]:
    """A value's JSON part and its named tensors."""
    kind = _kind(value)
    if kind == "json":
        return value, {}
    return (value["json"], dict(value["tensors"])) if kind == "mixed" else (None, dict(value))


def _tensor_bytes(tensors: Mapping[str, Any], with_torch: bool) -> bytes:
    """Tensors in safetensors form, laid out row by row whatever their strides were."""
    if not with_torch:
        import numpy as np
        from safetensors.numpy import save as save_numpy

        return save_numpy({name: np.array(item, order="C") for name, item in tensors.items()})
    import torch
    from safetensors.torch import save as save_torch

    # clone: safetensors refuses tensors that share memory, and a view must not drag its base along
    rows = torch.contiguous_format
    dense = {name: torch.as_tensor(item).detach().cpu() for name, item in tensors.items()}
    return save_torch({name: item.clone(memory_format=rows) for name, item in dense.items()})
