"""A directory of stored profiles, safe under concurrent writers and kill -9.

    <store>/pseudonyms.key         random key of the store, for file names and user ids
    <store>/<ab>/<id>.json         one profile; <ab> are the first two digits of its id
    <store>/<ab>/<id>-….safetensors
    <store>/<ab>/lock              held while a folder is written; freed when its holder dies

Tensors are written first, under a name made of their content; replacing the JSON is the commit.
Readers take no lock: where a writer removed old tensors between their two reads, they read again.
Nothing here needs torch.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_bytes, sync_folder
from chameleon_lib.kit.pseudonyms import Pseudonyms
from chameleon_lib.profiles.files import (
    AGAIN,
    Stored,
    json_payload,
    read_content,
    read_tensors,
    tensors_entry,
    tensors_payload,
)

_READS = 20  # each failed read means that a writer has just committed


class ProfileDirectory:
    """Contents and tensors by key.

    Args:
        root: The folder; made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pseudonyms = Pseudonyms(root)

    @property
    def pseudonyms(self) -> Pseudonyms:
        """What users and keys are called in this store.

        Raises:
            UserError: Profiles are there, but the random key of the store is lost.
        """
        path = self._pseudonyms.path
        if not path.exists() and next(self.paths(), None) is not None:
            raise UserError(
                f"{path} is missing; restore it from a backup: without it no profile of this "
                "store can be found."
            )
        return self._pseudonyms

    def id_of(self, key: str) -> str:
        """The id of a key: 32 hexadecimal digits, a file name everywhere that tells no key."""
        return self.pseudonyms.hashed("profile", key)

    def path_of(self, key: str) -> Path:
        """The JSON file of a key, whether it is there or not."""
        profile_id = self.id_of(key)
        return self.root / profile_id[:2] / f"{profile_id}.json"

    def paths(self) -> Iterator[Path]:
        """The JSON files of all profiles, in the order of their ids."""
        for folder in self.folders():
            yield from sorted(folder.glob("*.json"))

    def folders(self) -> list[Path]:
        """The folders that hold profiles."""
        return sorted(path for path in self.root.glob("[0-9a-f][0-9a-f]") if path.is_dir())

    def put(
        self,
        key: str,
        content: dict[str, Any],
        tensors: dict[str, np.ndarray],
        *,
        check: Callable[[dict[str, Any]], None] | None = None,
    ) -> Path:
        """Write a profile, or replace the one of this key.

        Args:
            key: Of the profile.
            content: JSON types; the entry ``tensors`` is added.
            tensors: Arrays by name.
            check: Called with the content that would be replaced; raises to refuse.

        Returns:
            The JSON file.
        """
        path = self.path_of(key)
        payload = tensors_payload(tensors)
        entry = tensors_entry(path.stem, tensors, payload)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            if check is not None and path.exists():
                check(read_content(path))
            replace_bytes(path.with_name(entry["file"]), payload, durable=True)
            replace_bytes(path, json_payload({**content, "tensors": entry}), durable=True)
            remove_leftovers(path.parent, path.stem)
        return path

    def get(self, key: str) -> Stored:
        """Read a profile.

        Raises:
            UserError: There is none, or its files are not what was saved.
        """
        path = self.path_of(key)
        try:
            content = read_content(path)
            for _ in range(_READS):
                try:
                    return Stored(content, read_tensors(path.parent, content))
                except FileNotFoundError:
                    before, content = content, read_content(path)
                    if content["tensors"]["file"] == before["tensors"]["file"]:
                        break
        except FileNotFoundError:
            raise UserError(
                f"There is no profile of {key!r} in {self.root}; fit and save one, or look with "
                f"'python -m chameleon_lib profiles list --store {self.root}'."
            ) from None
        raise UserError(
            f"Profile {path} names {content['tensors']['file']}, which is missing; {AGAIN}."
        )

    def delete(self, key: str) -> bool:
        """Remove a profile; False if there was none."""
        path = self.path_of(key)
        if not path.exists():
            return False
        with locked(path.parent):
            return remove_profile(path)

    def amend(self, path: Path, content: dict[str, Any]) -> None:
        """Replace the JSON of a profile whose folder is locked; its tensors stay."""
        replace_bytes(path, json_payload(content), durable=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other writer is at work in the folder inside the block."""
    with (folder / "lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def remove_profile(path: Path) -> bool:
    """Remove a profile whose folder is locked; the JSON goes first, as it came last."""
    existed = path.exists()
    path.unlink(missing_ok=True)
    remove_leftovers(path.parent, path.stem)
    sync_folder(path.parent)
    return existed


def remove_leftovers(folder: Path, profile_id: str = "") -> int:
    """Remove what killed writers left in a locked folder: partial files and unnamed tensors.

    Args:
        folder: Locked, so that nothing in it belongs to a living writer.
        profile_id: Look at the tensors of this profile only; at all if empty.

    Returns:
        How many files were removed.
    """
    removed = 0
    for path in [*folder.glob("*.partial-*"), *folder.glob(f"{profile_id}*.safetensors")]:
        if path.suffix == ".safetensors" and _is_named(path):
            continue
        path.unlink(missing_ok=True)
        removed += 1
    return removed


def _is_named(tensors: Path) -> bool:
    """Whether the JSON beside a tensors file names it; a JSON nobody can read keeps its tensors."""
    try:
        named = read_content(tensors.with_name(f"{tensors.name[:32]}.json"))["tensors"]["file"]
    except FileNotFoundError:
        return False
    except UserError:
        return True
    return bool(named == tensors.name)
