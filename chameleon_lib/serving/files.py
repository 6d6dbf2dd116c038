"""The files of a profile store and of serving folders, safe under concurrent writers and kill -9.

    <store>/pseudonyms.key           random key of the store, for file names and user ids
    <store>/<ab>/<id>.safetensors    one profile; <ab> are the first two digits of its id
    <store>/<ab>/lock                held while a folder is written; freed when its holder dies
    <store>/serving.json             the folders that profiles of this store were exported into
    <serving>/<name>-v0001/          an export; the folder's name is what a request asks for

A profile is one file: its tensors, with everything else as JSON in the header. It appears by a
rename, so readers, who take no lock, see the old or the new one whole. A checksum over both parts
tells accidents and careless edits from what was saved; it is no signature against a forger. Of
the versions of an export the highest is the current one. Nothing here needs torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import canonical_json
from chameleon_lib.kit.paths import replace_bytes, replace_text, sync_folder
from chameleon_lib.serving.pseudonyms import Pseudonyms

FORMAT = "2"
FIT_LOCK = "fit.lock"
AGAIN = "save the profile again, or restore the file from a backup"


@dataclass(frozen=True)
class Stored:
    """A profile as its file holds it.

    Attributes:
        content: JSON types only.
        tensors: Arrays by name.
    """

    content: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def payload(self) -> bytes:
        """The bytes of the file; equal profiles give equal bytes."""
        text = canonical_json(self.content)
        ordered = {name: np.array(self.tensors[name], order="C") for name in sorted(self.tensors)}
        return save(ordered, {"format": FORMAT, "content": text, "sha256": _digest(text, ordered)})


class ProfileFiles:
    """Profiles by key.

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
        # The key is written before the first profile, so it is looked for again once one was
        # seen: another writer may have made both in between.
        missing = not path.exists() and next(self.paths(), None) is not None
        if missing and not path.exists():
            raise UserError(
                f"{path} is missing; restore it from a backup: without it no profile of this "
                "store can be found."
            )
        return self._pseudonyms

    def id_of(self, key: str) -> str:
        """The id of a key: 32 hexadecimal digits, a file name everywhere that tells no key."""
        return self.pseudonyms.hashed("profile", key)

    def path_of(self, key: str) -> Path:
        """The file of a key, whether it is there or not."""
        profile_id = self.id_of(key)
        return self.root / profile_id[:2] / f"{profile_id}.safetensors"

    def paths(self) -> Iterator[Path]:
        """The files of all profiles, in the order of their ids."""
        for folder in self.folders():
            yield from sorted(folder.glob("*.safetensors"))

    def folders(self) -> list[Path]:
        """The folders that hold profiles."""
        return sorted(path for path in self.root.glob("[0-9a-f][0-9a-f]") if path.is_dir())

    def put(
        self, key: str, profile: Stored, *, check: Callable[[dict[str, Any]], None] | None = None
    ) -> Path:
        """Write a profile, or replace the one of this key.

        Args:
            key: Of the profile.
            profile: What to store.
            check: Called with the content that would be replaced; raises to refuse.

        Returns:
            The file.
        """
        path = self.path_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            if check is not None and path.exists():
                check(read_content(path))
            write_profile(path, profile)
            remove_leftovers(path.parent)
        return path

    def get(self, key: str) -> Stored:
        """Read the profile of a key.

        Raises:
            UserError: There is none, or its file is not what was saved.
        """
        try:
            return read_profile(self.path_of(key))
        except FileNotFoundError:
            raise UserError(
                f"There is no profile of {key!r} in {self.root}; fit and save one, or look with "
                f"'python -m chameleon_lib profiles list --store {self.root}'."
            ) from None

    def delete(self, key: str) -> bool:
        """Remove a profile; False if there was none."""
        path = self.path_of(key)
        if not path.exists():
            return False
        with locked(path.parent):
            return remove_profile(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other writer is at work in the folder inside the block."""
    with (folder / "lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def fit_lock(root: Path) -> Iterator[None]:
    """No other fit is at work in the store inside the block.

    Raises:
        UserError: One is.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / FIT_LOCK).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another fit is at work in {root}; wait for its end.") from None
        yield


def remove_profile(path: Path) -> bool:
    """Remove a profile whose folder is locked; False if it was gone."""
    existed = path.exists()
    path.unlink(missing_ok=True)
    remove_leftovers(path.parent)
    sync_folder(path.parent)
    return existed


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a locked folder: nothing in it belongs to a living one."""
    for path in folder.glob("*.partial-*"):
        path.unlink(missing_ok=True)


def write_profile(path: Path, profile: Stored) -> None:
    """Write or replace a profile whose folder is locked."""
    replace_bytes(path, profile.payload(), durable=True)


def read_content(path: Path) -> dict[str, Any]:
    """The JSON of a profile, from the header alone; its checksum is not looked at.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is cut short or of another format.
    """
    try:
        with safe_open(path, framework="np") as file:
            header = dict(file.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"Profile {path} is cut short or no safetensors file; {AGAIN}.") from error
    return _content(path, header)


def read_profile(path: Path) -> Stored:
    """A profile by its file.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is not what was saved.
    """
    payload = path.read_bytes()
    try:
        tensors = dict(load(payload))
        length = int.from_bytes(payload[:8], "little")
        header = json.loads(payload[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise UserError(f"Profile {path} is cut short or no safetensors file; {AGAIN}.") from error
    content = _content(path, header)
    if _digest(header["content"], tensors) != header["sha256"]:
        raise UserError(f"Profile {path} was changed after it was saved (checksum); {AGAIN}.")
    return Stored(content, {name: tensors[name] for name in sorted(tensors)})


def _content(path: Path, header: dict[str, str]) -> dict[str, Any]:
    """The JSON in a header."""
    if not {"format", "content", "sha256"} <= set(header):
        raise UserError(f"Profile {path} lacks format, content or sha256; {AGAIN}.")
    if header["format"] != FORMAT:
        raise UserError(
            f"Profile {path} has format {header['format']}, this version reads {FORMAT}; use the "
            "version of chameleon_lib that wrote it, or fit and save the profile again."
        )
    try:
        return dict(json.loads(header["content"]))
    except ValueError as error:
        raise UserError(f"Profile {path} holds no JSON; {AGAIN}.") from error


def _digest(text: str, tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of the JSON and of names, types, shapes and bytes of all arrays."""
    found = hashlib.sha256(text.encode("ascii"))
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"\0{name}\0{value.dtype.str}\0{value.shape}\0".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


# --- serving folders ---------------------------------------------------------------------------

KNOWN = "serving.json"
VERSION = re.compile(r"(?P<name>.+)-v(?P<number>\d{4,})")
_KILLED = re.compile(r"\.(?P<name>.+)-v\d{4,}\.partial-.+")


def model_name(group: str, profile_id: str) -> str:
    """What requests ask for: the group's name, or the id that stands for a user in the store."""
    if not group:
        return f"u-{profile_id}"
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", group)[:60]
    # Two names that differ in what was replaced must not become one.
    return f"g-{plain}" if plain == group else f"g-{plain}-{profile_id[:8]}"


def current_versions(folder: Path) -> dict[str, int]:
    """The highest version of every name that is served in a folder."""
    found: dict[str, int] = {}
    for path in folder.iterdir() if folder.is_dir() else []:
        match = VERSION.fullmatch(path.name)
        if match and path.is_dir():
            found[match["name"]] = max(int(match["number"]), found.get(match["name"], 0))
    return found


def versions(folders: Sequence[Path], name: str) -> list[Path]:
    """Exports of a profile, current and old, and what killed exports of it left; sorted."""
    found = []
    for path in (path for at in folders if at.is_dir() for path in at.iterdir()):
        match = VERSION.fullmatch(path.name) or _KILLED.fullmatch(path.name)
        if match and match["name"] == name and path.is_dir():
            found.append(path)
    return sorted(found)


def remove_model(name: str, folders: Sequence[Path]) -> list[Path]:
    """Removes the exports of a profile; returns what was removed."""
    gone = versions(folders, name)
    for path in gone:
        shutil.rmtree(path)
    return gone


def known_folders(store: Path) -> list[Path]:
    """The serving folders that a store knows of, whether they are still there or not.

    Raises:
        UserError: The list is damaged.
    """
    path = store / KNOWN
    try:
        return [Path(name) for name in json.loads(path.read_text(encoding="utf-8"))["folders"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete it and name the serving folders with "
            "--serving when a user is forgotten."
        ) from error


def remember_folder(store: Path, folder: Path) -> None:
    """Notes that profiles of a store are exported into a folder; before the first file is."""
    with locked(store):
        known = known_folders(store)
        if folder.absolute() not in known:
            names = sorted(str(path) for path in [*known, folder.absolute()])
            replace_text(store / KNOWN, json.dumps({"folders": names}, indent=1) + "\n")
