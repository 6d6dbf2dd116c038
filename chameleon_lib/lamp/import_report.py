"""What an import kept and dropped: as printed lines, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lib.lamp.curation import REASONS, Curated, Dropped
from chameleon_lib.lamp.history_table import Columns
from chameleon_lib.lamp.tasks import Task

REPORT = "import_report.json"
DROPPED = "import_dropped.csv"


@dataclass(frozen=True)
class ImportReport:
    """The account of one import; rows kept and rows dropped are all rows.

    Attributes:
        source: Name of the table.
        sha256: Hash of its content.
        task: Task.
        columns: Columns that were read.
        min_items: Smallest history.
        queries: Queries per user.
        time_format: How times were read; None for ISO 8601 or Unix time.
        rows: Rows of the table.
        table_users: Different users named in the table.
        curated: Users, and what was dropped.
    """

    source: str
    sha256: str
    task: Task
    columns: Columns
    min_items: int
    queries: int
    time_format: str | None
    rows: int
    table_users: int
    curated: Curated

    @property
    def n_items(self) -> int:
        """Rows that became history items."""
        return sum(len(user.history) for user in self.curated.users)

    @property
    def n_queries(self) -> int:
        """Rows that became queries."""
        return sum(len(user.queries) for user in self.curated.users)

    def rules(self) -> list[str]:
        """What was done to the rows, in sentences."""
        time = self.columns.time
        order = (
            f"A user's rows are ordered by the column {time!r} (times without a zone count as UTC)."
            if time
            else "There is no column of times, so the order of the file counts as order of time."
        )
        asked = "rows" if self.task.labels else "rows with a neutral wording"
        place = "number" if self.source.endswith(".parquet") else "line in the file"
        gold = "label is its gold" if self.task.labels else "text is the gold of its wording"
        return [
            f"A row is named by its {place}.",
            order,
            f"The latest {self.queries} {asked} of a user are the queries; each one's {gold}.",
            f"A history has at least {self.min_items} items, all earlier than the queries.",
            "White space in cells is folded to single blanks; of a user's same texts the latest "
            "counts.",
            f"Labels written another way (case, 4.0) and taken: {self.curated.rewritten}.",
            "User ids stand in the files as they stand in the table: do not pass the files on if "
            "the ids or the texts name people.",
        ]

    def summary(self) -> list[dict[str, str | int]]:
        """One row per reason that occurred: rows, users and the first case."""
        found: list[dict[str, str | int]] = []
        for reason, meaning in REASONS.items():
            part = [drop for drop in self.curated.dropped if drop.reason == reason]
            if part:
                found.append(
                    {
                        "reason": reason,
                        "rows": len(part),
                        "users": len({drop.user for drop in part}),
                        "first": _first(part),
                        "meaning": meaning,
                    }
                )
        return found

    def kept(self) -> str:
        """What was kept, in one sentence."""
        return (
            f"{self.source}: {self.rows} rows of {self.table_users} users; kept "
            f"{self.n_items} history items and {self.n_queries} queries of "
            f"{len(self.curated.users)} users, dropped {len(self.curated.dropped)} rows."
        )

    def text(self) -> str:
        """The report as it is printed."""
        rows = self.summary()
        lines = [self.kept(), ""]
        if rows:
            table = [("dropped because", "rows", "users", "first case")]
            table += [(str(r["reason"]), str(r["rows"]), str(r["users"]), str(r["first"]))
                      for r in rows]  # fmt: skip
            widths = [max(len(line[i]) for line in table) for i in range(3)]
            for name, n, users, first in table:
                lines.append(
                    f"  {name:<{widths[0]}}  {n:>{widths[1]}}  {users:>{widths[2]}}  {first}"
                )
            lines.append("")
        return "\n".join([*lines, *(f"- {rule}" for rule in self.rules())])

    def json_text(self) -> str:
        """The report as JSON."""
        record = {
            "source": self.source,
            "sha256": self.sha256,
            "task": self.task.name,
            "columns": {
                name: getattr(self.columns, name) for name in ("user", "text", "label", "time")
            },
            "options": {
                "min_items": self.min_items,
                "queries": self.queries,
                "time_format": self.time_format,
            },
            "rows": self.rows,
            "users_in_table": self.table_users,
            "kept": {
                "users": len(self.curated.users),
                "history_items": self.n_items,
                "queries": self.n_queries,
            },
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
        writer.writerows(
            [drop.row, drop.user, drop.reason, drop.detail] for drop in self.curated.dropped
        )
        return buffer.getvalue()


def _first(part: Sequence[Dropped]) -> str:
    drop = part[0]
    held = f": {drop.detail!r}" if drop.detail else ""
    return f"row {drop.row}{held}"


def commonest(dropped: Sequence[Dropped]) -> str:
    """The most frequent reason with its first case, for the sentence of an import of nobody."""
    reason, count = Counter(drop.reason for drop in dropped).most_common(1)[0]
    first = _first([drop for drop in dropped if drop.reason == reason])
    return f"{count} rows: {REASONS[reason]}, first {first}"
