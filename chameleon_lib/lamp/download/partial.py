"""The part of a file that has arrived: its bytes, and which version of the file they belong to.

Two files beside the target: ``NAME.partial`` holds bytes, ``NAME.partial.json`` the address, the
version mark of the server and the announced size. A download goes on only from bytes whose
version is known, so that halves of two versions never meet in one file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from chameleon_lib.errors import UserError


class Partial:
    """A file on its way to `target`.

    Args:
        target: Where the whole file will lie.
        url: Where its bytes come from; bytes from elsewhere are dropped.

    Attributes:
        path: The bytes.
        version: What ``If-Range`` needs: a strong ETag or a date; None if the server gave neither.
        total: Announced size in bytes, None if unknown.
    """

    def __init__(self, target: Path, url: str) -> None:
        self.url = url
        self.path = target.with_name(f"{target.name}.partial")
        self._note = target.with_name(f"{target.name}.partial.json")
        self.version: str | None = None
        self.total: int | None = None
        self._file: BinaryIO | None = None

    @contextmanager
    def opened(self) -> Iterator[Partial]:
        """Hold the file for writing; a killed process lets go of it by itself.

        Raises:
            UserError: The folder cannot be written, or another process holds the file.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); give another folder."
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"Another download is writing {self.path}; wait for it or stop it."
                ) from None
            self._file = file
            self._recall()
            try:
                yield self
            finally:
                self._file = None
                if self.size == 0:
                    self.discard()

    def _recall(self) -> None:
        """Take up what an earlier run noted; bytes of unknown origin are dropped."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            known = note["url"] == self.url and isinstance(note["version"], str)
            total = note["total"]
        except (OSError, ValueError, KeyError, TypeError):
            known, total = False, None
        if known and (total is None or self.size <= total):
            self.version, self.total = note["version"], total
        else:
            self.restart(None, None)

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def whole(self) -> bool:
        """Whether as many bytes are here as were announced."""
        return self.total is not None and self.size == self.total

    def restart(self, version: str | None, total: int | None) -> None:
        """Drop all bytes and note which version the next ones belong to."""
        assert self._file is not None
        self._file.truncate(0)
        self.version, self.total = version, total
        note = {"url": self.url, "version": version, "total": total}
        # Before the first byte: a kill in between leaves an empty file of a known version.
        temporary = self._note.with_name(f"{self._note.name}-{os.getpid()}")
        temporary.write_text(json.dumps(note) + "\n", encoding="utf-8")
        os.replace(temporary, self._note)

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            UserError: The disk is full, or does not take them for another reason.
        """
        assert self._file is not None
        try:
            self._file.write(chunk)
            self._file.flush()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); "
                + ("free some space and start again." if full else "check the disk.")
            ) from error

    def discard(self) -> None:
        """Remove both files: their bytes are of no use."""
        for path in (self.path, self._note):
            path.unlink(missing_ok=True)

    def keep(self, target: Path) -> None:
        """Give the whole file its name."""
        with suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, target)
        self._note.unlink(missing_ok=True)
