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
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from chameleon_lib.core.task import Task, get_task
from chameleon_lib.data.lamp import IMPORT_REPORT, write_lamp
from chameleon_lib.data.table import REASONS, Columns, Curated, Row, curate, read_rows
from chameleon_lib.errors import UserError
from chameleon_lib.kit.progress import Progress

SPLIT = "dev"
REPORT = IMPORT_REPORT
DROPPED = "import_dropped.csv"


@dataclass(frozen=True)
class ImportOptions:
    """How a table is read and divided.

    Attributes:
        columns: Names of its columns.
        min_items: Smallest history of a user.
        queries: Latest rows per user that are held out as queries.
        time_format: Format of the times, as in ``datetime.strptime``; None for ISO 8601 or Unix.
    """

    columns: Columns = field(default_factory=Columns)
    min_items: int = 3
    queries: int = 1
    time_format: str | None = None


@dataclass(frozen=True)
class ImportReport:
    """The account of one import; rows kept and rows dropped are all rows.

    Attributes:
        source: Name of the table.
        sha256: Hash of its content.
        task: Task.
        options: How it was read, with the time column that was used.
        rows: Rows of the table.
        table_users: Different users named in the table.
        curated: Users, and what was dropped.
    """

    source: str
    sha256: str
    task: Task
    options: ImportOptions
    rows: int
    table_users: int
    curated: Curated

    def _counts(self) -> dict[str, int]:
        users = self.curated.users
        return {
            "users": len(users),
            "history_items": sum(len(user.history) for user in users),
            "queries": sum(len(user.queries) for user in users),
        }

    def rules(self) -> list[str]:
        """What was done to the rows, in sentences."""
        time, own_text = self.options.columns.time, self.task.label_key is None
        order = (
            f"A user's rows are ordered by the column {time!r} (times without a zone count as UTC)."
            if time
            else "There is no column of times, so the order of the file counts as order of time."
        )
        asked = "rows with a neutral wording" if own_text else "rows"
        gold = "text is the gold of its wording" if own_text else "label is its gold"
        place = "number" if self.source.endswith(".parquet") else "line in the file"
        n, least = self.options.queries, self.options.min_items
        return [
            f"A row is named by its {place}.",
            order,
            f"The latest {n} {asked} of a user are the queries; each one's {gold}.",
            f"A history has at least {least} items, all earlier than the queries.",
            "White space in cells is folded to single blanks; of a user's same texts the latest "
            "counts.",
            f"Labels written another way (case, 4.0) and taken: {self.curated.rewritten}.",
            "User ids stand in the files as they stand in the table: do not pass the files on if "
            "the ids or the texts name people.",
        ]

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
        n = self._counts()
        return (
            f"{self.source}: {self.rows} rows of {self.table_users} users; kept "
            f"{n['history_items']} history items and {n['queries']} queries of {n['users']} users, "
            f"dropped {len(self.curated.dropped)} rows."
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
            "users_in_table": self.table_users,
            "kept": self._counts(),
            "dropped_rows": len(self.curated.dropped),
            "dropped": self.summary(),
            "rules": self.rules(),
        }
        return json.dumps(record, indent=1, ensure_ascii=False) + "\n"

    def csv_text(self) -> str:
        """Every dropped row as CSV."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["row", "user", "reason", "detail"])
        writer.writerows([d.row, d.user, d.reason, d.detail] for d in self.curated.dropped)
        return buffer.getvalue()


def read_table(table: Path, task_name: str, options: ImportOptions | None = None) -> ImportReport:
    """Read and judge a table; nothing is written.

    Args:
        table: CSV, JSON lines or parquet.
        task_name: Task that its texts and labels belong to.
        options: How it is read and divided.

    Raises:
        UserError: The file cannot be read, or no user is left.
    """
    options = options or ImportOptions()
    task = get_task(task_name)
    if not task.importable:
        raise UserError(
            f"{task.name} asks about more than a table of users, texts and labels holds; give its "
            "official files to --data."
        )
    rows, columns = read_rows(table, options.columns)
    if options.time_format is not None and columns.time is None:
        raise UserError(f"{table} has no column of times to read; name it with --time.")
    with Progress("rows judged", len(rows)) as progress:
        curated = curate(
            _told(rows, progress), task, timed=columns.time is not None,
            min_items=options.min_items, queries=options.queries, time_format=options.time_format,
        )  # fmt: skip
    if not curated.users:
        reason, count = Counter(drop.reason for drop in curated.dropped).most_common(1)[0]
        first = next(drop for drop in curated.dropped if drop.reason == reason)
        raise UserError(
            f"{table} leaves no user for {task.name}: of {len(rows)} rows, {count} rows: "
            f"{REASONS[reason]}, first {first}; check the columns and the task."
        )
    return ImportReport(
        source=table.name,
        sha256=hashlib.sha256(table.read_bytes()).hexdigest(),
        task=task,
        options=replace(options, columns=columns),
        rows=len(rows),
        table_users=len({row.user for row in rows if row.user}),
        curated=curated,
    )


def _told(rows: Sequence[Row], progress: Progress) -> Iterator[Row]:
    for row in rows:
        yield row
        progress.advance()


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
