"""Find, load and write LaMP files; the records and the reader are importable from here."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.records import HistoryItem, Query, User
from chameleon_lib.lamp.samples import (
    Sample,
    check_golds_on_list,
    read_golds,
    stream_samples,
)
from chameleon_lib.lamp.tasks import Task, get_task, official_input
from chameleon_lib.lamp.users import (
    MIN_OVERLAP,
    Grouping,
    check_disjoint,
    group_samples_into_users,
    split_users_by_hash,
)

__all__ = [
    "HistoryItem",
    "Query",
    "Sample",
    "SeveralFiles",
    "User",
    "check_disjoint",
    "check_ids",
    "find_split",
    "group_samples_into_users",
    "load_samples",
    "load_users",
    "official_input",
    "read_golds",
    "split_users_by_hash",
    "stream_samples",
    "write_lamp",
]


class SeveralFiles(UserError):
    """More than one file could be meant: nothing is missing, so nothing may be left out."""


_log = logging.getLogger(__name__)


def _task_folders(data_dir: Path, task: Task) -> list[list[Path]]:
    """List candidate folders by preference; folders of one rank must not both hold the split."""
    number = task.name.removeprefix("LaMP_")
    names = (f"LaMP_{number}", f"LaMP-{number}")
    exact = [[data_dir / name] for name in names]
    # Only the movies live under new/; LaMP_2/ without it may hold the old news task.
    newer = [[data_dir / name / "new"] for name in names] if task.name == "LaMP_2" else []
    others = sorted(
        folder for name in names for folder in data_dir.glob(f"{name}[_-]*") if folder.is_dir()
    )
    return [*newer, *exact, others]


def find_split(data_dir: Path, task: str | Task, split: str) -> tuple[Path, Path | None]:
    """Locate the questions and outputs files of one split.

    Looks in ``LaMP_N`` (LaMP-2: ``LaMP_2/new`` first), then ``LaMP_N_<anything>``, each with a
    hyphen too, for ``{split}_questions.json`` and ``{split}/{split}_questions.json``.

    Returns:
        Questions and outputs; outputs are None where no file with golds is present.

    Raises:
        UserError: No such file.
        SeveralFiles: Several equally good ones.
    """
    chosen = get_task(task)
    if not data_dir.is_dir():
        raise UserError(f"The data folder {data_dir} does not exist; give the folder of LaMP_N.")
    name = f"{split}_questions.json"
    for folders in _task_folders(data_dir, chosen):
        found = [p for f in folders for p in (f / split / name, f / name) if p.is_file()]
        if len(found) > 1:
            raise SeveralFiles(
                f"{data_dir} holds several {chosen.name} {split} files "
                f"({', '.join(str(p.relative_to(data_dir)) for p in found)}); keep one of them."
            )
        if found:
            outputs = found[0].with_name(f"{split}_outputs.json")
            return found[0], outputs if outputs.is_file() else None
    folder = "LaMP_2/new" if chosen.name == "LaMP_2" else chosen.name
    raise UserError(
        f"{data_dir} holds no {chosen.name} {split} split; "
        f"put {name} and {split}_outputs.json into {folder}/{split}/."
    )


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
    keep: Callable[[Sample], bool] | None = None,
    slim: Callable[[Sample], Sample] | None = None,
) -> list[Sample]:
    """Load the samples of one split with their golds; arguments and errors as `load_users`.

    ``slim`` sees every sample that is kept, and what it returns is kept in its place.
    """
    chosen = get_task(task)
    golds: dict[str, str] | None = None
    if outputs is not None:
        golds = read_golds(outputs, chosen)
        check_golds_on_list(outputs, chosen, golds)
    asked: set[str] = set()
    samples: list[Sample] = []
    repaired = 0
    for sample in stream_samples(questions, chosen):
        asked.add(sample.query.id)
        repaired += sample.repaired
        if keep is None or keep(sample):
            sample = slim(sample) if slim is not None else sample
            gold = golds.get(sample.query.id) if golds is not None else None
            samples.append(replace(sample, query=replace(sample.query, gold=gold)))
    if not asked:
        raise UserError(f"{questions} is an empty list; download the file again.")
    if golds is not None and outputs is not None:
        check_ids(questions, outputs, asked, set(golds))
    if repaired:
        _log.warning("%s: restored the lost instruction of %d record.", questions, repaired)
    return samples


def load_users(
    questions: Path,
    outputs: Path | None,
    task: str | Task,
    *,
    grouping: Grouping | None = None,
    min_overlap: float = MIN_OVERLAP,
    keep: Callable[[Sample], bool] | None = None,
) -> list[User]:
    """Load the users of one split.

    Args:
        questions: The ``*_questions.json`` file.
        outputs: The ``*_outputs.json`` file; None leaves every gold None.
        task: Task or its name.
        grouping: How samples become users, see `group_samples_into_users`.
        min_overlap: See there.
        keep: Load only samples for which this is true. The file is streamed, so a part of a file
            of gigabytes fits in memory. All samples are validated and joined all the same.

    Raises:
        UserError: A broken file or record, or golds that do not fit the questions.
    """
    samples = load_samples(questions, outputs, task, keep=keep)
    return group_samples_into_users(samples, task, grouping=grouping, min_overlap=min_overlap)


@contextmanager
def _atomic_text(path: Path, outdated: Path | None = None) -> Iterator[TextIO]:
    """Open a temporary neighbour of `path` that takes its name on success only.

    Args:
        path: What is written.
        outdated: Removed just before `path` gets its new content, which it does not belong to.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        if outdated is not None:
            outdated.unlink(missing_ok=True)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _question_record(task: Task, user: User, query: Query, named: bool) -> dict[str, Any]:
    profile = []
    for item in user.history:
        entry: dict[str, str] = {"id": item.id, task.text_key: item.text}
        if task.label_key is not None:
            if item.label is None:
                raise UserError(f"User {user.id!r}, item {item.id!r} has no {task.label_key}.")
            entry[task.label_key] = item.label
        profile.append(entry)
    name = {"user_id": user.id} if named else {}
    return {"id": query.id, "input": query.input, **name, "profile": profile}


def _write_list(file: TextIO, records: Iterable[dict[str, Any]], end: str) -> None:
    """Write a JSON list with one record per line, never holding the whole text."""
    file.write("[")
    for index, record in enumerate(records):
        file.write(",\n" if index else "\n")
        file.write(json.dumps(record, ensure_ascii=False))
    file.write(f"\n]{end}")


def write_lamp(
    users: Sequence[User], folder: Path, split: str, *, named: bool = False
) -> tuple[Path, Path | None]:
    """Write users in the official layout: a list of questions and an object of golds.

    Args:
        users: Users of one task; every query becomes one sample with the user's whole history.
        folder: Created if absent; receives ``{split}_questions.json`` and, where golds are known,
            ``{split}_outputs.json`` (UTF-8, LF, no escapes).
        split: Name of the split.
        named: Write the ``user_id`` of every sample, as the time-based split has it.

    Returns:
        The two paths; outputs are None if no query has a gold.

    Raises:
        UserError: No users, several tasks, a repeated query id, a missing label, or golds for only
            some of the queries.
    """
    names = {user.task for user in users}
    if len(names) != 1:
        raise UserError(f"One file holds users of exactly one task, got {sorted(names)}.")
    task = get_task(names.pop())
    queries = [query for user in users for query in user.queries]
    if len({query.id for query in queries}) < len(queries):
        raise UserError(f"Two queries for the {split} split of {folder} share an id; rename one.")
    golds = [{"id": q.id, "output": q.gold} for q in queries if q.gold is not None]
    if golds and len(golds) < len(queries):
        raise UserError(
            f"{len(queries) - len(golds)} of {len(queries)} queries for the {split} split of "
            f"{folder} have no gold; give all of them or none."
        )
    folder.mkdir(parents=True, exist_ok=True)
    questions = folder / f"{split}_questions.json"
    outputs = folder / f"{split}_outputs.json"
    # Golds of an earlier run would not belong to the new questions, not even for the moment until
    # the new golds are there: a reader refuses questions without golds, old golds it may believe.
    with _atomic_text(questions, outdated=outputs) as file:
        records = (_question_record(task, u, query, named) for u in users for query in u.queries)
        _write_list(file, records, "\n")
    if not golds:
        return questions, None
    with _atomic_text(outputs) as file:
        file.write(f'{{"task": {json.dumps(task.name)}, "golds": ')
        _write_list(file, golds, "}\n")
    return questions, outputs
