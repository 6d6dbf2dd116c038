"""LaMP files: find those of a split, read their samples and golds, write users in their layout.

A questions file is a JSON list of samples, one question with its profile each, and an outputs file
an object of golds. LaMP-3 files reach gigabytes, so questions are streamed, in memory bounded by
the largest record. Every check ends in one sentence that names the file, the record and the fix.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ijson

from chameleon_lib.core.task import HistoryItem, Query, Task, User, get_task, official_input
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text

_log = logging.getLogger(__name__)

IMPORT_REPORT = "import_report.json"  # beside the files that an import of a table wrote


class SeveralFiles(UserError):
    """More than one file could be meant: nothing is missing, so nothing may be left out."""


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
    name, below = f"{split}_questions.json", chosen.official.folder
    spellings = [data_dir / chosen.name, data_dir / chosen.name.replace("_", "-")]
    # By preference; places of one rank must not both hold the split. The movies live under new/:
    # LaMP_2/ without it may hold the old news task.
    ranks = [*([folder / below] for folder in spellings if below), *([f] for f in spellings)]
    ranks.append(sorted(f for s in spellings for f in data_dir.glob(f"{s.name}[_-]*")))
    for folders in ranks:
        found = [p for f in folders for p in (f / split / name, f / name) if p.is_file()]
        if len(found) > 1:
            raise SeveralFiles(
                f"{data_dir} holds several {chosen.name} {split} files "
                f"({', '.join(str(p.relative_to(data_dir)) for p in found)}); keep one of them."
            )
        if found:
            outputs = found[0].with_name(f"{split}_outputs.json")
            return found[0], outputs if outputs.is_file() else None
    folder = f"{chosen.name}/{below}" if below else chosen.name
    raise UserError(
        f"{data_dir} holds no {chosen.name} {split} split; "
        f"put {name} and {split}_outputs.json into {folder}/{split}/."
    )


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; download the file again.")


def _invalid(path: Path, number: int, problem: ijson.JSONError) -> UserError:
    """The sentence for JSON that is broken at a record, from the parser's word for it."""
    word = problem.args[0]
    reason = word.decode(errors="replace") if isinstance(word, bytes) else str(word)
    reason = reason.split("\n")[0]
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        ended = file.read().rstrip().endswith(b"]")
    if "premature EOF" in reason or (not ended and "lexical error" in reason):
        return _damaged(path, f"is cut off inside record number {number}")
    if "invalid bytes in UTF8" in reason:
        return _damaged(path, "is not UTF-8 text")
    if "trailing garbage" in reason:
        return _damaged(path, "holds text after its JSON list")
    if "after array element" in reason:
        return _damaged(path, f"lacks a comma after record number {number - 1}")
    return _damaged(path, f"is damaged: record number {number} is not valid JSON ({reason})")


class _Twice(ValueError):
    """A name that an object has twice."""


class _Noted(dict[str, Any]):
    """An object that notes a name which it has twice: ijson's parser lets no map raise."""

    twice = ""

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self:
            self.twice = name
        super().__setitem__(name, value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which each name stands once: readers take different ones of two."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Twice(name)
        found[name] = value
    return found


def _twice(path: Path, where: str, error: _Twice) -> UserError:
    return UserError(
        f"{path}, {where} has {error.args[0]!r} twice in one object, of which readers take "
        "different ones; download the file again, or write each name once."
    )


def iter_json_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of the JSON list in `path`, in file order.

    Args:
        path: A UTF-8 file holding one JSON list of objects.

    Raises:
        UserError: The file is missing, empty, HTML, no list, cut off or malformed. Records before
            the damage have been yielded by then.
    """
    number = 0
    try:
        with path.open("rb") as file:
            mark = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
            file.seek(mark)
            first = file.read(1 << 12).lstrip()[:1]
            if first == b"<":
                raise UserError(
                    f"{path} holds an HTML page instead of JSON (some wrong addresses answer so); "
                    "download the file from its official address."
                )
            if first != b"[":
                if first.isascii() and first:
                    raise UserError(
                        f"{path} is not a JSON list of samples; give the *_questions.json file."
                    )
                raise _damaged(path, "is not UTF-8 text" if first else "is empty")
            file.seek(mark)
            records = ijson.items(file, "item", use_float=True, map_type=_Noted)
            for number, record in enumerate(records, start=1):
                if not isinstance(record, dict):
                    what = f"holds something that is no object at record number {number - 1}"
                    raise _damaged(path, what)
                inside = record.get("profile")
                for one in (record, *(inside if isinstance(inside, list) else ())):
                    if isinstance(one, _Noted) and one.twice:
                        raise _twice(path, f"record number {number - 1}", _Twice(one.twice))
                yield record
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except ijson.JSONError as error:
        raise _invalid(path, number, error) from None
    except UserError:
        raise
    except ValueError as error:  # a number of thousands of digits
        what = f"has what cannot be read at record number {number} ({error})"
        raise _damaged(path, what) from None


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of a questions file.

    Attributes:
        query: The question; its gold is the record's own ``output``, None until golds are joined.
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
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # copies of the files have numbers where LaMP writes strings
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
    if "output" in record:
        gold = _string(record, "output", where)
        query = replace(query, gold=_known(chosen, gold, f"{where} has the output"))
    user_id = _string(record, "user_id", where) if "user_id" in record else None
    return Sample(query, items, repaired, user_id)


def stream_samples(path: Path, task: str | Task) -> Iterator[Sample]:
    """Yield validated samples of a questions file with memory bounded by one record.

    Raises:
        UserError: A broken file or record, a duplicate id, more than one repaired record (the
            official data needs exactly one, in LaMP-2 dev), or users named by some records only.
    """
    chosen = get_task(task)
    seen: set[str] = set()
    first: Sample | None = None
    first_repair: str | None = None
    for index, record in enumerate(iter_json_records(path)):
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


def _known(task: Task, gold: str, what: str) -> str:
    """A gold, if the task has such a label."""
    if task.labels and gold.strip() not in task.labels:
        raise UserError(
            f"{what} {gold!r}, which is no label of {task.name}; check that the file belongs to "
            "this task."
        )
    return gold


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
        content = json.loads(text, object_pairs_hook=_once)
    except _Twice as error:
        raise _twice(path, "an object", error) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        where = f"{error.msg}, line {error.lineno}"
        raise _damaged(path, f"is cut off or not valid JSON ({where})") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"holds what cannot be read ({error})") from error
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
        gold = _string(entry, "output", f"{path}, gold {sample_id!r}")
        golds[sample_id] = _known(chosen, gold, f"{path}, gold {sample_id!r} is")
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
        own = sample.query.gold
        gold = golds.get(sample.query.id) if outputs is not None else own
        if own is not None and gold is not None and own != gold:
            raise UserError(
                f"{questions}, record {sample.query.id!r} has the output {own!r} and {outputs} has "
                f"{gold!r}; keep one of them."
            )
        samples.append(replace(kept, query=replace(kept.query, gold=gold)))
    if not samples:
        raise _damaged(questions, "is an empty list")
    if outputs is not None:
        check_ids(questions, outputs, {sample.query.id for sample in samples}, set(golds))
    elif 0 < (bare := sum(sample.query.gold is None for sample in samples)) < len(samples):
        raise UserError(
            f"{bare} of {len(samples)} records of {questions} have no output; give it to all or to "
            "none of them."
        )
    repaired = sum(sample.repaired for sample in samples)
    if repaired:
        _log.warning("%s: restored the lost instruction of %d record.", questions, repaired)
    return samples


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


def _json_list(records: Iterable[dict[str, Any]]) -> str:
    """A JSON list with one record per line."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    return f"[\n{lines}\n]"


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
    records = _json_list(_question_record(task, u, q, named) for u in users for q in u.queries)
    questions, outputs = (folder / f"{split}_{kind}.json" for kind in ("questions", "outputs"))
    # Golds of an earlier run would not belong to the new questions, not even for the moment until
    # the new golds are there: a reader refuses questions without golds, old golds it may believe.
    outputs.unlink(missing_ok=True)
    replace_text(questions, f"{records}\n")
    if not golds:
        return questions, None
    replace_text(outputs, f'{{"task": {json.dumps(task.name)}, "golds": {_json_list(golds)}}}\n')
    return questions, outputs
