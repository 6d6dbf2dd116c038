"""Your own users as LaMP files: ``python -m chameleon_lib data import TABLE --task T --to DIR``.

The files hold one split, ``dev``, with golds; a run divides its users by a hash of their names.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chameleon_lib.command_line import Parser, positive
from chameleon_lib.errors import UserError
from chameleon_lib.kit.progress import Progress
from chameleon_lib.lamp.curation import curate
from chameleon_lib.lamp.data import write_lamp
from chameleon_lib.lamp.history_table import Columns, Row, read_rows
from chameleon_lib.lamp.import_report import DROPPED, REPORT, ImportReport, commonest
from chameleon_lib.lamp.tasks import get_task

SPLIT = "dev"


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


def _watched(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows, with a line that says how far the judging is."""
    with Progress("rows judged", len(rows)) as progress:
        for row in rows:
            yield row
            progress.advance()


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
    rows, columns = read_rows(table, options.columns)
    if options.time_format is not None and columns.time is None:
        raise UserError(f"{table} has no column of times to read; name it with --time.")
    curated = curate(
        _watched(rows),
        task,
        timed=columns.time is not None,
        min_items=options.min_items,
        queries=options.queries,
        time_format=options.time_format,
    )
    if not curated.users:
        raise UserError(
            f"{table} leaves no user for {task.name}: of {len(rows)} rows, "
            f"{commonest(curated.dropped)}; check the columns and the task."
        )
    return ImportReport(
        source=table.name,
        sha256=hashlib.sha256(table.read_bytes()).hexdigest(),
        task=task,
        columns=columns,
        min_items=options.min_items,
        queries=options.queries,
        time_format=options.time_format,
        rows=len(rows),
        table_users=len({row.user for row in rows if row.user}),
        curated=curated,
    )


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


_COLUMN_HELP = {
    "user": "column of the user",
    "text": "column of the text: description, review, or what the user wrote",
    "label": "column of the tag (LaMP_2), the score (LaMP_3), or the same text in neutral words "
    "(LaMP_7; rows without it are history only)",
    "time": "column of the time; default: 'time' if there is one, else the order of the file",
}


def add_table_options(parser: argparse.ArgumentParser, suffix: str = "") -> None:
    """The options that say how a table is read and divided.

    Args:
        parser: Receives them.
        suffix: Behind the names of columns, where ``--user`` means something else.
    """
    group = parser.add_argument_group("table")
    for name, meaning in _COLUMN_HELP.items():
        default = getattr(Columns(), name)
        group.add_argument(
            f"--{name}{suffix}", dest=f"{name}_column", default=default, metavar="COL", help=meaning
        )
    group.add_argument(
        "--time-format", metavar="FORMAT",
        help="how times are written, such as %%d.%%m.%%Y; default: ISO 8601 or Unix time",
    )  # fmt: skip
    group.add_argument("--delimiter", metavar="CHAR", help="between cells; default: a comma")
    group.add_argument(
        "--min-items", type=positive, default=3, metavar="N", help="smallest history (default 3)"
    )
    group.add_argument(
        "--queries", type=positive, default=1, metavar="N",
        help="latest rows of each user to hold out as queries (default 1)",
    )  # fmt: skip


def table_options(args: argparse.Namespace) -> ImportOptions:
    """What `add_table_options` read."""
    named = {name: getattr(args, f"{name}_column") for name in _COLUMN_HELP}
    columns = Columns(**named, delimiter=args.delimiter)
    return ImportOptions(columns, args.min_items, args.queries, args.time_format)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``.

    Raises:
        UserError: Whatever the user can put right, in one sentence.
    """
    parser = Parser(
        prog="python -m chameleon_lib data import",
        description="Turn a table of your own users into LaMP files for --data DIR.",
        allow_abbrev=False,
    )
    parser.add_argument("table", metavar="TABLE", help="csv, tsv, jsonl or parquet, in UTF-8")
    parser.add_argument("--task", required=True, help="LaMP_2, LaMP_3 or LaMP_7")
    parser.add_argument("--to", required=True, metavar="DIR", help="receives DIR/<task>/")
    add_table_options(parser)
    args = parser.parse_args(argv)
    report = read_table(Path(args.table), args.task, table_options(args))
    target = write_import(report, Path(args.to))
    print(report.text())
    print(f"\nwrote {target}/ ({REPORT} and {DROPPED} beside the files)")
    print(f"next: ./run_all.sh --only 01 --data {args.to}")
    return 0
