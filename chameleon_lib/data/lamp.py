"""Find, load, divide and write LaMP files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.core.task import Query, Task, User, get_task
from chameleon_lib.data.lean import Slimmer
from chameleon_lib.data.samples import Sample, load_samples
from chameleon_lib.data.users import (
    DECLARATION,
    MIN_OVERLAP,
    SAMPLES,
    Choice,
    Grouping,
    group_samples_into_users,
    grouping_report,
    read_choice,
    users_by_part,
)
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text

# A folder with one labelled split only (official test labels are withheld) is divided by user.
OWN_SPLIT = {"train": 0.4, "dev": 0.1, "test": 0.5}
FIT_SPLIT, SCORED_SPLIT = {"train": 0.9, "dev": 0.1}, {"test": 1.0}  # of a file each
SALT = "chameleon-kit"
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


def load_users(
    questions: Path,
    outputs: Path | None,
    task: str | Task,
    *,
    grouping: Grouping | None = None,
    min_overlap: float = MIN_OVERLAP,
) -> list[User]:
    """Load the users of one split.

    Args:
        questions: The ``*_questions.json`` file.
        outputs: The ``*_outputs.json`` file; None leaves every gold None.
        task: Task or its name.
        grouping: How samples become users, see `group_samples_into_users`.
        min_overlap: See there.

    Raises:
        UserError: A broken file or record, or golds that do not fit the questions.
    """
    samples = load_samples(questions, outputs, task)
    return group_samples_into_users(samples, task, grouping=grouping, min_overlap=min_overlap)


@dataclass(frozen=True)
class Parts:
    """The users of a folder.

    Attributes:
        users: Users of "train", "dev" and "test", which share nobody; beyond the limits that were
            asked for, users of large files have labels but no texts.
        source: What they are and how they were divided, one sentence.
        imported: Whether a table of one's own gave them.
        min_overlap: Overlap of profiles from which they count as one person's.
    """

    users: dict[str, list[User]]
    source: str
    imported: bool
    min_overlap: float


def load_parts(
    folder: Path, task: str | Task, limits: Mapping[str, int], *, scored: str = "dev",
    use_train: bool = True,
) -> Parts:  # fmt: skip
    """Load the users of a folder, divided into those who fit and those who are scored.

    Official files are a train file and the scored one; one file alone is divided by hash.

    Args:
        folder: Holds ``LaMP_N``.
        task: Task or its name.
        limits: Part -> most users that are wanted with their texts.
        scored: Split whose users are scored.
        use_train: Whether a train file is used where there is one.

    Raises:
        UserError: A file is missing or not valid.
    """
    chosen = get_task(task)
    questions, outputs = find_split(folder, chosen, scored)
    if outputs is None:
        raise UserError(f"{questions} has no outputs file beside it, so nothing can be scored.")
    choice = read_choice(folder, chosen)
    train_files = _train_files(folder, chosen) if use_train else None
    # Which division it is shows when both files are read; till then the users of either are kept.
    slim = Slimmer(chosen, SALT, limits, [OWN_SPLIT, *([SCORED_SPLIT] if train_files else [])])
    samples = load_samples(questions, outputs, chosen, slim=slim)
    slim_fit = Slimmer(chosen, SALT, limits, [FIT_SPLIT])
    fitting = load_samples(*train_files, chosen, slim=slim_fit) if train_files else []
    shared = slim.named & slim_fit.named
    imported = (questions.parent / IMPORT_REPORT).is_file()

    def parts(of: Sequence[Sample], shares: Mapping[str, float]) -> dict[str, list[User]]:
        return users_by_part(of, chosen, shares, SALT, choice)

    if train_files is None or shared:
        users = parts(samples, OWN_SPLIT)
        source = "users of an imported table" if imported else f"official LaMP {scored} users"
        source += ", divided 40/10/50 by a hash of the user"
        if not imported:
            why = "no train file is used"
            if shared:
                why = f"the train file has {len(shared)} of the same users: a time-based split"
            source += f" (own split: {why}, and official test labels are withheld)"
        source += _unit(samples, chosen, choice, users)
    else:
        users = parts(samples, SCORED_SPLIT)
        source = (
            f"official LaMP: train users fit, {scored} users are scored (official test labels are "
            f"withheld){_unit(samples, chosen, choice, users)}"
        )
        users |= parts(fitting, FIT_SPLIT)
    return Parts(users, source, imported, choice.min_overlap)


def _unit(
    samples: Sequence[Sample], task: Task, choice: Choice, parts: Mapping[str, Sequence[User]]
) -> str:
    """What counts as a user, where the files do not say it: the end of a sentence."""
    if choice.users == SAMPLES:
        return (
            f"; each of the {len(samples)} samples counts as a user, as {DECLARATION} declares, "
            "so intervals are too narrow where one person has several"
        )
    if task.users_by != "overlap" or samples[0].user_id is not None:
        return ""
    lost = len(samples) - sum(len(user.queries) for users in parts.values() for user in users)
    sure = f"; {grouping_report(samples, choice.min_overlap).sentence()}"
    if not lost:
        return sure
    return f"{sure}; {lost} questions are left out, or no history of their user would be left"


def _train_files(folder: Path, task: Task) -> tuple[Path, Path] | None:
    """Questions and outputs of the train users; None where the folder holds no train file at all.

    Raises:
        UserError: Several train files, one in a place of its own, or one without golds.
    """
    try:
        questions, outputs = find_split(folder, task, "train")
    except UserError:
        anywhere = f"{task.name.replace('_', '[_-]')}*/**/train_questions.json"
        if any(folder.glob(anywhere)):
            raise
        return None
    if outputs is None:
        raise UserError(
            f"{questions} has no outputs file beside it, so its users cannot feed the positive "
            "control; add it, or set eval_split to 'custom' to use no train file."
        )
    return questions, outputs


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
