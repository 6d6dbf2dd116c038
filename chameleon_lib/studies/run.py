"""The run of every study: tasks × backbones, each cell resumable, and what they leave behind.

A study gives one importable function from a plan and a backbone to cells; what it varies inside
(group sizes, histories, settings) is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.pool import warm
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.data import TaskData, available_tasks, load_task_data, without_gold
from chameleon_lib.studies.frame import Arm, long_frame
from chameleon_lib.studies.methods import model_of, tell_apart
from chameleon_lib.studies.study import Study


@dataclass(frozen=True)
class Answers:
    """What one arm said.

    Attributes:
        texts: One answer per test query.
        margin: log p(user's answer) − log p(generic answer) per query, nats; NaN where the two
            are the same text.
        scores: Score name → (queries,), once they are scored.
    """

    texts: list[str]
    margin: np.ndarray
    scores: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Everything measured for one (backbone, task), under one condition of a study.

    Attributes:
        backbone: Backbone id.
        task: Task name.
        users: Ids of the test users, in the order of the data.
        answers: Arm → its scored answers, methods in table order.
        counts: Users left out and why.
        draws: Log of every draw.
        condition: What was varied, such as "20 users"; empty where nothing is.
    """

    backbone: str
    task: str
    users: list[str]
    answers: dict[Arm, Answers]
    counts: dict[str, int]
    draws: list[dict[str, Any]]
    condition: str = ""

    @property
    def model(self) -> str:
        """The backbone without its training seed."""
        return model_of(self.backbone)


@dataclass(frozen=True)
class Run:
    """All cells of a study with the users they were measured on."""

    profile: RunProfile
    settings: EditSettings
    data: dict[str, TaskData]
    cells: list[Cell]
    notes: list[str] = field(default_factory=list)

    @property
    def test_users(self) -> dict[str, list[str]]:
        """Task → ids of the users that are scored; the same for all of its cells."""
        return {cell.task: cell.users for cell in self.cells}

    def at(self, task: str, model: str, condition: str = "") -> list[Cell]:
        """The cells of one task, model and condition: one per training seed of the model."""
        wanted = (task, model, condition)
        return [c for c in self.cells if (c.task, c.model, c.condition) == wanted]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All results as one long frame; its columns are those of ``studies.frame``."""
        asked = {
            task: [(user.id, query.id) for user in self.data[task].chosen(ids)
                   for query in user.queries]
            for task, ids in self.test_users.items()
        }  # fmt: skip
        return long_frame(
            [
                {
                    "task": cell.task,
                    "model": cell.model,
                    "backbone": cell.backbone,
                    "condition": cell.condition,
                    **arm._asdict(),
                    "user": [user for user, _ in asked[cell.task]],
                    "query": [query for _, query in asked[cell.task]],
                    "scores": answers.scores,
                    "texts": answers.texts,
                }
                for cell in self.cells
                for arm, answers in cell.answers.items()
            ]
        )

    @property
    def models(self) -> list[str]:
        """Models in order."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def conditions(self) -> list[str]:
        """Conditions in order."""
        return list(dict.fromkeys(cell.condition for cell in self.cells))


def agreeing_queries(run: Run, task: str) -> list[str]:
    """Test queries with one answer for user and anyone, where an edit can only do damage.

    None in real data, where no answers are planted.
    """
    truth = run.data[task].truth or {}
    return [
        query.id
        for user in run.data[task].chosen(run.test_users[task])
        if user.id in truth
        for query, personal, generic in zip(
            user.queries, truth[user.id].personal, truth[user.id].generic, strict=True
        )
        if personal == generic
    ]


def left_out(counts: Mapping[str, int]) -> dict[str, int]:
    """The columns of a table that say why how many test users are not scored."""
    reasons = ("no_history", "too_long", "empty_insight")
    return {f"left out: {name.replace('_', ' ')}": counts[name] for name in reasons}


def split_of(run: Run, task: str) -> str:
    """Which users are scored, in words."""
    data = run.data[task]
    if data.imported:
        return "users of an imported table"
    return "official dev users" if data.truth is None else "test users of the embedded world"


_COMMON: dict[tuple[Plan, str], frozenset[str]] = {}  # filled by Plan.common_users


def in_all(parts: Iterable[Sequence[PreparedUser]]) -> frozenset[str]:
    """Ids of the users who are in every list: rows must be comparable."""
    return frozenset.intersection(*(frozenset(user.user.id for user in part) for part in parts))


@dataclass(frozen=True)
class Desk:
    """What a study has in front of it for one cell.

    Attributes:
        study: Stages of the backbone on the task.
        data: All users of the task.
        test: Prepared test users that every backbone can read.
        counts: Test users left out, and why.
    """

    study: Study
    data: TaskData
    test: list[PreparedUser]
    counts: dict[str, int]

    @cached_property
    def tested(self) -> list[str]:
        """Ids of the test users, in the order of the data."""
        found = {user.user.id for user in self.test}
        return [user.id for user in self.data.test if user.id in found]

    @cached_property
    def train(self) -> list[PreparedUser]:
        """Prepared train users; golds are withheld until something asks for them by name."""
        return self.study.prepare(without_gold(self.data.train)).users


@dataclass(frozen=True)
class Plan:
    """What a worker needs to know to compute its share of one task; picklable.

    Attributes:
        profile: Sizes, backbones and data of the run.
        settings: Every choice of the method.
        task: Task name.
        data_dir: Folder of official LaMP files; empty for the embedded world.
        max_users: Cap on train and on test users; 0 for the profile's numbers.
        draws: Seeds of the random groups.
        root: Folder of the artifact store.
        world: Knobs of the embedded world that differ from its own.
    """

    profile: RunProfile
    settings: EditSettings
    task: str
    data_dir: str
    max_users: int
    draws: tuple[int, ...]
    root: Path
    world: tuple[tuple[str, Any], ...] = ()

    def data(self) -> TaskData:
        """The users of the task."""
        return load_task_data(
            self.profile,
            self.task,
            self.data_dir,
            self.max_users,
            self.settings.eval_split,
            dict(self.world),
        )

    def study(self, backbone: str, settings: EditSettings | None = None) -> Study:
        """The stages of one backbone, under other settings if given."""
        store = ArtifactStore(self.root)
        return Study(self.profile, backbone, self.task, settings or self.settings, store)

    def common_users(self, data: TaskData, last: str = "") -> frozenset[str]:
        """Test users that every backbone can read.

        Found once per process and users: every cell of the task asks again.

        Args:
            data: The users of the task.
            last: Backbone to open last, so that it is still at hand where only one is kept.
        """
        known = _COMMON.get((self, data.digest))
        if known is None:
            test = without_gold(data.test)
            names = sorted(self.profile.backbones, key=lambda name: name == last)
            usable = [self.study(name).prepare(test).users for name in names]
            _COMMON[self, data.digest] = known = in_all(usable)
        return known

    def open(self, backbone: str) -> Desk:
        """Everything a cell starts from."""
        study, data = self.study(backbone), self.data()
        common = self.common_users(data, last=backbone)
        found = study.prepare(without_gold(data.test))
        test = [user for user in found.users if user.user.id in common]
        return Desk(study, data, test, found.counts)


def studied(profile: RunProfile) -> RunProfile:
    """The profile on the backbones of the studies beside Table 1."""
    return replace(profile, backbones=profile.studied)


def plans_of(
    profile: RunProfile,
    settings: EditSettings,
    *,
    tasks: Sequence[str] = (),
    data_dir: str = "",
    max_users: int = 0,
    draws: int = 0,
    world: dict[str, Any] | None = None,
    store: ArtifactStore | None = None,
) -> tuple[list[Plan], list[str]]:
    """One plan per task of a run, and a sentence for each task that is left out.

    Args:
        profile: Sizes, backbones and data of the run.
        settings: Every choice of the method.
        tasks: Tasks of the study; all of the profile if empty.
        data_dir: Folder of official LaMP files; empty for the embedded world.
        max_users: Cap on train and on test users; 0 for the profile's numbers.
        draws: Random groups; 0 for the profile's number.
        world: Knobs of the embedded world that differ from its own.
        store: Artifact store; the default one if None.

    Raises:
        UserError: Missing or malformed data, or two backbones that tables would call alike.
    """
    tell_apart(profile.backbones)
    found, notes = available_tasks(profile, data_dir, settings.eval_split, tasks)
    if data_dir:
        # Real users are few in some files: a small group is then said, not refused (A20).
        settings = settings.with_(pairs_on_too_few="warn")
    seeds = tuple(range(draws)) if draws else settings.group_seeds
    knobs = tuple(sorted((world or {}).items()))
    root = (store or ArtifactStore()).root
    plans = [
        Plan(profile, settings, task, data_dir, max_users, seeds, root, knobs) for task in found
    ]
    return plans, notes


def run_grid(
    compute: Callable[[Plan, str], list[Cell]],
    profile: RunProfile,
    settings: EditSettings,
    *,
    workers: int | None = None,
    **options: Any,
) -> Run:
    """Compute a study.

    Args:
        compute: From a plan and a backbone to the cells of one task and backbone; importable, and
            all that is costly in it goes through the artifact store.
        profile: Sizes, backbones and data of the run.
        settings: Every choice of the method.
        workers: Processes; the profile's number if None.
        options: Those of :func:`plans_of`.

    Raises:
        UserError: Missing or malformed data, or whatever ``compute`` refuses.
    """
    plans, notes = plans_of(profile, settings, **options)
    workers = profile.workers if workers is None else workers
    if workers > 1:
        # The longest answers first, so that no worker is left alone with them at the end.
        queue = plans[::-1]
        every = [(plan, name) for plan in queue for name in profile.backbones]
        phases = [
            ("history selection", _select, [(plan, part) for plan in queue for part in _PARTS]),
            ("insights", _prepare, every),
            ("cells", compute, every),
        ]
        warm(phases, workers=workers, threads=profile.threads, preload=_CLASSES)
    data = {plan.task: plan.data() for plan in plans}
    cells = [cell for plan in plans for name in profile.backbones for cell in compute(plan, name)]
    return Run(profile, plans[0].settings, data, cells, notes)


_PARTS = ("train", "test")
# transformers imports the classes of a model at its first use; these are the embedded ones'.
_CLASSES = ("transformers.models.mistral.modeling_mistral", "transformers.models.t5.modeling_t5")


def _select(plan: Plan, part: str) -> None:
    plan.study(plan.profile.backbones[0]).select(getattr(plan.data(), part))


def _prepare(plan: Plan, backbone: str) -> None:
    data = plan.data()
    for part in _PARTS:
        plan.study(backbone).prepare(without_gold(getattr(data, part)))
