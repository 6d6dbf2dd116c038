"""Small builders of synthetic LaMP records, and the place of local evaluation data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core.task import HistoryItem, Query, User, official_input
from chameleon_lib.data.lamp import Sample

_DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data"
SHARED_DATA = Path(os.environ.get("CHAMELEON_SHARED_DATA", _DEFAULT))

needs_shared_data = pytest.mark.skipif(
    not (SHARED_DATA / "lamp").is_dir(), reason="local evaluation data are not present"
)

KEYS = {"LaMP_2": ("description", "tag"), "LaMP_3": ("text", "score"), "LaMP_7": ("text", None)}
LABELS = {"LaMP_2": "comedy", "LaMP_3": "4", "LaMP_7": None}


def raw_item(task: str, item_id: str, text: str, label: str | None = None) -> dict[str, Any]:
    text_key, label_key = KEYS[task]
    item = {"id": item_id, text_key: text}
    if label_key is not None:
        item[label_key] = label or str(LABELS[task])
    return item


def raw_sample(task: str, sample_id: str, query: str = "a quiet query") -> dict[str, Any]:
    return {
        "id": sample_id,
        "input": official_input(task, query),
        "profile": [raw_item(task, f"{sample_id}{i}", f"text {i} of {sample_id}") for i in (0, 1)],
    }


def write_questions(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def write_outputs(path: Path, task: str, golds: dict[str, str]) -> Path:
    entries = [{"id": key, "output": value} for key, value in golds.items()]
    path.write_text(json.dumps({"task": task, "golds": entries}), encoding="utf-8")
    return path


def sample(
    task: str, sample_id: str, contents: Sequence[tuple[str, str | None]], query: str = "q"
) -> Sample:
    items = tuple(
        HistoryItem(f"{sample_id}{i}", text, label) for i, (text, label) in enumerate(contents)
    )
    return Sample(Query(sample_id, query, official_input(task, query), None), items)


def user(
    user_id: str,
    task: str = "LaMP_3",
    labels: tuple[str | None, ...] = ("5", "4"),
    gold: str | None = "5",
    query: str = "a quiet query",
) -> User:
    history = tuple(
        HistoryItem(f"{user_id}{i}", f"text {i} of {user_id}", label)
        for i, label in enumerate(labels)
    )
    asked = Query(user_id, query, official_input(task, query), gold)
    return User(user_id, task, history, (asked,))
