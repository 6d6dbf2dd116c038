"""Users of one task for a run: the embedded world, or official LaMP files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from chameleon_lib.core.task import User, get_task, registered
from chameleon_lib.data.lamp import SeveralFiles, find_split
from chameleon_lib.data.users import MIN_OVERLAP, check_disjoint, load_parts
from chameleon_lib.demo.world import Truth, World, WorldSettings, build_world
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.profiles import RunProfile

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

    def chosen(self, ids: Collection[str]) -> list[User]:
        """The test users with these ids, in the order of the data."""
        wanted = set(ids)
        return [user for user in self.test if user.id in wanted]

    def golds(self, ids: Collection[str]) -> list[str]:
        """The gold answer to every query of these test users."""
        return [str(query.gold) for user in self.chosen(ids) for query in user.queries]


def available_tasks(
    profile: RunProfile, data_dir: str, eval_split: str = "dev", tasks: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Tasks that can run, of ``tasks`` or all, and a sentence for each whose files are missing.

    Tasks that the profile does not name run as well where the folder holds their files.

    Raises:
        UserError: None of the tasks, no such folder, or the demo profile with a folder.
    """
    _refuse_demo(profile, data_dir)
    scored = "dev" if eval_split == "custom" else eval_split
    possible = dict.fromkeys([*profile.tasks, *(registered() if data_dir else [])])
    wanted = [task for task in possible if not tasks or task in tasks]
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
            if task in profile.tasks or task in tasks:
                missing.append(f"{get_task(task).title} is left out: {problem}")
        else:
            found.append(task)
    wanted = [task for task in wanted if task in profile.tasks or task in tasks]
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
    cap = dict(zip(PARTS, (min(n, max_users) if max_users else n for n in limits), strict=True))
    imported, overlap = False, MIN_OVERLAP
    truth: Mapping[str, Truth] | None = None
    if data_dir:
        found = load_parts(
            Path(data_dir), task, cap,
            scored="dev" if eval_split == "custom" else eval_split,
            use_train=eval_split != "custom",
        )  # fmt: skip
        parts, source, imported = found.users, found.source, found.imported
        overlap = found.min_overlap
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
    most = profile.test_queries
    if most and any(len(user.queries) > most for user in test):
        test = tuple(replace(user, queries=user.queries[:most]) for user in test)
        source += f"; of a test user's queries the first {most}"
    check_disjoint(train, test, overlap)
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


def without_gold(users: Sequence[User]) -> list[User]:
    """The same users with every gold answer removed: what a fit is allowed to see."""
    return [
        replace(user, queries=tuple(replace(query, gold=None) for query in user.queries))
        for user in users
    ]
