"""The lock beside downloaded files: what came from where, and what it hashed to.

One JSON file without a date, so that two downloads of the same files give the same lock.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from chameleon_lib.errors import UserError

LOCK = "lamp_files.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.

    Attributes:
        url: Where it came from; None for a file that was already in place.
        bytes: Its size.
        sha256: Hash of its bytes.
        records: Questions or golds in it.
    """

    url: str | None
    bytes: int
    sha256: str
    records: int


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lock(folder: Path) -> dict[str, Entry]:
    """The entries by path below `folder`; none where there is no lock.

    Raises:
        UserError: The lock is not one of ours.
    """
    path = folder / LOCK
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError("another format")
        entries = {name: Entry(**entry) for name, entry in content["files"].items()}
        sound = all(
            isinstance(e.bytes, int) and isinstance(e.sha256, str) and isinstance(e.records, int)
            for e in entries.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(
            f"{path} is no list of downloaded files that this version can read; delete it, and "
            "the files beside it are checked and recorded again."
        )
    return entries


def write_lock(folder: Path, entries: dict[str, Entry]) -> None:
    """Write the lock, sorted, under a temporary name first."""
    files = {name: asdict(entry) for name, entry in sorted(entries.items())}
    path = folder / LOCK
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        temporary.write_text(
            json.dumps({"format": _FORMAT, "files": files}, indent=1) + "\n", encoding="utf-8"
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
