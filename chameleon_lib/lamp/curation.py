"""From rows of a table to users: what is kept, what is dropped and why, what is asked.

Every row ends up in a history, as a query, or in the list of what was dropped. The latest rows of a
user are the queries, their labels the golds; everything in the history came before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from chameleon_lib.lamp.history_table import Row
from chameleon_lib.lamp.records import HistoryItem, Query, User
from chameleon_lib.lamp.tasks import Task, official_input, parse_score
from chameleon_lib.lamp.users import matching_histories

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
            reason = "history too short" if asked or task.labels else "no query"
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
    if task.labels:
        if label is None:
            return _dropped(row, "no label", row.text)
        label = _own_label(task, row.label)
        if label is None:
            scores = task.name == "LaMP_3"
            return _dropped(row, "score not 1 to 5" if scores else "unknown label", row.label)
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


def _own_label(task: Task, text: str) -> str | None:
    """The task's spelling of a label: tags ignoring case, scores as whole numbers."""
    if task.name == "LaMP_3":
        value = parse_score(text)
        return str(int(value)) if value in (1, 2, 3, 4, 5) and value is not None else None
    return text.lower() if text.lower() in task.labels else None


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
    # Official ids: task number - 1, split digit (1 for dev), running index.
    stem = f"{int(task.name[-1]) - 1}1"
    items = tuple(
        HistoryItem(f"{stem}{offset}{i}", e.row.text, e.label if task.labels else None)
        for i, e in enumerate(history)
    )
    made = []
    for index, entry in enumerate(asked, start=offset):
        # LaMP-7 asks with the neutral wording for what the user wrote.
        shown, gold = entry.row.text, str(entry.label)
        if not task.labels:
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
