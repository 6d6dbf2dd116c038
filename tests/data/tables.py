"""Small tables of invented users, written in every format that can be imported."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as arrow
from pyarrow import parquet

Record = Mapping[str, Any]


def record(user: str, index: int, label: Any = "comedy", **more: Any) -> dict[str, Any]:
    """Row number ``index`` of a user, on the day of that number."""
    text = f"a film about {user} number {index}"
    return {"user": user, "text": text, "label": label, "time": f"2024-01-{index:02d}", **more}


def clean(users: Sequence[str] = ("ann", "bob"), n: int = 5, label: Any = "comedy") -> list[Record]:
    return [record(user, index, label) for user in users for index in range(1, n + 1)]


def write_table(path: Path, records: Sequence[Record], delimiter: str = ",") -> Path:
    """Write records in the format of the file's name."""
    names = list(dict.fromkeys(name for one in records for name in one))
    if path.suffix == ".parquet":
        parquet.write_table(arrow.table({n: [r.get(n) for r in records] for n in names}), path)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names, delimiter=delimiter)
            writer.writeheader()
            writer.writerows(records)
    return path
