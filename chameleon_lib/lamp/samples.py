"""Read and validate LaMP samples: one question with its profile, and the golds.

Every check ends in one sentence that names the file, the record and the fix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.records import HistoryItem, Query
from chameleon_lib.lamp.stream import CHUNK, iter_json_records
from chameleon_lib.lamp.tasks import Task, get_task, official_input

_REPAIRABLE_PREFIX = "x "


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of a questions file.

    Attributes:
        query: The question; its gold is None until golds are joined.
        profile: At least one profile item, in file order.
        repaired: The official instruction had to be restored (see `repair_input`).
        user_id: Whose sample it is, where the file says so (time-based split, imported tables).
    """

    query: Query
    profile: tuple[HistoryItem, ...]
    repaired: bool = False
    user_id: str | None = None


def _is_instruction_of(task: Task, text: str) -> bool:
    """Compare the first words only: enough to tell the tasks, blind to later wording changes."""
    opening = " ".join(task.instruction.split()[:4])
    return text.startswith(opening)


def repair_input(task: str | Task, text: str) -> str | None:
    """Restore the instruction of a LaMP-2 input that lost it, None where no repair is known.

    In the official dev file question 110 starts with "x " and the movie overview.
    """
    chosen = get_task(task)
    if chosen.name == "LaMP_2" and text.startswith(_REPAIRABLE_PREFIX):
        return official_input(chosen, text.removeprefix(_REPAIRABLE_PREFIX))
    return None


def extract_query(task: str | Task, text: str) -> str | None:
    """Return the stripped text after the first query marker, None if there is no marker."""
    _, marker, rest = text.partition(get_task(task).query_marker)
    return rest.strip() if marker else None


def _string(record: dict[str, Any], key: str, where: str) -> str:
    if key not in record:
        raise UserError(f"{where} has no {key!r}; take the official file of this task.")
    value = record[key]
    if not isinstance(value, str):
        raise UserError(f"{where} has {key!r} = {value!r}; LaMP writes every value as a string.")
    return value


def _item(task: Task, raw: object, where: str) -> HistoryItem:
    if not isinstance(raw, dict):
        raise UserError(f"{where} has a profile item that is no object; take the official file.")
    if task.name == "LaMP_2" and ("category" in raw or "title" in raw):
        raise UserError(
            f"{where} belongs to the old news task (profile items with category and title); "
            "download LaMP-2 movies from the folder LaMP_2/new."
        )
    item_id = _string(raw, "id", f"{where}, a profile item")
    here = f"{where}, profile item {item_id!r}"
    text = _string(raw, task.text_key, here)
    if task.label_key is None:
        return HistoryItem(item_id, text, None)
    label = _string(raw, task.label_key, here)
    if label not in task.labels:
        raise UserError(
            f"{here} has {task.label_key} {label!r}, which is none of: {', '.join(task.labels)}; "
            "take the official file of this task."
        )
    return HistoryItem(item_id, text, label)


def _profile(task: Task, record: dict[str, Any], where: str) -> tuple[HistoryItem, ...]:
    raw = record.get("profile")
    if not isinstance(raw, list):
        raise UserError(f"{where} has no profile list; take the official *_questions.json file.")
    if not raw:
        raise UserError(f"{where} has an empty profile; remove it or give it at least one item.")
    items = tuple(_item(task, entry, where) for entry in raw)
    if len({item.id for item in items}) < len(items):
        raise UserError(f"{where} has two profile items with one id; number them anew.")
    return items


def _query(task: Task, sample_id: str, text: str, where: str) -> tuple[Query, bool]:
    repaired = False
    if not _is_instruction_of(task, text):
        fixed = repair_input(task, text)
        if fixed is None:
            raise UserError(
                f"{where} does not start with the {task.name} instruction; "
                "check that the file belongs to this task."
            )
        text, repaired = fixed, True
    query = extract_query(task, text)
    if query is None:
        raise UserError(
            f"{where} has no {task.query_marker!r} in its input, so no query can be read; "
            "take the official file of this task."
        )
    return Query(sample_id, query, text, None), repaired


def parse_sample(task: str | Task, record: dict[str, Any], *, source: str, index: int) -> Sample:
    """Validate one record of a questions file.

    Args:
        task: Task or its name.
        record: The decoded object.
        source: File name for error messages.
        index: Position in the file, names a record that has no id.

    Raises:
        UserError: Anything the module's tests list as broken.
    """
    chosen = get_task(task)
    sample_id = _string(record, "id", f"{source}, record number {index}")
    where = f"{source}, record {sample_id!r}"
    text = _string(record, "input", where)
    # The profile first: its keys give the clearest sentence for a file of another task.
    profile = _profile(chosen, record, where)
    query, repaired = _query(chosen, sample_id, text, where)
    user_id = _string(record, "user_id", where) if "user_id" in record else None
    return Sample(query, profile, repaired, user_id)


def stream_samples(path: Path, task: str | Task, *, chunk: int = CHUNK) -> Iterator[Sample]:
    """Yield validated samples of a questions file with memory bounded by one record.

    Raises:
        UserError: A broken file or record, a duplicate id, or more than one repaired record (the
            official data needs exactly one, in LaMP-2 dev).
    """
    chosen = get_task(task)
    seen: set[str] = set()
    first_repair: str | None = None
    for index, record in enumerate(iter_json_records(path, chunk=chunk)):
        sample = parse_sample(chosen, record, source=str(path), index=index)
        sample_id = sample.query.id
        if sample_id in seen:
            raise UserError(f"{path} holds record {sample_id!r} twice; remove one of them.")
        seen.add(sample_id)
        if sample.repaired:
            if first_repair is not None:
                raise UserError(
                    f"{path}, records {first_repair!r} and {sample_id!r} both lack the "
                    "instruction; only one such record is known, download the file again."
                )
            first_repair = sample_id
        yield sample


def _load_outputs(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; download the file again.") from error
    if text.lstrip().startswith("<"):
        raise UserError(f"{path} holds an HTML page instead of JSON; download the file again.")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is cut off or not valid JSON ({error.msg}, line {error.lineno}); "
            "download the file again."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("golds"), list):
        raise UserError(f"{path} has no list of golds; give the *_outputs.json file.")
    return content


def read_golds(path: Path, task: str | Task) -> dict[str, str]:
    """Read an outputs file (golds, or predictions in the same format) as id -> output.

    Raises:
        UserError: Broken file, another task's name, a duplicate id or a value that is no string.
    """
    chosen = get_task(task)
    content = _load_outputs(path)
    name = str(content.get("task"))
    if name.replace("-", "_") != chosen.name:
        raise UserError(f"{path} says task {name!r}, expected {chosen.name!r}; give its own file.")
    golds: dict[str, str] = {}
    for index, entry in enumerate(content["golds"]):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, gold number {index} is no object; download the file again.")
        sample_id = _string(entry, "id", f"{path}, gold number {index}")
        if sample_id in golds:
            raise UserError(f"{path} holds gold {sample_id!r} twice; remove one of them.")
        golds[sample_id] = _string(entry, "output", f"{path}, gold {sample_id!r}")
    return golds


def check_golds_on_list(path: Path, task: str | Task, golds: dict[str, str]) -> None:
    """Assert that every gold of the file `path` is on the task's label list (LaMP-7 has none).

    Raises:
        UserError: A gold is off the list.
    """
    chosen = get_task(task)
    for sample_id, gold in golds.items():
        if chosen.labels and gold.strip() not in chosen.labels:
            raise UserError(
                f"{path}, gold {sample_id!r} is {gold!r}, which is no label of {chosen.name}; "
                "check that the file belongs to this task."
            )
