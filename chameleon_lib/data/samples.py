"""Read LaMP files: a JSON list of samples, one question with its profile each, and the golds.

LaMP-3 files reach gigabytes, so `json.load` is no option: the reader keeps one growing text buffer
and lets the standard decoder take one object after the other from it, in memory bounded by the
largest record. (A streaming library would be a dependency more and one sentence per kind of damage
less.) Every check ends in one sentence that names the file, the record and the fix.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from chameleon_lib.core.task import HistoryItem, Query, Task, get_task, official_input
from chameleon_lib.errors import UserError

_log = logging.getLogger(__name__)

CHUNK = 1 << 20  # characters per read
MAX_RECORD = 1 << 26  # characters; far above any real record, stops a runaway string
# A decoder that runs out of text stops within the last few characters ("\\u12", "tru").
_TAIL = 16


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; download the file again.")


class _Buffer:
    """A window on a text file: `text[at:]` is what has been read but not used."""

    def __init__(self, file: TextIO, path: Path, chunk: int) -> None:
        self.file, self.path, self.chunk = file, path, chunk
        self.text, self.at = "", 0

    def grow(self) -> bool:
        """Read on, and on by more each time a record does not fit; False at the end of file."""
        rest = self.text[self.at :]
        try:
            more = self.file.read(max(self.chunk, len(rest)))
        except UnicodeDecodeError as error:
            raise _damaged(self.path, "is not UTF-8 text") from error
        self.text, self.at = rest + more, 0
        return bool(more)

    def peek(self) -> str:
        """Return the next character that is no blank, "" at the end of file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def take(self, record: str) -> dict[str, Any]:
        """Take the object that begins here; `record` names it."""
        while True:
            try:
                value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - _TAIL
                if not cut:
                    invalid = UserError(
                        f"{self.path}, {record} is not valid JSON ({error.msg}); download the "
                        "file again."
                    )
                    raise invalid from error
                if len(self.text) - self.at > MAX_RECORD:
                    raise _damaged(
                        self.path, f"has a record longer than {MAX_RECORD} characters ({record})"
                    ) from error
                if not self.grow():
                    raise _damaged(self.path, f"is cut off inside {record}") from error


def iter_json_records(path: Path, *, chunk: int = CHUNK) -> Iterator[dict[str, Any]]:
    """Yield the objects of the JSON list in `path`, in file order.

    Args:
        path: A UTF-8 file holding one JSON list of objects.
        chunk: Characters read at a time.

    Raises:
        UserError: The file is missing, empty, HTML, no list, cut off or malformed. Records before
            the damage have been yielded by then.
    """
    try:
        file = path.open(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    with file:
        buffer = _Buffer(file, path, chunk)
        first = buffer.peek()
        if first == "<":
            raise UserError(
                f"{path} holds an HTML page instead of JSON (some wrong addresses answer so); "
                "download the file from its official address."
            )
        if first != "[":
            raise UserError(
                f"{path} is not a JSON list of samples; give the *_questions.json file."
            ) if first else _damaged(path, "is empty")
        buffer.at += 1
        separator = "]" if buffer.peek() == "]" else ","
        for index in itertools.count() if separator == "," else ():
            record, start = f"record number {index}", buffer.peek()
            if start != "{":
                what = "holds something that is no object at" if start else "is cut off at"
                raise _damaged(path, f"{what} {record}")
            yield buffer.take(record)
            separator = buffer.peek()
            if separator == "]":
                break
            if separator != ",":
                what = "lacks a comma after" if separator else "is cut off after"
                raise _damaged(path, f"{what} {record}")
            buffer.at += 1
        buffer.at += 1
        if buffer.peek():
            raise _damaged(path, "holds text after its JSON list")


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
    keys, why = task.foreign
    if any(key in raw for key in keys):
        raise UserError(f"{where} {why}.")
    item_id = _string(raw, "id", f"{where}, a profile item")
    here = f"{where}, profile item {item_id!r}"
    text = _string(raw, task.text_key, here)
    if task.label_key is None:
        return HistoryItem(item_id, text, None)
    label, allowed = _string(raw, task.label_key, here), task.item_labels
    if allowed and label not in allowed:
        raise UserError(
            f"{here} has {task.label_key} {label!r}, which is none of: {', '.join(allowed)}; "
            "take the official file of this task."
        )
    return HistoryItem(item_id, text, label)


def _query(task: Task, sample_id: str, text: str, where: str) -> tuple[Query, bool]:
    """The question of an official ``input``, and whether its instruction had to be restored."""
    # The first words only: enough to tell the tasks, blind to later wording changes.
    opening, lost = " ".join(task.instruction.split()[:4]), task.lost_instruction
    repaired = False
    if not text.startswith(opening):
        if not lost or not text.startswith(lost):
            raise UserError(
                f"{where} does not start with the {task.name} instruction; "
                "check that the file belongs to this task."
            )
        text, repaired = official_input(task, text.removeprefix(lost)), True
    _, marker, query = text.partition(task.query_marker)
    if not marker:
        raise UserError(
            f"{where} has no {task.query_marker!r} in its input, so no query can be read; "
            "take the official file of this task."
        )
    return Query(sample_id, query.strip(), text, None), repaired


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
    text, raw = _string(record, "input", where), record.get("profile")
    # The profile first: its keys give the clearest sentence for a file of another task.
    if not isinstance(raw, list):
        raise UserError(f"{where} has no profile list; take the official *_questions.json file.")
    if not raw:
        raise UserError(f"{where} has an empty profile; remove it or give it at least one item.")
    items = tuple(_item(chosen, entry, where) for entry in raw)
    if len({item.id for item in items}) < len(items):
        raise UserError(f"{where} has two profile items with one id; number them anew.")
    query, repaired = _query(chosen, sample_id, text, where)
    user_id = _string(record, "user_id", where) if "user_id" in record else None
    return Sample(query, items, repaired, user_id)


def stream_samples(path: Path, task: str | Task, *, chunk: int = CHUNK) -> Iterator[Sample]:
    """Yield validated samples of a questions file with memory bounded by one record.

    Raises:
        UserError: A broken file or record, a duplicate id, more than one repaired record (the
            official data needs exactly one, in LaMP-2 dev), or users named by some records only.
    """
    chosen = get_task(task)
    seen: set[str] = set()
    first: Sample | None = None
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
        first = first or sample
        if (first.user_id is None) != (sample.user_id is None):
            one, other = (sample, first) if first.user_id is None else (first, sample)
            raise UserError(
                f"Record {one.query.id!r} of {chosen.name} has a user_id and record "
                f"{other.query.id!r} has none; give it to all records or to none."
            )
        yield sample


def read_golds(path: Path, task: str | Task) -> dict[str, str]:
    """Read an outputs file (golds, or predictions in the same format) as id -> output.

    Raises:
        UserError: Broken file, another task's name, a duplicate id, a value that is no string, or
            one that is off the list of labels.
    """
    chosen = get_task(task)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("<"):
            raise _damaged(path, "holds an HTML page instead of JSON")
        content = json.loads(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        where = f"{error.msg}, line {error.lineno}"
        raise _damaged(path, f"is cut off or not valid JSON ({where})") from error
    if not isinstance(content, dict) or not isinstance(content.get("golds"), list):
        raise UserError(f"{path} has no list of golds; give the *_outputs.json file.")
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
        gold = golds[sample_id] = _string(entry, "output", f"{path}, gold {sample_id!r}")
        if chosen.labels and gold.strip() not in chosen.labels:
            raise UserError(
                f"{path}, gold {sample_id!r} is {gold!r}, which is no label of {chosen.name}; "
                "check that the file belongs to this task."
            )
    return golds


def check_ids(questions: Path, outputs: Path, asked: set[str], answered: set[str]) -> None:
    """Assert that the golds of a file answer exactly the questions of another.

    Raises:
        UserError: An id of one side is missing on the other.
    """
    if asked != answered:
        raise UserError(
            f"{questions} and {outputs} belong to different samples: "
            f"{len(asked - answered)} questions have no gold {sorted(asked - answered)[:3]}, "
            f"{len(answered - asked)} golds have no question {sorted(answered - asked)[:3]}; "
            "take both files from one split."
        )


def load_samples(
    questions: Path,
    outputs: Path | None,
    task: str | Task,
    *,
    slim: Callable[[Sample], Sample] | None = None,
) -> list[Sample]:
    """Load the samples of one split with their golds.

    Args:
        questions: The ``*_questions.json`` file.
        outputs: The ``*_outputs.json`` file; None leaves every gold None.
        task: Task or its name.
        slim: Sees every sample, and what it returns is kept in its place.

    Raises:
        UserError: A broken file or record, or golds that do not fit the questions.
    """
    chosen = get_task(task)
    golds = read_golds(outputs, chosen) if outputs is not None else {}
    samples: list[Sample] = []
    for sample in stream_samples(questions, chosen):
        kept = slim(sample) if slim is not None else sample
        gold = golds.get(sample.query.id)
        samples.append(replace(kept, query=replace(kept.query, gold=gold)))
    if not samples:
        raise _damaged(questions, "is an empty list")
    if outputs is not None:
        check_ids(questions, outputs, {sample.query.id for sample in samples}, set(golds))
    repaired = sum(sample.repaired for sample in samples)
    if repaired:
        _log.warning("%s: restored the lost instruction of %d record.", questions, repaired)
    return samples
