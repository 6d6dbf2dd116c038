"""Content hashes: equal content gives equal keys, in every process and on every machine.

Python's `hash`, pickles and tensor hashes of caching libraries differ between processes; here
everything goes through one canonical JSON text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any


def is_torch_tensor(value: object) -> bool:
    """Recognise a tensor without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def plain(value: Any) -> Any:
    """Turn a value into JSON types with one spelling per content.

    Args:
        value: JSON types, tuples, sets, paths, enums, dataclasses, numpy arrays and scalars,
            torch tensors; nested at will.

    Returns:
        The same content as JSON types; arrays become their shape, type and sha256.

    Raises:
        TypeError: for anything else: a guessed spelling could give two contents the same key.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None:
        return None
    if isinstance(value, bool | int | float | str):
        return value.item() if hasattr(value, "item") else value  # numpy.float64 is a float
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"__type__": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("the names of a hashed mapping must be strings")
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=canonical_json)
    if isinstance(value, Path):
        return value.as_posix()
    if is_torch_tensor(value):
        return plain(_bytes_of_tensor(value))
    if type(value).__module__ == "numpy":
        if not value.shape:
            return plain(value.item())
        if value.dtype.hasobject:
            raise TypeError("cannot hash an array of Python objects")
        return {
            "__array__": [str(value.dtype), list(value.shape)],
            "sha256": hashlib.sha256(value.tobytes(order="C")).hexdigest(),
        }
    raise TypeError(f"cannot hash a {type(value).__module__}.{type(value).__qualname__}")


def _bytes_of_tensor(value: Any) -> dict[str, Any]:
    """A tensor's type, shape and content; bytes, since numpy knows no bfloat16."""
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    content = flat.view(torch.uint8).numpy().tobytes()
    return {
        "__array__": [str(value.dtype).removeprefix("torch."), list(value.shape)],
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted names, no spaces, ASCII."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a value; of a list of lists, an entry is held at a time."""
    found = hashlib.sha256()
    for piece in _pieces(value, depth=2):
        found.update(piece.encode("ascii"))
    return found.hexdigest()


def _pieces(value: Any, depth: int) -> Iterator[str]:
    """The canonical JSON in pieces: all users of a run would be hundreds of megabytes at once."""
    if depth and isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield "," if at else "["
            yield from _pieces(item, depth - 1)
        yield "]" if value else "[]"
    else:
        yield canonical_json(value)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digests(folder: Path, skip: Iterable[str] = ()) -> dict[str, str]:
    """sha256 of every file below a folder, by path relative to it.

    Args:
        folder: need not exist; then the result is empty.
        skip: first path parts to leave out.
    """
    left_out = set(skip)
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in left_out and ".partial" not in path.name:
            found[name.as_posix()] = file_digest(path)
    return found
