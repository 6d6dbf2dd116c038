"""What every reader of tables is told and hands out: names of columns, rows, cells as text."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError

SAMPLE = 100  # rows that are looked at before all are read

Record = tuple[int, Sequence[Any]]  # place in the file, and the cells that were asked for


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns, and how their file is written where that cannot be found out.

    Attributes:
        user: Who wrote or judged; ``user.id`` is the field of an object.
        text: Movie description, review, article, or what the user wrote (LaMP-7).
        label: Tag, score, title, or the same in neutral words (LaMP-7).
        time: When. None takes the column that is named like one, "none" the order of the file.
        delimiter: Between the cells of a text table.
        quotes: What quotes are: "double" (as in CSV), "backslash" (``\\"``) or "none" (text).
        encoding: Of the text, such as "windows-1252"; None for UTF-8, or UTF-16 with its mark.
        sheet: Of a workbook.
    """

    user: str = "user"
    text: str = "text"
    label: str = "label"
    time: str | None = None
    delimiter: str | None = None
    quotes: str | None = None
    encoding: str | None = None
    sheet: str | None = None

    @property
    def named(self) -> list[str]:
        """Columns that a table must have."""
        return [self.user, self.text, self.label, *([self.time] if self.time else [])]


@dataclass(frozen=True)
class Source:
    """An open table.

    Attributes:
        names: Its columns, in their order; a name may stand there twice.
        read: Indices of columns -> rows with their cells.
        said: How it was read, in sentences.
        place: What the number of a row counts.
    """

    names: list[str]
    read: Callable[[Sequence[int]], Iterator[Record]]
    said: list[str] = field(default_factory=list)
    place: str = "number"

    def sample(self, index: int) -> list[str]:
        """First cells of a column, as far as they are text or numbers."""
        cells = (plain(cells[0]) for _, cells in islice(self.read([index]), SAMPLE))
        return [cell for cell in cells if isinstance(cell, str)]


def plain(value: Any) -> Any:
    """Text for what is plain; what is not comes back as it is."""
    if isinstance(value, str):
        return " ".join(value.split())
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        # A column of whole numbers with a gap is stored as 4.0; beyond 2**53 digits are lost.
        return str(int(value)) if abs(value) < 2**53 else f"{value:e}"
    if isinstance(value, (int, float, Decimal, uuid.UUID)):
        return " ".join(str(value).split())
    if isinstance(value, list) and len(value) < 2:
        return plain(value[0]) if value else ""
    if isinstance(value, dict) and len(value) == 1:
        return plain(next(iter(value.values())))  # {"$date": …}, {"id": …}
    return value


def cell_text(value: Any, column: str, number: int, path: Path) -> str:
    """A cell as text with white space folded to single blanks.

    Raises:
        UserError: A list, or an object of several fields.
    """
    if type(value) is str:
        return " ".join(value.split())
    text = plain(value)
    if isinstance(text, str):
        return text
    if isinstance(text, dict):
        ways = " or ".join(f"{column}.{key}" for key in list(text)[:3])
        raise UserError(
            f"{path}, row {number} has an object in the column {column!r}; name the field that is "
            f"meant, such as {ways}."
        )
    kind = f"list of {len(text)}" if isinstance(text, list) else type(text).__name__
    raise UserError(
        f"{path}, row {number} has a {kind} in column {column!r}; give plain text or numbers."
    )
