"""States of prompts that memory has no room for, in a file.

The states of a prompt of a thousand tokens take 46 MB in SmolLM2-135M and 128 MB in Mistral-7B. A
fit asks each of its prompts again at every step, so what does not fit into memory is read back from
a disk, which costs a hundredth of computing it again. The file has no name: it ends with its last
use or with the process, however that ends.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import psutil
import torch
from torch import Tensor

from chameleon_lib.backbones.prefix import Prefix
from chameleon_lib.kit import paths

_LIMIT, _USED = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
_SPARE = 2 << 30  # bytes that are left to others on the disk


def free_memory(device: torch.device) -> int:
    """Bytes that a device has free; in a container, those that it may still take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        return min(free, int(_LIMIT.read_text()) - int(_USED.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


@dataclass(frozen=True)
class _Place:
    """Where the rows of one tensor lie in the file, and what they were."""

    start: int
    shape: tuple[int, ...]  # of one row
    dtype: torch.dtype
    device: torch.device

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class FiledPrefix:
    """A prefix whose states lie in a file, and are read anew at each use.

    Args:
        prefix: What is written.
        folder: Where there is room, see :func:`has_room`.
    """

    def __init__(self, prefix: Prefix, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (kept open)
        pairs = [tensor for pair in (*prefix.key_values, *prefix.cross) for tensor in pair]
        states = pairs if prefix.encoder is None else [*pairs, prefix.encoder]
        self._bare = replace(prefix, key_values=(), cross=(), encoder=None)
        self._layers = len(prefix.key_values)
        self._places = [self._written(tensor) for tensor in states]
        self._rows = list(range(len(prefix.last)))

    def _written(self, tensor: Tensor) -> _Place:
        start = self._file.tell()
        self._file.write(_bytes(tensor.detach().contiguous().cpu()))
        return _Place(start, tuple(tensor.shape[1:]), tensor.dtype, tensor.device)

    def take(self, rows: Sequence[int]) -> FiledPrefix:
        """The prefix of the batch made of these rows; nothing is read or copied."""
        taken = copy.copy(self)
        taken._rows = [self._rows[row] for row in rows]
        return taken

    def load(self) -> Prefix:
        """The prefix itself, equal bit for bit to the one that was written."""
        states = [self._read(place) for place in self._places]
        pairs = list(zip(states[::2], states[1::2], strict=False))  # without the encoder's states
        return replace(
            self._bare.take(self._rows),
            key_values=tuple(pairs[: self._layers]),
            cross=tuple(pairs[self._layers :]),
            encoder=states[-1] if len(states) % 2 else None,
        )

    def _read(self, place: _Place) -> Tensor:
        found = torch.empty((len(self._rows), *place.shape), dtype=place.dtype)
        for row, at in zip(found, self._rows, strict=True):
            self._file.seek(place.start + at * place.size)
            self._file.readinto(_bytes(row))  # type: ignore[attr-defined]
        return found.to(place.device)


def has_room(size: int) -> Path | None:
    """The folder for so many bytes of states, or None where its disk has no room for them."""
    folder = paths.cache_dir() / "states"
    folder.mkdir(parents=True, exist_ok=True)
    return folder if shutil.disk_usage(folder).free - size > _SPARE else None


def _bytes(tensor: Tensor) -> Any:
    """The memory of a contiguous tensor, which NumPy would not take in bfloat16."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
