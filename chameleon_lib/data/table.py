"""From a table of one's own to users: what is read, what is kept, dropped and why, what is asked.

A table has rows of (user, text, label, time), as CSV, JSON lines or parquet. Cells come out as text
with white space folded to single blanks, since prompts put one item on one line. Every row ends up
in a history, as a query, or in the list of what was dropped. The latest rows of a user are the
queries, their labels the golds; everything in the history came before them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from chameleon_lib.core.task import HistoryItem, Query, Task, User, official_input
from chameleon_lib.data.users import matching_histories
from chameleon_lib.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_LARGEST_CELL = 1 << 27  # characters; the csv module stops at 131,072 unless told

_Record = tuple[int, dict[str, Any]]  # with its place: line of a text file, row of a parquet file


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns.

    Attributes:
        user: Who wrote or judged.
        text: Movie description, review, article, or what the user wrote (LaMP-7).
        label: Tag, score, title, or the same in neutral words (LaMP-7).
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
    rows = (record for batch in table.to_batches() for record in batch.to_pylist())
    return table.column_names, enumerate(rows, start=1)


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


# Why a row is dropped, in the order in which it is checked.
REASONS: dict[str, str] = {
    "no user": "the cell of the user is empty",
    "no text": "the cell of the text is empty",
    "no label": "the cell of the label is empty",
    "unknown label": "the label is none of the task's",
    "score not 1 to 5": "the score is no whole number from 1 to 5",
    "text not storable": "a cell holds half a character (a lone surrogate)",
    "no time": "the cell of the time is empty",
    "time unreadable": "the time is neither ISO 8601 nor Unix seconds, nor of --time-format",
    "duplicate": "the user's same text comes again later, with the same label",
    "changed later": "the user's same text comes again later, with another label",
    "no query": "the user has no row with a neutral wording that could be asked",
    "after the queries": "the row came after a query, so it is no history of it",
    "history too short": "too few rows of the user are left for a history and the queries",
    "same as another user": "the history is that of another user, so both count as one person",
}
_MILLISECONDS = 1e11  # Unix seconds reach this in the year 5138; larger ones are milliseconds


@dataclass(frozen=True, slots=True)
class Dropped:
    """One row that is not used: its number, its user, a key of REASONS, and what it held."""

    row: int
    user: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"row {self.row}" + (f": {self.detail!r}" if self.detail else "")


@dataclass(frozen=True)
class Curated:
    """What a table gives.

    Attributes:
        users: In order of first appearance, named as in the table; every query has a gold.
        dropped: In file order.
        rewritten: Rows whose label was written another way than the task's ("Comedy", "4.0").
    """

    users: list[User]
    dropped: list[Dropped]
    rewritten: int


@dataclass(frozen=True, slots=True)
class _Entry:
    row: Row
    label: str | None
    when: float


def curate(
    rows: Iterable[Row],
    task: Task,
    *,
    timed: bool,
    min_items: int = 3,
    queries: int = 1,
    time_format: str | None = None,
) -> Curated:
    """Make users of rows.

    Args:
        rows: Rows in file order.
        task: The task that the texts and labels belong to.
        timed: Order a user's rows by their time (file order breaks ties); otherwise the order of
            the file counts as the order of time.
        min_items: Smallest history, after the queries are held out.
        queries: Queries per user: the latest rows (LaMP-7: the latest with a neutral wording).
        time_format: How times are written, as in ``datetime.strptime``.
    """
    dropped: list[Dropped] = []
    own: dict[str, list[_Entry]] = {}
    rewritten = 0
    for row in rows:
        found = _checked(row, task, timed, time_format)
        if isinstance(found, Dropped):
            dropped.append(found)
            continue
        rewritten += bool(task.labels) and found.label != row.label
        own.setdefault(row.user, []).append(found)
    users: list[User] = []
    numbers: dict[str, list[int]] = {}
    for user, entries in own.items():
        entries.sort(key=lambda entry: entry.when)  # stable: the file's order breaks ties
        history, asked = _held_out(_latest(entries, dropped), queries, dropped)
        if len(asked) < queries or len(history) < min_items:
            reason = "history too short" if asked or task.label_key else "no query"
            needed = f"{len(history) + len(asked)} rows, {min_items} + {queries} needed"
            dropped += [_dropped(e.row, reason, needed) for e in (*history, *asked)]
            continue
        users.append(_user(task, user, history, asked, queries * len(users)))
        numbers[user] = [entry.row.number for entry in (*history, *asked)]
    users = _distinct(users, numbers, dropped)
    return Curated(users, sorted(dropped, key=lambda d: (d.row, d.reason)), rewritten)


def _dropped(row: Row, reason: str, detail: str = "") -> Dropped:
    clean = detail.encode("utf-8", "backslashreplace").decode("utf-8")
    user = row.user.encode("utf-8", "backslashreplace").decode("utf-8")
    return Dropped(row.number, user, reason, clean[:80])


def _checked(row: Row, task: Task, timed: bool, time_format: str | None) -> _Entry | Dropped:
    """One row by itself."""
    if not row.user:
        return _dropped(row, "no user", row.text)
    if not row.text:
        return _dropped(row, "no text")
    label: str | None = row.label or None
    if task.label_key is not None:
        if label is None:
            return _dropped(row, "no label", row.text)
        label = task.read_label(label) if task.read_label is not None else label
        if label is None:
            return _dropped(row, task.label_refusal, row.label)
    try:
        (row.user + row.text + row.label).encode("utf-8")
    except UnicodeEncodeError:
        return _dropped(row, "text not storable", row.text)
    if not timed:
        return _Entry(row, label, 0.0)
    if not row.time:
        return _dropped(row, "no time", row.text)
    when = read_time(row.time, time_format)
    return _dropped(row, "time unreadable", row.time) if when is None else _Entry(row, label, when)


def read_time(text: str, time_format: str | None = None) -> float | None:
    """Seconds since 1970; None where the text is no time.

    Args:
        text: ISO 8601 (2024-03-31, 2024-03-31T18:05:00+02:00, 20240331), or Unix seconds or
            milliseconds of at least nine digits. Times without a zone count as UTC.
        time_format: Read this format of ``datetime.strptime`` instead.
    """
    try:
        if time_format is not None:
            read = datetime.strptime(text, time_format)
        elif len(digits := text.partition(".")[0].removeprefix("-")) >= 9 and digits.isdecimal():
            number = float(text)
            seconds = number if abs(number) < _MILLISECONDS else number / 1000
            return seconds if abs(seconds) < _MILLISECONDS else None
        else:
            read = datetime.fromisoformat(text)
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _latest(entries: Sequence[_Entry], dropped: list[Dropped]) -> list[_Entry]:
    """Of rows with one text the latest: what the user said last counts."""
    last = {entry.row.text: entry for entry in entries}
    kept = []
    for entry in entries:
        final = last[entry.row.text]
        if entry is final:
            kept.append(entry)
        else:
            reason = "duplicate" if entry.label == final.label else "changed later"
            dropped.append(_dropped(entry.row, reason, f"row {final.row.number} counts"))
    return kept


def _held_out(
    entries: Sequence[_Entry], queries: int, dropped: list[Dropped]
) -> tuple[list[_Entry], list[_Entry]]:
    """History and queries of one user, both in order of time."""
    can_ask = [i for i, entry in enumerate(entries) if entry.label is not None][-queries:]
    if not can_ask:
        return list(entries), []
    later = [e for i, e in enumerate(entries) if i > can_ask[0] and i not in can_ask]
    dropped += [_dropped(e.row, "after the queries", e.row.text) for e in later]
    return list(entries[: can_ask[0]]), [entries[i] for i in can_ask]


def _user(
    task: Task, name: str, history: Sequence[_Entry], asked: Sequence[_Entry], offset: int
) -> User:
    # As official ids: digit of the task, of the split (1 for dev), running index.
    stem = f"{task.official.first_digit}1"
    items = tuple(
        HistoryItem(f"{stem}{offset}{i}", e.row.text, e.label if task.label_key else None)
        for i, e in enumerate(history)
    )
    made = []
    for index, entry in enumerate(asked, start=offset):
        # Where the text itself is the user's, its neutral wording asks for it (LaMP-7).
        shown, gold = entry.row.text, str(entry.label)
        if task.label_key is None:
            shown, gold = gold, shown
        made.append(Query(f"{stem}{index}", shown, official_input(task, shown), gold))
    return User(name, task.name, items, tuple(made))


def _distinct(
    users: Sequence[User], numbers: dict[str, list[int]], dropped: list[Dropped]
) -> list[User]:
    """Drop users whom the kit would take for an earlier one: no user may fit and be scored."""
    gone: set[int] = set()
    for i, j in sorted(matching_histories(users)):
        if i not in gone and j not in gone:
            gone.add(j)
            detail = f"user {users[i].id}"[:80]
            name = users[j].id
            dropped += [Dropped(n, name, "same as another user", detail) for n in numbers[name]]
    return [user for j, user in enumerate(users) if j not in gone]
