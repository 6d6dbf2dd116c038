"""Read a JSON list of objects one record at a time, in memory bounded by the largest record.

LaMP-3 files reach gigabytes, so `json.load` is no option. The reader keeps one growing text buffer
and lets the standard decoder take one object after the other from it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from chameleon_lib.errors import UserError

CHUNK = 1 << 20  # characters per read
MAX_RECORD = 1 << 26  # characters; far above any real record, stops a runaway string

_BLANKS = " \t\r\n"
# A decoder that runs out of text stops within the last few characters ("\\u12", "tru").
_TAIL = 16


class _Buffer:
    """A window on a text file: `text[at:]` is what has been read but not used."""

    def __init__(self, file: TextIO, path: Path, chunk: int) -> None:
        self.file = file
        self.path = path
        self.chunk = chunk
        self.text = ""
        self.at = 0

    def grow(self) -> bool:
        """Read on, and on by more each time a record does not fit; False at the end of file."""
        rest = self.text[self.at :]
        try:
            more = self.file.read(max(self.chunk, len(rest)))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is not UTF-8 text; download the file again.") from error
        self.text, self.at = rest + more, 0
        return bool(more)

    def peek(self) -> str:
        """Return the next character that is no blank, "" at the end of file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _BLANKS:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""


def _out_of_text(error: json.JSONDecodeError, length: int) -> bool:
    """Tell a record cut by the end of the buffer from a malformed one."""
    return error.msg.startswith("Unterminated string") or error.pos >= length - _TAIL


def _take_object(buffer: _Buffer, index: int) -> dict[str, Any]:
    decoder = json.JSONDecoder()
    while True:
        try:
            value, buffer.at = decoder.raw_decode(buffer.text, buffer.at)
        except json.JSONDecodeError as error:
            if not _out_of_text(error, len(buffer.text)):
                raise UserError(
                    f"{buffer.path}, record number {index} is not valid JSON ({error.msg}); "
                    "download the file again."
                ) from error
            if len(buffer.text) - buffer.at > MAX_RECORD:
                raise UserError(
                    f"{buffer.path}, record number {index} is longer than {MAX_RECORD} "
                    "characters; the file is damaged, download it again."
                ) from error
            if not buffer.grow():
                raise UserError(
                    f"{buffer.path} is cut off inside record number {index}; "
                    "download the file again."
                ) from error
        else:
            return value


def _check_start(path: Path, first: str) -> None:
    if first == "<":
        raise UserError(
            f"{path} holds an HTML page instead of JSON (some wrong addresses answer so); "
            "download the file from its official address."
        )
    if first == "":
        raise UserError(f"{path} is empty; download the file again.")
    if first != "[":
        raise UserError(f"{path} is not a JSON list of samples; give the *_questions.json file.")


def _records(buffer: _Buffer) -> Iterator[dict[str, Any]]:
    """Yield the objects up to and including the closing bracket."""
    path = buffer.path
    if buffer.peek() == "]":
        buffer.at += 1
        return
    for index in itertools.count():
        start = buffer.peek()
        if start != "{":
            what = "holds something that is no object at" if start else "is cut off at"
            raise UserError(f"{path} {what} record number {index}; download the file again.")
        yield _take_object(buffer, index)
        separator = buffer.peek()
        buffer.at += 1
        if separator == "]":
            return
        if separator != ",":
            what = "lacks a comma" if separator else "is cut off"
            raise UserError(f"{path} {what} after record number {index}; download the file again.")


def iter_json_records(path: Path, *, chunk: int = CHUNK) -> Iterator[dict[str, Any]]:
    """Yield the objects of the JSON list in `path`, in file order.

    Args:
        path: A UTF-8 file holding one JSON list of objects.
        chunk: Characters read at a time.

    Raises:
        UserError: The file is missing, empty, HTML, no list, cut off or malformed. Records before
            the damage have been yielded by then.
    """
    try:
        file = path.open(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    with file:
        buffer = _Buffer(file, path, chunk)
        _check_start(path, buffer.peek())
        buffer.at += 1
        yield from _records(buffer)
        if buffer.peek():
            raise UserError(f"{path} holds text after its JSON list; download the file again.")
