"""Text tables: cells between delimiters, and what quotes and backslashes mean in them.

Delimiter and quotes are found from the header and from what every meaning would make of the rows.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chameleon_lib.data.source import Columns, Record, Source
from chameleon_lib.errors import UserError

QUOTES = ("double", "backslash", "none")
_LARGEST_CELL = 1 << 27  # characters; the csv module stops at 131,072 unless told


def read_delimited(path: Path, text: str, usual: str, columns: Columns) -> Source:
    """Open a text table.

    Args:
        path: Its file, for the sentences.
        text: All of it.
        usual: What divides the cells of such files, if nothing else is found or said.
        columns: Names of the columns, and what is said of delimiter and quotes.

    Raises:
        UserError: No delimiter, or quotes that can be read in two ways. Reading its rows raises it
            for a row with too many cells, or a quote where none may stand.
    """
    csv.field_size_limit(_LARGEST_CELL)
    said: list[str] = []
    if "\r" in text:  # inside a cell it is no end of a line, in old files it is the only one
        text = re.sub(r"\r(?!\n)", " " if "\n" in text else "\n", text)
    declared, skipped = None, 0
    if mark := re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE):  # a line for Excel alone
        declared, skipped, text = mark[1], 1, text[mark.end() :]
    delimiter = _one_character(columns.delimiter) or declared or _delimiter(text, usual, columns)
    if delimiter != usual:
        said.append(f"Cells are divided by {delimiter!r}.")
    lines = _Lines(path, text, delimiter, skipped)
    quotes = columns.quotes or lines.quotes_found()
    if quotes == "backslash":
        lines = replace(lines, text=_unescaped(text))
    if quotes != "double":
        what = {"none": "Quotes are part of the text", "backslash": "A backslash escapes quotes"}
        said.append(f"{what[quotes]} (--quotes {quotes}).")
    names = [cell.strip() for cell in lines.header()]

    def read(wanted: Sequence[int]) -> Iterator[Record]:
        for number, cells in lines.rows(quotes):
            yield number, [cells[i] if i < len(cells) else "" for i in wanted]

    return Source(names, read, said, "line in the file")


def _one_character(delimiter: str | None) -> str | None:
    if delimiter is None:
        return None
    found = {"\\t": "\t", "tab": "\t"}.get(delimiter.lower(), delimiter)
    if len(found) != 1 or found in '\r\n"':
        raise UserError(f"The delimiter is {delimiter!r}; give one character, such as ';'.")
    return found


def _delimiter(text: str, usual: str, columns: Columns) -> str:
    """What divides the header into the columns that are wanted, else into most names."""
    header = text.lstrip("\r\n").split("\n", 1)[0].rstrip("\r")
    wanted = {name.casefold() for name in columns.named}
    best, most = usual, (0, 0)
    for mark in dict.fromkeys([usual, *",;\t|\x01"]):
        names = [n.strip().casefold() for n in next(csv.reader([header], delimiter=mark), [])]
        found = (len(wanted & {name.strip('"') for name in names}), len(names))
        if found > most and found != (0, 1):
            best, most = mark, found
    return best


def _unescaped(text: str) -> str:
    """Text whose quotes are escaped by a backslash, with quotes doubled instead."""
    meant = {'"': '""', "\\": "\\", "n": " ", "r": " ", "t": " ", "\n": " "}
    return re.sub(r"\\(.)", lambda m: meant.get(m[1], m[0]), text, flags=re.DOTALL)


@dataclass(frozen=True)
class _Lines:
    """A text table: what its rows are under each meaning of quotes."""

    path: Path
    text: str
    delimiter: str
    skipped: int

    def _lines(self) -> Iterator[str]:
        # Not splitlines: text inside a cell may hold a line separator.
        at = 0
        while (end := self.text.find("\n", at) + 1) > 0:
            yield self.text[at:end]
            at = end
        if at < len(self.text):
            yield self.text[at:]

    def _cells(self, quotes: str) -> Iterator[tuple[int, int, list[str]]]:
        """First and last line of every row, and its cells.

        Raises:
            csv.Error: A quote stands where none may.
        """
        quoting: Any = csv.QUOTE_NONE if quotes == "none" else csv.QUOTE_MINIMAL
        reader = csv.reader(self._lines(), delimiter=self.delimiter, strict=True,
                            skipinitialspace=True, quoting=quoting)  # fmt: skip
        number = 1
        for cells in reader:
            if cells:  # an empty line is no row
                yield number + self.skipped, reader.line_num + self.skipped, cells
            number = reader.line_num + 1

    def header(self) -> list[str]:
        try:
            return next(self._cells("double"), (0, 0, [""]))[2]
        except csv.Error:
            return next(self._cells("none"), (0, 0, [""]))[2]

    def rows(self, quotes: str) -> Iterator[tuple[int, list[str]]]:
        """Rows behind the header with the number of their first line.

        Raises:
            UserError: A row with too many cells, or a quote where none may stand.
        """
        width, last = 0, self.skipped
        try:
            for number, end, cells in self._cells(quotes):
                last = end
                if not width:
                    width = len(cells)
                    continue
                if len(cells) > width and any(cell.strip() for cell in cells[width:]):
                    raise UserError(
                        f"{self.path}, line {number} has {len(cells)} cells under {width} columns; "
                        f"quote cells that hold {self.delimiter!r}, or say what divides them "
                        "(--delimiter) and what quotes are (--quotes)."
                    )
                yield number, cells
        except csv.Error as error:
            raise self._refused(last + 1, str(error)) from error

    def _refused(self, line: int, why: str) -> UserError:
        return UserError(
            f"{self.path}, line {line} is no row of a table ({why}); check its quotes, or say "
            "--quotes none if they are part of the text, --quotes backslash if it escapes them."
        )

    def quotes_found(self) -> str:
        """The meaning of quotes under which no row is lost.

        Raises:
            UserError: Several give different rows and neither is surely right.
        """
        if '"' not in self.text:
            return "double"
        problem, swallowed, width = "", 0, 0
        try:
            for number, end, cells in self._cells("double"):
                width = width or len(cells)
                if end > number and self._swallows(cells, width):
                    swallowed = swallowed or number
        except csv.Error as error:
            problem = str(error)
        if not problem and not swallowed:
            return "double"
        if problem and '\\"' in self.text:
            try:
                other = replace(self, text=_unescaped(self.text))
                widths = {len(cells) for _, _, cells in other._cells("double")}
                if len(widths) == 1:
                    return "backslash"
            except csv.Error:
                pass
        plain = {len(cells) for _, _, cells in self._cells("none")} == {width}
        if plain and self.delimiter not in ",;":  # a raw dump: its delimiter is never in a text
            return "none"
        if plain and swallowed:
            raise UserError(
                f"{self.path}, line {swallowed} opens a quote that closes lines later, and each of "
                "these lines could be a row: say --quotes none if quotes are part of the text, or "
                "--quotes double if a cell holds these lines."
            )
        return "double"  # and what is wrong with it is said while it is read

    def _swallows(self, cells: list[str], width: int) -> bool:
        """Whether each line of a row would be a whole row without quotes."""
        lines = self.delimiter.join(cells).splitlines()
        return all(line.count(self.delimiter) == width - 1 for line in lines)
