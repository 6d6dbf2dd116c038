"""Read a table of one's own: rows of (user, text, label, time) from CSV, JSON lines or parquet.

Only the file is judged here; what a row holds is judged in `curation`. Cells come out as text with
white space folded to single blanks, since prompts put one item on one line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_LARGEST_CELL = 1 << 27  # characters; the csv module stops at 131,072 unless told

_Record = tuple[int, dict[str, Any]]  # with its place: line of a text file, row of a parquet file


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns.

    Attributes:
        user: Who wrote or judged.
        text: Movie description (LaMP-2), review (LaMP-3), or what the user wrote (LaMP-7).
        label: Tag (LaMP-2), score (LaMP-3), or the same in neutral words (LaMP-7).
        time: When. None takes the column ``time`` where there is one, else the order of the file.
        delimiter: Between the cells of a text table; None takes a comma (``.tsv``: a tab).
    """

    user: str = "user"
    text: str = "text"
    label: str = "label"
    time: str | None = None
    delimiter: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row; a missing cell is empty.

    Attributes:
        number: Line of a text file (its first), row of a parquet file, from 1.
        user: Cell of the user column.
        text: Cell of the text column.
        label: Cell of the label column.
        time: Cell of the time column.
    """

    number: int
    user: str
    text: str
    label: str
    time: str


def read_rows(path: Path, columns: Columns) -> tuple[list[Row], Columns]:
    """Read all rows of a table.

    Args:
        path: A file named ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.parquet``.
        columns: What its columns are called.

    Returns:
        The rows in file order, and the columns with the time column that is used.

    Raises:
        UserError: The file is missing, of another kind or malformed, lacks a column, or has no row.
    """
    names, records = _records(path, columns)
    wanted = [columns.user, columns.text, columns.label]
    if len({*wanted, columns.time}) < 4:
        raise UserError(f"One column of {path} is named twice among {wanted}; name different ones.")
    time = columns.time or ("time" if "time" in names else None)
    for name in [*wanted, *([time] if time else [])]:
        if names.count(name) != 1:
            what = "several columns" if name in names else "no column"
            raise UserError(
                f"{path} has {what} {name!r} (there are {', '.join(map(repr, names[:20]))}); "
                "name yours (see --help)."
            )
    cells = [*wanted, time]
    rows = [
        Row(number, *(_text(record.get(c), c, number, path) if c else "" for c in cells))
        for number, record in records
    ]
    if not rows:
        raise UserError(f"{path} has no rows; give a table with at least one.")
    return rows, replace(columns, time=time)


def _records(path: Path, columns: Columns) -> tuple[list[str], Iterator[_Record] | list[_Record]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path} is no table that can be read; give one of {', '.join(SUFFIXES)}.")
    try:
        if suffix == ".parquet":
            return _parquet(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); save the table as UTF-8."
        ) from error
    if not text.strip():
        raise UserError(f"{path} is empty; give a table with at least one row.")
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path, text)
    return _delimited(path, text, columns.delimiter or ("\t" if suffix == ".tsv" else ","))


def _delimited(path: Path, text: str, delimiter: str) -> tuple[list[str], list[_Record]]:
    csv.field_size_limit(_LARGEST_CELL)
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise UserError(f"The delimiter is {delimiter!r}; give one character, such as ';'.")
    # Not splitlines: text inside a cell may hold a line separator.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] = []
    records: list[_Record] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise UserError(
                f"{path}, line {number} is no row of a table ({error}); check its quotes."
            ) from error
        if not names:
            names = [cell.strip() for cell in cells]
        elif len(cells) > len(names):
            raise UserError(
                f"{path}, line {number} has {len(cells)} cells under {len(names)} columns; "
                f"quote cells that hold {delimiter!r}."
            )
        elif cells:  # an empty line is no row
            records.append((number, dict(zip(names, cells, strict=False))))
    if len(names) == 1 and (found := [mark for mark in ";\t|," if mark in names[0]]):
        raise UserError(
            f"{path} has one column {names[0]!r}; its cells seem to be divided by {found[0]!r}, "
            f"say so with --delimiter {found[0]!r}."
        )
    return names, records


def _json_lines(path: Path, text: str) -> tuple[list[str], list[_Record]]:
    names: dict[str, None] = {}
    records: list[_Record] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number} is no JSON ({error}); write one object per line."
            ) from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number} is no JSON object; write one object per line.")
        names.update(dict.fromkeys(record))
        records.append((number, record))
    return list(names), records


def _parquet(path: Path) -> tuple[list[str], Iterator[_Record]]:
    # Imported on first use: the package takes a third of a second that no other table needs.
    import pyarrow as arrow
    from pyarrow import parquet

    if not path.is_file():
        raise UserError(f"{path} cannot be read (no such file); check the path.")
    try:
        table = parquet.read_table(path)
    except arrow.ArrowException as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is no parquet file ({reason}); export the table again.") from error
    return table.column_names, _rows_of(table)


def _rows_of(table: Any) -> Iterator[_Record]:
    number = 0
    for batch in table.to_batches():
        for record in batch.to_pylist():
            number += 1
            yield number, record


def _text(value: object, column: str, number: int, path: Path) -> str:
    """A cell as text.

    Raises:
        UserError: A list, an object, or bytes.
    """
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with a gap is stored as 4.0
    if isinstance(value, (str, int, float, Decimal)):
        return " ".join(str(value).split())
    raise UserError(
        f"{path}, row {number} has a {type(value).__name__} in column {column!r}; "
        "give plain text or numbers."
    )
