"""Users of one task for a run: the embedded world, or official LaMP files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from chameleon_lib.backbones.demo.world import Truth, World, WorldSettings, build_world
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.lamp.data import SeveralFiles, find_split, load_samples
from chameleon_lib.lamp.grouping import (
    DECLARATION,
    SAMPLES,
    Choice,
    grouping_report,
    read_choice,
    users_by_part,
)
from chameleon_lib.lamp.import_report import REPORT
from chameleon_lib.lamp.lean import Slimmer, slimmer
from chameleon_lib.lamp.records import User
from chameleon_lib.lamp.samples import Sample
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.lamp.users import MIN_OVERLAP, check_disjoint, default_grouping

# A folder with one labelled split only (official test labels are withheld) is divided by user.
OWN_SPLIT = {"train": 0.4, "dev": 0.1, "test": 0.5}
FIT_SPLIT, SCORED_SPLIT = {"train": 0.9, "dev": 0.1}, {"test": 1.0}  # of a file each
SALT = "chameleon-kit"
PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class TaskData:
    """All users of one task, in disjoint parts.

    Attributes:
        task: Task name.
        train: Users whose queries may feed a fit.
        dev: Users for choosing knobs.
        test: Users that are scored and reach no fit.
        everyone: All labelled users, for baselines that need no model; in large files those who
            are in no part have labels but no texts.
        truth: Planted truth by user id; None for real data.
        source: Where the users come from and how they were divided, one sentence.
        digest: Hash of all users.
        imported: Whether the users come from a table of one's own (``data import``).
    """

    task: str
    train: tuple[User, ...]
    dev: tuple[User, ...]
    test: tuple[User, ...]
    everyone: tuple[User, ...]
    truth: Mapping[str, Truth] | None
    source: str
    digest: str
    imported: bool = False


def available_tasks(
    profile: RunProfile, data_dir: str, eval_split: str = "dev", tasks: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Tasks that can run, of ``tasks`` or all, and a sentence for each whose files are missing.

    Raises:
        UserError: None of the tasks, no such folder, or the demo profile with a folder.
    """
    _refuse_demo(profile, data_dir)
    scored = _file_of(eval_split)
    wanted = [task for task in profile.tasks if not tasks or task in tasks]
    if not wanted:
        raise UserError(f"Profile {profile.name} has none of the tasks {', '.join(tasks)}.")
    if not data_dir:
        return wanted, []
    if not Path(data_dir).is_dir():
        raise UserError(f"There is no data folder {data_dir}; give the folder that holds LaMP_N.")
    found, missing = [], []
    for task in wanted:
        try:
            find_split(Path(data_dir), task, scored)
        except SeveralFiles:
            raise
        except UserError as problem:
            missing.append(f"{get_task(task).title} is left out: {problem}")
        else:
            found.append(task)
    if not found:
        raise UserError(
            f"{data_dir} holds a {scored} split of none of {', '.join(wanted)}; put "
            f"{scored}_questions.json and {scored}_outputs.json into its LaMP_N folders."
        )
    return found, missing


def load_task_data(
    profile: RunProfile,
    task: str,
    data_dir: str = "",
    max_users: int = 0,
    eval_split: str = "dev",
    world: Mapping[str, Any] | None = None,
) -> TaskData:
    """Load the users of one task.

    Args:
        profile: Gives the numbers of train, dev and test users.
        task: Task name.
        data_dir: Folder of official LaMP files; empty means the embedded world (demo profile).
        max_users: Cap on the users of each part; 0 means the profile's numbers.
        eval_split: Official split that is scored (A18); ``custom`` divides the dev users by hash
            even where a train file exists. The embedded world always scores its test users.
        world: Knobs of the embedded world that differ from its own; no meaning for files.

    Raises:
        UserError: A profile that needs official files got no folder, the demo profile got one, or
            a file is not valid.
    """
    _refuse_demo(profile, data_dir)
    limits = (profile.n_train, profile.n_dev, profile.n_test)
    cap = dict(
        zip(PARTS, (min(n, max_users) if max_users else n for n in limits), strict=True)
    )
    imported = False
    if data_dir:
        parts, source, imported = _from_files(Path(data_dir), task, eval_split, cap)
        truth: Mapping[str, Truth] | None = None
    elif profile.data == "demo":
        built = _world(task, WorldSettings(users=limits, **(world or {})))
        parts, truth = {split: users for split, users in built.users.items()}, built.truth
        source = "embedded world with planted tastes; the parts share no user and no query"
        if world:
            source += f" ({', '.join(f'{name} {value}' for name, value in world.items())})"
    else:
        raise UserError(
            f"Profile {profile.name} runs on official LaMP files: give their folder (--data DIR)."
        )
    everyone = tuple(user for part in PARTS for user in parts[part])
    train, dev, test = (tuple(parts[part][: cap[part]]) for part in PARTS)
    overlap = read_choice(Path(data_dir), task).min_overlap if data_dir else MIN_OVERLAP
    check_disjoint(train, test, min_overlap=overlap)
    hashed = digest([train, dev, test])
    return TaskData(task, train, dev, test, everyone, truth, source, hashed, imported)


def _refuse_demo(profile: RunProfile, data_dir: str) -> None:
    """The demo's banner and results are those of the embedded world; files may not take them."""
    if profile.name == "demo" and data_dir:
        raise UserError(
            f"Profile demo is the embedded world alone, so it does not take {data_dir}: choose "
            "profile demo-data, whose results stand in a folder of their own."
        )


@lru_cache(maxsize=8)
def _world(task: str, settings: WorldSettings) -> World:
    """The embedded world; many cells ask for the same one."""
    return build_world(task, settings)


def _file_of(eval_split: str) -> str:
    return "dev" if eval_split == "custom" else eval_split


def _from_files(
    folder: Path, task: str, eval_split: str, limits: Mapping[str, int]
) -> tuple[dict[str, list[User]], str, bool]:
    """Users by part, what they are, and whether a table of one's own gave them.

    Official files are a train file and the scored one; one file alone is divided by hash.
    """
    scored = _file_of(eval_split)
    questions, outputs = find_split(folder, task, scored)
    if outputs is None:
        raise UserError(f"{questions} has no outputs file beside it, so nothing can be scored.")
    choice = read_choice(folder, task)
    train_files = None if eval_split == "custom" else _train_files(folder, task)
    # Which division it is shows when both files are read; till then the users of either are kept.
    divisions = (OWN_SPLIT,) if train_files is None else (OWN_SPLIT, SCORED_SPLIT)
    slim = slimmer(task, SALT, limits, *divisions)
    samples = load_samples(questions, outputs, task, slim=slim)
    imported = (questions.parent / REPORT).is_file()
    slim_fit = slimmer(task, SALT, limits, FIT_SPLIT)
    fitting = load_samples(*train_files, task, slim=slim_fit) if train_files is not None else []
    shared = _names(samples, slim) & _names(fitting, slim_fit)
    if train_files is None or shared:
        parts = users_by_part(samples, task, OWN_SPLIT, SALT, choice)
        source = "users of an imported table" if imported else f"official LaMP {scored} users"
        source += ", divided 40/10/50 by a hash of the user"
        if not imported:
            why = "no train file is used"
            if shared:
                why = f"the train file has {len(shared)} of the same users: a time-based split"
            source += f" (own split: {why}, and official test labels are withheld)"
        return parts, source + _unit(samples, task, choice, parts), imported
    parts = users_by_part(samples, task, SCORED_SPLIT, SALT, choice)
    source = (
        f"official LaMP: train users fit, {scored} users are scored (official test labels are "
        f"withheld){_unit(samples, task, choice, parts)}"
    )
    fit_parts = users_by_part(fitting, task, FIT_SPLIT, SALT, choice)
    return {**fit_parts, **parts}, source, imported


def _names(samples: Sequence[Sample], slim: Slimmer | None) -> set[str]:
    """User ids that the records of a file give."""
    if slim is not None:
        return slim.named  # the samples have names of its making
    return {sample.user_id for sample in samples if sample.user_id is not None}


def _unit(
    samples: Sequence[Sample], task: str, choice: Choice, parts: Mapping[str, Sequence[User]]
) -> str:
    """What counts as a user, where the files do not say it: the end of a sentence."""
    if choice.users == SAMPLES:
        return (
            f"; each of the {len(samples)} samples counts as a user, as {DECLARATION} declares, "
            "so intervals are too narrow where one person has several"
        )
    if default_grouping(task) != "overlap" or samples[0].user_id is not None:
        return ""
    asked = sum(len(user.queries) for users in parts.values() for user in users)
    lost = len(samples) - asked
    return f"; {grouping_report(samples, choice.min_overlap).sentence()}" + (
        f"; {lost} questions are left out, or no history of their user would be left" * (lost > 0)
    )


def _train_files(folder: Path, task: str) -> tuple[Path, Path] | None:
    """Questions and outputs of the train users; None where the folder holds no train file at all.

    Raises:
        UserError: Several train files, one in a place of its own, or one without golds.
    """
    try:
        questions, outputs = find_split(folder, task, "train")
    except UserError:
        anywhere = f"{task.replace('_', '[_-]')}*/**/train_questions.json"
        if any(folder.glob(anywhere)):
            raise
        return None
    if outputs is None:
        raise UserError(
            f"{questions} has no outputs file beside it, so its users cannot feed the positive "
            "control; add it, or set eval_split to 'custom' to use no train file."
        )
    return questions, outputs


def without_gold(users: Sequence[User]) -> list[User]:
    """The same users with every gold answer removed: what a fit is allowed to see."""
    return [
        replace(user, queries=tuple(replace(query, gold=None) for query in user.queries))
        for user in users
    ]
