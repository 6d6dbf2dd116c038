"""Section 4.2, Table 1: users with history, three tasks, two backbone families.

``run`` computes everything (resumable); the table functions only count and resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.cells import Cell, compute_cell
from chameleon_lib.sections.data import TaskData, available_tasks, load_task_data, without_gold
from chameleon_lib.sections.parallel import warm
from chameleon_lib.sections.study import Study

FAMILY_TITLES = {
    "decoder": "decoder (Mistral class)",
    "encoder-decoder": "encoder-decoder (T5 class)",
}


@dataclass(frozen=True)
class Run:
    """All cells of Table 1 with the users they were measured on."""

    profile: RunProfile
    settings: EditSettings
    data: dict[str, TaskData]
    test_users: dict[str, list[str]]
    cells: list[Cell]
    notes: list[str] = field(default_factory=list)

    def of(self, task: str, family: str) -> list[Cell]:
        """The cells of one task and family: one per training seed of the backbone."""
        return [c for c in self.cells if c.task == task and c.family == family]

    @property
    def families(self) -> list[str]:
        """Backbone families in order."""
        return list(dict.fromkeys(cell.family for cell in self.cells))


def run(
    profile: RunProfile,
    settings: EditSettings,
    *,
    data_dir: str = "",
    max_users: int = 0,
    draws: int = 0,
    store: ArtifactStore | None = None,
    workers: int | None = None,
) -> Run:
    """Compute Table 1.

    Args:
        profile: Sizes, backbones and data of the run.
        settings: Every choice of the method.
        data_dir: Folder of official LaMP files; empty for the embedded world.
        max_users: Cap on train and on test users; 0 for the profile's numbers.
        draws: Random groups; 0 for the profile's number.
        store: Artifact store; the default one if None.
        workers: Processes; the profile's number if None.
    """
    store = store or ArtifactStore()
    tasks, notes = available_tasks(profile, data_dir, settings.eval_split)
    if data_dir:
        # Real users are few in some files: a small group is then said, not refused (A20).
        settings = settings.with_(pairs_on_too_few="warn")
    seeds = tuple(range(draws)) if draws else settings.group_seeds
    plans = [
        Plan(profile, settings, task, data_dir, max_users, seeds, store.root) for task in tasks
    ]
    pool = {"workers": profile.workers if workers is None else workers, "threads": profile.threads}
    for step, label in (
        (_select, "history selection"),
        (_prepare, "insights"),
        (_compute, "cells"),
    ):
        per_task = step is _select
        names = (profile.backbones[0],) if per_task else profile.backbones
        # The longest answers first, so that no worker is left alone with them at the end.
        units = [(plan, name) for plan in reversed(plans) for name in names]
        if pool["workers"] > 1:
            warm(step, units, label=label, **pool)
    data = {plan.task: plan.data() for plan in plans}
    cells = [_compute(plan, name) for plan in plans for name in profile.backbones]
    users = {
        plan.task: sorted_ids(data[plan.task], plan.common_users(data[plan.task]))
        for plan in plans
    }
    return Run(profile, settings, data, users, cells, notes)


@dataclass(frozen=True)
class Plan:
    """What a worker needs to know to compute its share of one task; picklable."""

    profile: RunProfile
    settings: EditSettings
    task: str
    data_dir: str
    max_users: int
    draws: tuple[int, ...]
    root: Path

    def data(self) -> TaskData:
        """The users of the task."""
        split = self.settings.eval_split
        return load_task_data(self.profile, self.task, self.data_dir, self.max_users, split)

    def study(self, backbone: str) -> Study:
        """The stages of one backbone."""
        return Study(self.profile, backbone, self.task, self.settings, ArtifactStore(self.root))

    def common_users(self, data: TaskData, last: str = "") -> set[str]:
        """Test users that every backbone can read: rows must be comparable.

        Args:
            data: The users of the task.
            last: Backbone to open last, so that it is still at hand where only one is kept.
        """
        test = without_gold(data.test)
        names = sorted(self.profile.backbones, key=lambda name: name == last)
        usable = [self.study(name).prepare(test)[0] for name in names]
        return set.intersection(*({user.user.id for user in users} for users in usable))


def _select(plan: Plan, backbone: str) -> None:
    data = plan.data()
    for part in (data.train, data.test):
        plan.study(backbone).select(part)


def _prepare(plan: Plan, backbone: str) -> None:
    data = plan.data()
    for part in (data.train, data.test):
        plan.study(backbone).prepare(without_gold(part))


def _compute(plan: Plan, backbone: str) -> Cell:
    study, data = plan.study(backbone), plan.data()
    common = plan.common_users(data, last=backbone)
    users, counts = study.prepare(without_gold(data.test))
    chosen = [user for user in users if user.user.id in common]
    return compute_cell(study, data, chosen, counts, plan.draws)


def sorted_ids(data: TaskData, chosen: set[str]) -> list[str]:
    """Ids of the chosen test users in the order of the data."""
    return [user.id for user in data.test if user.id in chosen]


def stacked(cells: Sequence[Cell], method: str, score: str) -> np.ndarray:
    """(seeds, queries) of one method over all training seeds of a family."""
    return np.concatenate([cell.scores[method][score] for cell in cells])


def query_users(run_: Run, task: str) -> list[str]:
    """The user of every test query, in the order of the scores."""
    chosen = set(run_.test_users[task])
    return [u.id for u in run_.data[task].test if u.id in chosen for _ in u.queries]


def query_golds(run_: Run, task: str) -> list[str]:
    """The gold of every test query, in the order of the scores."""
    chosen = set(run_.test_users[task])
    users = [u for u in run_.data[task].test if u.id in chosen]
    return [str(q.gold) for u in users for q in u.queries]


def agreeing(run_: Run, task: str) -> np.ndarray:
    """Which test queries have one answer for user and anyone: where an edit can only do damage."""
    truth: Mapping[str, Any] | None = run_.data[task].truth
    if truth is None:
        return np.zeros(len(query_users(run_, task)), dtype=bool)
    return np.array(
        [
            p == g
            for user in run_.test_users[task]
            for p, g in zip(truth[user].personal, truth[user].generic, strict=True)
        ]
    )
