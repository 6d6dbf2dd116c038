"""Content-addressed store of finished work: a crash or a second notebook never repeats a unit.

A record's key is the sha256 of everything that decides its value: the stage, its inputs and the
code of the library modules named, with all they import. One file holds one record
(`kit.records`), so there is no index to corrupt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.paths import cache_dir
from chameleon_lib.kit.progress import Progress, tell
from chameleon_lib.kit.records import CorruptedRecord, decode, encode, verify
from chameleon_lib.kit.sources import SourceTree, own_sources

Item = TypeVar("Item")


@dataclass(slots=True)
class StoreStats:
    """What a store did since it was opened: records found, computed, and found damaged."""

    hits: int = 0
    misses: int = 0
    corrupted: int = 0


class ArtifactStore:
    """Values by content key, in a folder.

    A value is JSON-able, or a dict of numpy arrays or torch tensors, or `{"json": ...,
    "tensors": {...}}`. What comes back has always been through the file, also the first time, so
    a fresh and a resumed run see the very same types (a tuple becomes a list in both).

    Args:
        root: folder of the records; `cache_dir()/units` by default.
        sources: the source tree that modules are looked up in; by default the checkout as this
            process first read it.
    """

    def __init__(self, root: Path | None = None, *, sources: SourceTree | None = None) -> None:
        self.root = root or cache_dir() / "units"
        self.stats = StoreStats()
        self._sources = sources or own_sources()

    def key(self, stage: str, inputs: Any, modules: Sequence[str] = ()) -> str:
        """The key of a record.

        Args:
            stage: name of the computation; also the folder the record lies in.
            inputs: everything that decides the value, as `hashing.plain` takes it.
            modules: dotted names of the library modules that compute it.
        """
        sources = self._sources.digest(modules) if modules else ""
        return digest({"stage": stage, "inputs": inputs, "sources": sources})

    def get_or_compute(
        self,
        stage: str,
        inputs: Any,
        compute: Callable[[], Any],
        *,
        modules: Sequence[str] = (),
    ) -> Any:
        """Return the stored value, or compute and store it.

        Args:
            stage: name of the computation.
            inputs: everything that decides the value.
            compute: makes the value.
            modules: library modules that compute it.

        Raises:
            TypeError: if the value cannot be stored, or an input cannot be hashed.
        """
        path = self._path(stage, self.key(stage, inputs, modules))
        if self._usable(path, stage):
            self.stats.hits += 1
        else:
            self.stats.misses += 1
            self._write([(path, compute())])
        return decode(path.read_bytes())

    def map(
        self,
        stage: str,
        items: Iterable[Item],
        compute_batch: Callable[[list[Item]], Sequence[Any]],
        *,
        inputs: Any,
        key_of: Callable[[Item], Any],
        batch_size: int = 32,
        label: str = "",
        modules: Sequence[str] = (),
    ) -> list[Any]:
        """One record per item, computed in batches, only where it is missing.

        Batches are cut from the whole list, not from what is missing, and the records of a batch
        appear together: a run that was killed and resumed forms the same batches as one that was
        not, so padding cannot move its last digits.

        Args:
            stage: name of the computation.
            items: units, such as users.
            compute_batch: values of some items, in their order.
            inputs: what decides all values, apart from the item.
            key_of: what decides one item's value beside `inputs`, such as the user's content.
            batch_size: items per call of `compute_batch`, at most.
            label: progress line; the stage by default.
            modules: library modules that compute it.

        Returns:
            The values in the order of `items`.

        Raises:
            ValueError: if `compute_batch` returns another number of values than it got items.
        """
        units = list(items)
        sources = self._sources.digest(modules) if modules else ""
        common = digest({"stage": stage, "inputs": inputs, "sources": sources})
        paths = [self._path(stage, digest([common, key_of(unit)])) for unit in units]
        missing = {path for path in dict.fromkeys(paths) if not self._usable(path, stage)}
        self.stats.hits += len(set(paths)) - len(missing)
        with Progress(label or stage, len(missing)) as progress:
            for start in range(0, len(units), batch_size):
                batch: dict[Path, Item] = {}
                end = start + batch_size
                for path, unit in zip(paths[start:end], units[start:end], strict=True):
                    if path in missing:
                        batch.setdefault(path, unit)
                if not batch:
                    continue
                values = compute_batch(list(batch.values()))
                if len(values) != len(batch):
                    raise ValueError(f"{stage}: {len(batch)} items gave {len(values)} values")
                self._write(list(zip(batch, values, strict=True)))
                self.stats.misses += len(batch)
                missing.difference_update(batch)
                progress.advance(len(batch))
        return [decode(path.read_bytes()) for path in paths]

    def _path(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:2] / f"{key}.unit"

    def _usable(self, path: Path, stage: str) -> bool:
        """Whether a record is there and whole; says so if it is there and damaged."""
        try:
            verify(path.read_bytes())
        except FileNotFoundError:
            return False
        except CorruptedRecord as problem:
            self.stats.corrupted += 1
            tell(f"Record {stage}/{path.name} is damaged ({problem}); computing it again.")
            return False
        return True

    def _write(self, records: Sequence[tuple[Path, Any]]) -> None:
        """Write temporary files first and rename last; the checksum covers a power cut."""
        renames: list[tuple[Path, Path]] = []
        try:
            for path, value in records:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f"{path.name}.partial-{os.getpid()}-{len(renames)}")
                renames.append((temporary, path))
                temporary.write_bytes(encode(value))
            for temporary, path in renames:
                os.replace(temporary, path)
        finally:
            for temporary, _ in renames:
                temporary.unlink(missing_ok=True)
