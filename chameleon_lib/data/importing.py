"""Your own users as LaMP files: ``python -m chameleon_lib data import TABLE --task T --to DIR``.

The files hold one split, ``dev``, with golds; a run divides its users by a hash of their names.
Beside them lies the report: what was kept, and every dropped row with its reason.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from chameleon_lib.core.task import Task, get_task
from chameleon_lib.data.kinds import MISSING, parse_scale
from chameleon_lib.data.lamp import IMPORT_REPORT, write_lamp
from chameleon_lib.data.metrics import without_tokens
from chameleon_lib.data.source import Columns
from chameleon_lib.data.table import REASONS, Curated, curate, read_rows
from chameleon_lib.data.times import date_text
from chameleon_lib.errors import UserError
from chameleon_lib.kit.progress import Progress

SPLIT = "dev"
REPORT = IMPORT_REPORT
DROPPED = "import_dropped.csv"


@dataclass(frozen=True)
class ImportOptions:
    """How a table is read and divided.

    Attributes:
        columns: Names of its columns, and how its file is written.
        min_items: Smallest history of a user.
        queries: Latest rows per user that are held out as queries.
        time_format: Format of the times, as in ``datetime.strptime``; None finds it out.
        score_scale: LOW,HIGH of the scores, mapped onto the task's; empty for the task's own.
        ids: Which ids are one user: "normal", "folded" or "exact"; see `kinds.read_ids`.
        missing: Words for nothing, with commas between; None for the usual ones.
    """

    columns: Columns = field(default_factory=Columns)
    min_items: int = 3
    queries: int = 1
    time_format: str | None = None
    score_scale: str = ""
    ids: str = "normal"
    missing: str | None = None

    def with_words(self, words: str) -> ImportOptions:
        """The same with options as the command line has them: ``--score-scale 1,10 --ids exact``.

        Raises:
            UserError: No such option.
        """
        named = {
            f"--{f.name.replace('_', '-')}": f.name for f in fields(Columns) if f.default is None
        }
        own = {
            f"--{name.replace('_', '-')}": name
            for name in ("time_format", "score_scale", "ids", "missing")
        }
        parts = shlex.split(words)
        pairs = list(zip(parts[::2], parts[1::2], strict=False))
        wrong = [name for name, _ in pairs if name not in named and name not in own]
        if wrong or len(parts) % 2:
            raise UserError(
                f"{(wrong or parts)[-1]!r} is no option of a table with its value; give some of "
                f"{', '.join([*named, *own])}, each with a value behind it."
            )
        columns = replace(self.columns, **{named[n]: v for n, v in pairs if n in named})
        changed: dict[str, Any] = {own[n]: v for n, v in pairs if n in own}
        return replace(self, columns=columns, **changed)


@dataclass(frozen=True)
class ImportReport:
    """The account of one import; rows kept and rows dropped are all rows.

    Attributes:
        source: Name of the table.
        sha256: Hash of its content.
        task: Task.
        options: How it was read, with the columns that were used.
        rows: Rows of the table.
        place: What the number of a row counts.
        said: How the file was read, in sentences.
        curated: Users, and what was dropped.
    """

    source: str
    sha256: str
    task: Task
    options: ImportOptions
    rows: int
    place: str
    said: list[str]
    curated: Curated

    def _counts(self) -> dict[str, int]:
        users = self.curated.users
        return {
            "users": len(users),
            "history_items": sum(len(user.history) for user in users),
            "queries": sum(len(user.queries) for user in users),
        }

    def rules(self) -> list[str]:
        """How the table was understood and what was done to its rows, in sentences."""
        time, own_text = self.options.columns.time, self.task.label_key is None
        facts = self.curated.facts
        order = "There is no column of times, so the order of the file counts as order of time."
        if time:
            order = (
                f"A user's rows are ordered by the column {time!r} ({facts.times}; times without a "
                f"zone count as UTC); {facts.ties} rows share the time of another, and stand as "
                f"the file has them{' from its end' if _backwards(self.curated) else ''}."
            )
        asked = "rows with a neutral wording" if own_text else "rows"
        gold = "text is the gold of its wording" if own_text else "label is its gold"
        n, least = self.options.queries, self.options.min_items
        return [
            *self.understood(),
            f"A row is named by its {self.place}.",
            order,
            f"The latest {n} {asked} of a user are the queries; each one's {gold}.",
            f"A history has at least {least} items, all earlier than the queries.",
            "White space in cells is folded to single blanks; of a user's same texts the latest "
            "counts.",
            f"Labels written another way (case, 4.0) and taken: {self.curated.rewritten}.",
            "User ids stand in the files as they stand here: do not pass the files on if the ids "
            "or the texts name people.",
        ]

    def understood(self) -> list[str]:
        """What a reader of the table decided where it could have been otherwise, in sentences."""
        golds = [str(q.gold) for user in self.curated.users for q in user.queries]
        mute = without_tokens(self.task, golds)
        return [*self.said, *self.curated.said, *([mute] if mute else [])]

    def summary(self) -> list[dict[str, str | int]]:
        """One row per reason that occurred: rows, users and the first case."""
        by_reason = {
            reason: [drop for drop in self.curated.dropped if drop.reason == reason]
            for reason in REASONS
        }
        return [
            {
                "reason": reason,
                "rows": len(part),
                "users": len({drop.user for drop in part}),
                "first": str(part[0]),
                "meaning": REASONS[reason],
            }
            for reason, part in by_reason.items()
            if part
        ]

    def kept(self) -> str:
        """What was kept, in one sentence."""
        n, facts = self._counts(), self.curated.facts
        return (
            f"{self.source}: {self.rows} rows of {facts.ids} ids, {len(facts.names)} users after "
            f"normalisation; kept {n['history_items']} history items and {n['queries']} queries of "
            f"{n['users']} users, dropped {len(self.curated.dropped)} rows."
        )

    def text(self) -> str:
        """The report as it is printed."""
        rows = [(str(r["reason"]), r["rows"], r["users"], r["first"]) for r in self.summary()]
        table = [("dropped because", "rows", "users", "first case"), *rows] if rows else []
        wide = max((len(row[0]) for row in table), default=0)
        shown = [f"  {a:<{wide}}  {n:>4}  {users:>5}  {first}" for a, n, users, first in table]
        shown += [""] if shown else []
        return "\n".join([self.kept(), "", *shown, *(f"- {rule}" for rule in self.rules())])

    def json_text(self) -> str:
        """The report as JSON."""
        record = {
            "source": self.source,
            "sha256": self.sha256,
            "task": self.task.name,
            **asdict(self.options),
            "rows": self.rows,
            "ids_in_table": self.curated.facts.ids,
            "users_in_table": len(self.curated.facts.names),
            "kept": self._counts(),
            "dropped_rows": len(self.curated.dropped),
            "dropped": self.summary(),
            "rules": self.rules(),
        }
        return json.dumps(record, indent=1, ensure_ascii=False) + "\n"

    def csv_text(self) -> str:
        """Every dropped row as CSV, in which a spreadsheet takes no cell for a formula."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["row", "user", "reason", "detail"])
        writer.writerows(
            [d.row, _dead(d.user), d.reason, _dead(d.detail)] for d in self.curated.dropped
        )
        return buffer.getvalue()

    def picture(self) -> str:
        """What the table holds, before anything is done with it."""
        facts, drops = self.curated.facts, Counter(d.reason for d in self.curated.dropped)
        sizes = list(facts.names.values())
        lines = [
            self.kept(), "",
            f"users    {facts.ids} ids as written, {len(sizes)} after normalisation",
            f"rows     per user {min(sizes, default=0)} to {max(sizes, default=0)}, median "
            f"{sorted(sizes)[len(sizes) // 2] if sizes else 0}  {_spark(sizes)}",
        ]  # fmt: skip
        if facts.alike:
            shown = "; ".join(", ".join(map(repr, group)) for group in facts.alike[:3])
            lines.append(f"alike    {len(facts.alike)} groups of ids: {shown}")
        if facts.moments:
            ends = " to ".join(date_text(f(facts.moments)) for f in (min, max))
            lines += [
                f"times    {self.options.columns.time} ({facts.times}): {ends}  "
                f"{_spark(facts.moments)}",
                f"order    oldest first for {facts.oldest_first} users, newest first for "
                f"{facts.newest_first}, mixed for {facts.mixed}; {facts.ties} rows share a time",
            ]
        else:
            lines.append("times    none: the order of the file counts")
        twice = drops["duplicate"] + drops["changed later"]
        lines.append(f"twice    {twice} rows have a text that its user wrote again later")
        if self.task.labels:
            counts = {name: facts.labels[name] for name in self.task.labels if facts.labels[name]}
            unit = max(counts.values(), default=1) / 30
            lines += ["labels", *(f"  {name:<20}{n:>7}  {'█' * round(n / unit)}"
                                  for name, n in counts.items())]  # fmt: skip
        left = [f"  {r['reason']:<22}{r['rows']:>7}  first {r['first']}" for r in self.summary()]
        lines += ["dropped", *(left or ["  nothing"]), "", *(f"- {rule}" for rule in self.rules())]
        if self.curated.questions:
            lines += ["", *(f"? {question}." for question in self.curated.questions)]
        return "\n".join([*lines, "", *_WAYS])


# What changes how a table is read, for those who see that it was read wrongly.
_WAYS = (
    "read otherwise by: --user, --text, --label, --time (a column, 'none' for the order of the",
    "file), --time-format, --score-scale LOW,HIGH, --ids normal|folded|exact, --missing WORDS,",
    "--delimiter, --quotes double|backslash|none, --encoding, --sheet, --queries, --min-items",
)
_BARS = "▁▂▃▄▅▆▇█"


def _spark(values: Sequence[int], bins: int = 24) -> str:
    """A histogram of numbers in one line."""
    low, high = min(values, default=0), max(values, default=0)
    if low == high:
        return ""
    counts = Counter((value - low) * bins // (high - low + 1) for value in values)
    most = max(counts.values())
    return "".join(
        _BARS[-(-counts[i] * (len(_BARS) - 1) // most)] if counts[i] else " " for i in range(bins)
    )


def _dead(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(tuple("=+-@\t\r|")) else cell


def _backwards(curated: Curated) -> bool:
    facts = curated.facts
    return facts.newest_first > 0 and not facts.oldest_first and not facts.mixed


def read_table(table: Path, task_name: str, options: ImportOptions | None = None) -> ImportReport:
    """Read and judge a table; nothing is written.

    Args:
        table: A file or folder of any shape that `reading` knows.
        task_name: Task that its texts and labels belong to.
        options: How it is read and divided.

    Raises:
        UserError: The file cannot be read, can be read in several ways, or no user is left.
    """
    report = look_at(table, task_name, options)
    curated = report.curated
    if curated.questions:
        raise UserError(f"{table} is not read yet: {curated.questions[0]}.")
    if not curated.users:
        reason, count = Counter(drop.reason for drop in curated.dropped).most_common(1)[0]
        first = next(drop for drop in curated.dropped if drop.reason == reason)
        raise UserError(
            f"{table} leaves no user for {report.task.name}: of {report.rows} rows, {count} rows: "
            f"{REASONS[reason]}, first {first}; check the columns and the task."
        )
    return report


def look_at(table: Path, task_name: str, options: ImportOptions | None = None) -> ImportReport:
    """Read a table as far as can be, with its questions in the report.

    Raises:
        UserError: The file cannot be read.
    """
    options = options or ImportOptions()
    task, scale = get_task(task_name), parse_scale(options.score_scale)
    if not task.importable:
        raise UserError(
            f"{task.name} asks about more than a table of users, texts and labels holds; give its "
            "official files to --data."
        )
    found = read_rows(table, options.columns)
    if options.time_format is not None and found.columns.time is None:
        raise UserError(f"{table} has no column of times to read; name it with --time.")
    words = MISSING if options.missing is None else tuple(options.missing.split(","))
    with Progress("rows judged", len(found.rows)) as progress:
        curated = curate(
            found.rows, task, timed=found.columns.time is not None, min_items=options.min_items,
            queries=options.queries, time_format=options.time_format, score_scale=scale,
            ids=options.ids, missing=words, tick=progress.advance,
        )  # fmt: skip
    return ImportReport(
        source=table.name,
        sha256=_sha256(table),
        task=task,
        options=replace(options, columns=found.columns),
        rows=len(found.rows),
        place=found.place,
        said=found.said,
        curated=curated,
    )


def _sha256(table: Path) -> str:
    """Hash of a file, or of all files of a folder with their names."""
    if table.is_file():
        return hashlib.sha256(table.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for path in sorted(path for path in table.rglob("*") if path.is_file()):
        name = path.relative_to(table).as_posix()
        whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def write_import(report: ImportReport, folder: Path) -> Path:
    """Write the users of a report as LaMP files, with the report beside them.

    Args:
        report: What `read_table` found.
        folder: Receives ``LaMP_N/``; an earlier import there is replaced, other files are not.

    Returns:
        The folder ``LaMP_N``.

    Raises:
        UserError: The folder holds files of the task that no import wrote, or cannot be written.
    """
    target = folder / report.task.name
    _refuse_foreign(folder, target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".import.partial-", dir=folder))
        try:
            write_lamp(report.curated.users, partial, SPLIT, named=True)
            (partial / REPORT).write_text(report.json_text(), encoding="utf-8")
            (partial / DROPPED).write_text(report.csv_text(), encoding="utf-8", newline="")
            # Old golds may share the ids of the new questions; without any, a reader stops.
            (target / f"{SPLIT}_outputs.json").unlink(missing_ok=True)
            # The report goes first: it marks the folder as ours, should the next moves not come.
            for name in (REPORT, DROPPED, f"{SPLIT}_questions.json", f"{SPLIT}_outputs.json"):
                os.replace(partial / name, target / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror}); give another folder (--to)."
        ) from error
    return target


def _refuse_foreign(folder: Path, target: Path) -> None:
    """Refuse a folder in which a run would find other files of the task, or lose them."""
    pattern = f"{target.name.replace('_', '[_-]')}*/**/*_questions.json"
    ours = target / f"{SPLIT}_questions.json" if (target / REPORT).is_file() else None
    for found in sorted(folder.glob(pattern)) if folder.is_dir() else []:
        if found != ours:
            raise UserError(
                f"{folder} already holds {found.relative_to(folder)}, which no import wrote; "
                "give another folder (--to)."
            )
