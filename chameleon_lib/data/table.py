"""From a table of one's own to users: what is read, what is kept, dropped and why, what is asked.

A table has rows of (user, text, label, time). Cells come out as text with white space folded to
single blanks, since prompts put one item on one line. Every row ends up in a history, as a query,
or in the list of what was dropped. The latest rows of a user are the queries, their labels the
golds; everything in the history came before them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from chameleon_lib.core.task import HistoryItem, Query, Task, User, official_input
from chameleon_lib.data import kinds
from chameleon_lib.data.kinds import MISSING, Reading
from chameleon_lib.data.reading import open_table
from chameleon_lib.data.source import Columns, Source, cell_text
from chameleon_lib.data.times import FILE_ORDER, read_times, time_columns
from chameleon_lib.data.users import matching_histories
from chameleon_lib.errors import UserError


class Row(NamedTuple):
    """One row; a missing cell is empty."""

    number: int  # line of a text file (its first), else the row's number, from 1
    user: str
    text: str
    label: str
    time: str


@dataclass(frozen=True)
class Table:
    """A table that was read.

    Attributes:
        rows: In the order of the file.
        columns: With the names as the file has them, and the time column that is used.
        said: How it was read, in sentences.
        place: What the number of a row counts.
    """

    rows: list[Row]
    columns: Columns
    said: list[str]
    place: str


def read_rows(path: Path, columns: Columns) -> Table:
    """Read all rows of a table.

    Args:
        path: A file of `reading.SUFFIXES`, packed or not, or a folder of such files.
        columns: What its columns are called.

    Raises:
        UserError: The file is missing, of another kind or malformed, lacks a column, has several
            that could be meant, or has no row.
    """
    source = open_table(path, columns)
    wanted = [columns.user, columns.text, columns.label]
    if len({*wanted, columns.time}) < 4:
        raise UserError(f"One column of {path} is named twice among {wanted}; name different ones.")
    options = ("--user", "--text", "--label")
    found = [_place(path, source, *pair) for pair in zip(wanted, options, strict=True)]
    time, said = _time_place(path, source, columns.time, found)
    places = found if time is None else [*found, time]
    names = [source.names[place] for place in places]
    rows = []
    for number, values in source.read(places):
        cells = [cell_text(v, c, number, path) for v, c in zip(values, names, strict=True)]
        user, text, label, when = cells if time is not None else (*cells, "")
        rows.append(Row(number, sys.intern(user), text, sys.intern(label), when))
    if not rows:
        raise UserError(f"{path} has no rows; give a table with at least one.")
    taken = dict(zip(("user", "text", "label"), names, strict=False))
    used = replace(columns, **taken, time=None if time is None else source.names[time])
    return Table(rows, used, [*source.said, *said], source.place)


def _place(path: Path, source: Source, name: str, option: str) -> int:
    """Index of a column; its case counts only where two names differ by nothing else."""
    for same in (str, str.casefold):
        found = [i for i, own in enumerate(source.names) if same(own) == same(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{path} has several columns {name!r}; rename all but one, or name another "
                f"({option})."
            )
    raise UserError(
        f"{path} has no column {name!r} (there are {', '.join(map(repr, source.names[:20]))}); "
        f"name yours ({option}, see --help)."
    )


def _time_place(
    path: Path, source: Source, name: str | None, taken: Sequence[int]
) -> tuple[int | None, list[str]]:
    """Index of the column of times, and why it is this one.

    Raises:
        UserError: Several could be meant, or one that may be something else.
    """
    if name == FILE_ORDER and name not in source.names:
        return None, []
    if name is not None or "time" in [own.casefold() for own in source.names]:
        return _place(path, source, name or "time", "--time"), []
    others = [i for i, own in enumerate(source.names)
              if i not in taken and source.names.count(own) == 1]  # fmt: skip
    samples = {source.names[i]: source.sample(i) for i in others}
    sure, perhaps = time_columns(samples)
    if len(sure) == 1:
        return source.names.index(sure[0]), [f"The column {sure[0]!r} is taken for the time."]
    if sure or perhaps:
        several = sure or perhaps
        what = (
            f"{several[0]!r} looks"
            if len(several) == 1
            else f"{', '.join(map(repr, several))} look"
        )
        raise UserError(
            f"{path} has no column 'time', and {what} like times: say --time {several[0]}, or "
            f"--time {FILE_ORDER} if the order of the file is the order of time."
        )
    return None, []


# Why a row is dropped, in the order in which it is checked.
REASONS: dict[str, str] = {
    "no user": "the cell of the user is empty, or a word for nothing",
    "no text": "the cell of the text is empty, or a word for nothing",
    "no label": "the cell of the label is empty, or a word for nothing",
    "unknown label": "the label is none of the task's",
    "score not 1 to 5": "the score is no whole number from 1 to 5, or outside --score-scale",
    "text not storable": "a cell holds half a character (a lone surrogate)",
    "no time": "the cell of the time is empty, or a word for nothing",
    "time unreadable": "the time is none that can be read, or not of --time-format",
    "duplicate": "the user's same text comes again later, with the same label",
    "changed later": "the user's same text comes again later, with another label",
    "no query": "the user has no row with a neutral wording that could be asked",
    "after the queries": "the row came after a query, so it is no history of it",
    "history too short": "too few rows of the user are left for a history and the queries",
    "same as another user": "the history is that of another user, so both count as one person",
}


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
class Facts:
    """What a table holds, whoever of it is kept.

    Attributes:
        ids: Different ids as they are written.
        names: Users that these are, and their number of rows.
        labels: Labels as the task has them, and their number of rows.
        moments: Times that were read, in the order of the file, in nanoseconds since 1970.
        times: How they are written.
        oldest_first: Users whose rows stand from the oldest to the newest.
        newest_first: Users whose rows stand the other way round.
        mixed: Users whose rows stand neither way.
        ties: Rows with the time of another row of their user.
        alike: Users that differ by no more than case, width or leading zeros.
    """

    ids: int
    names: Counter[str]
    labels: Counter[str]
    moments: list[int]
    times: str
    oldest_first: int
    newest_first: int
    mixed: int
    ties: int
    alike: list[list[str]]


@dataclass(frozen=True)
class Curated:
    """What a table gives.

    Attributes:
        users: In order of first appearance; every query has a gold.
        dropped: In file order.
        rewritten: Rows whose label was written another way than the task's ("Comedy", "4.0").
        facts: What the table holds.
        said: How the cells were understood, in sentences.
        questions: What must be answered first; the users are as good as can be without.
    """

    users: list[User]
    dropped: list[Dropped]
    rewritten: int
    facts: Facts
    said: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)


class _Entry(NamedTuple):
    row: Row
    label: str | None
    when: int


def scale_of(task: Task) -> tuple[int, int] | None:
    """Lowest and highest score of a task whose labels are scores."""
    scores = [int(label) for label in task.labels if label.isdecimal()]
    return (min(scores), max(scores)) if scores and len(scores) == len(task.labels) else None


def curate(
    rows: Sequence[Row],
    task: Task,
    *,
    timed: bool,
    min_items: int = 3,
    queries: int = 1,
    time_format: str | None = None,
    score_scale: tuple[float, float] | None = None,
    ids: str = "normal",
    missing: Sequence[str] = MISSING,
    tick: Callable[[int], None] = lambda _: None,
) -> Curated:
    """Make users of rows.

    Args:
        rows: Rows in file order.
        task: The task that the texts and labels belong to.
        timed: Order a user's rows by their time; otherwise the order of the file counts as the
            order of time. It breaks ties, too: backwards in a file that runs from new to old.
        min_items: Smallest history, after the queries are held out.
        queries: Queries per user: the latest rows (LaMP-7: the latest with a neutral wording).
        time_format: How times are written, as in ``datetime.strptime``.
        score_scale: Scale of the scores; see `kinds.read_scores`.
        ids: Which ids are one user; see `kinds.read_ids`.
        missing: Words that mean an empty cell.
        tick: Called with the number of rows that were judged.
    """
    words: dict[str, Counter[str]] = {"user": Counter(), "text": Counter(), "label": Counter()}
    nothing = frozenset(missing)

    def column(name: str) -> list[str]:
        place, count = Row._fields.index(name), words.setdefault(name, Counter())
        cells = [str(row[place]) for row in rows]
        for at, cell in enumerate(cells):
            if cell in nothing:
                count[cell] += 1
                cells[at] = ""
        return cells

    names = kinds.read_ids(column("user"), ids, "user")
    texts, labels = column("text"), _labels(column("label"), task, score_scale)
    times: Reading[int] = Reading([0] * len(rows), [])
    if timed:
        times = read_times(column("time"), time_format)
    dropped: list[Dropped] = []
    own: dict[str, list[_Entry]] = {}
    rewritten = 0
    for at, row in enumerate(rows):
        name, label, when = names.values[at], labels.values[at], times.values[at]
        reason = _unusable(row, task, name, texts[at], label, nothing)
        if reason or name is None or when is None:
            late = "no time" if not row.time or row.time in nothing else "time unreadable"
            dropped.append(_dropped(row, reason or late, _detail(row, reason or late)))
            continue
        rewritten += bool(task.labels) and label != row.label
        own.setdefault(name, []).append(_Entry(row, label, when))
        tick(1)
    orders = Counter(_order(entries) for entries in own.values())
    backwards = orders["newest first"] > 0 and not orders["oldest first"] and not orders["mixed"]
    users: list[User] = []
    numbers: dict[str, list[int]] = {}
    ties = 0
    for user, entries in own.items():
        if backwards:
            entries.reverse()
        entries.sort(key=lambda entry: entry.when)
        ties += (
            sum(a.when == b.when for a, b in zip(entries, entries[1:], strict=False))
            if timed
            else 0
        )
        history, asked = _held_out(_latest(entries, dropped), queries, dropped)
        if len(asked) < queries or len(history) < min_items:
            reason = "history too short" if asked or task.label_key else "no query"
            needed = f"{len(history) + len(asked)} rows, {min_items} + {queries} needed"
            dropped += [_dropped(e.row, reason, needed) for e in (*history, *asked)]
            continue
        users.append(_user(task, user, history, asked, queries * len(users)))
        numbers[user] = [entry.row.number for entry in (*history, *asked)]
    users = _distinct(users, numbers, dropped)
    said = [*names.said, *labels.said, *times.said]
    if any(words.values()):
        shown = "; ".join(
            f"{name}: " + ", ".join(f"{word} {n}" for word, n in count.most_common())
            for name, count in words.items() if count
        )  # fmt: skip
        said.append(f"Words for nothing count as empty ({shown}); --missing '' takes them as text.")
    known = Counter(name for name in names.values if name is not None)
    facts = Facts(
        ids=len({row.user for row in rows if row.user and row.user not in nothing}),
        names=known,
        labels=Counter(label for label in labels.values if label is not None),
        moments=[when for when in times.values if when is not None] if timed else [],
        times=times.kind,
        oldest_first=orders["oldest first"],
        newest_first=orders["newest first"],
        mixed=orders["mixed"],
        ties=ties,
        alike=kinds.look_alikes(list(known)),
    )
    return Curated(
        users, sorted(dropped, key=lambda d: (d.row, d.reason)), rewritten, facts, said,
        [q for q in (names.question, labels.question, times.question) if q],
    )  # fmt: skip


def _labels(
    cells: Sequence[str], task: Task, score_scale: tuple[float, float] | None
) -> Reading[str]:
    """Labels as the task has them; None for an empty or a foreign one."""
    scale = scale_of(task)
    if scale is not None:
        return kinds.read_scores(cells, scale, score_scale)
    if score_scale is not None:
        raise UserError(f"--score-scale is for tasks with scores; {task.name} has none.")
    read = cache(task.read_label or str)
    return Reading([read(cell) if cell else None for cell in cells], [])


def _order(entries: Sequence[_Entry]) -> str:
    """How the rows of a user stand in the file; nothing where all have one time."""
    pairs = list(zip(entries, entries[1:], strict=False))
    rises, falls = (any(a.when < b.when for a, b in pairs), any(a.when > b.when for a, b in pairs))
    if rises and falls:
        return "mixed"
    return "oldest first" if rises else "newest first" if falls else ""


def _dropped(row: Row, reason: str, detail: str = "") -> Dropped:
    clean = detail.encode("utf-8", "backslashreplace").decode("utf-8")
    user = row.user.encode("utf-8", "backslashreplace").decode("utf-8")
    return Dropped(row.number, user, reason, clean[:80])


def _detail(row: Row, reason: str) -> str:
    if reason in ("unknown label", "score not 1 to 5"):
        return row.label
    return {"no text": "", "time unreadable": row.time}.get(reason, row.text)


def _unusable(
    row: Row, task: Task, name: str | None, text: str, label: str | None, nothing: frozenset[str]
) -> str:
    """Why one row by itself cannot be used; empty where it can, but for its time."""
    if name is None:
        return "no user"
    if not text:
        return "no text"
    if task.label_key is not None and label is None:
        return "no label" if not row.label or row.label in nothing else task.label_refusal
    try:
        (row.user + row.text + row.label).encode("utf-8")
    except UnicodeEncodeError:
        return "text not storable"
    return ""


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
