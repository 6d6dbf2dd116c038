"""The grid that every study walks: tasks × backbones, each cell resumable and on its own process.

A study gives one importable function from a plan and a backbone to cells; what it varies inside
(group sizes, histories, settings) is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.data import TaskData, available_tasks, load_task_data, without_gold
from chameleon_lib.studies.parallel import warm
from chameleon_lib.studies.results import Cell, Run, sorted_ids
from chameleon_lib.studies.study import Study

_COMMON: dict[tuple[Plan, str], frozenset[str]] = {}  # filled by Plan.common_users


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
        """Test users that every backbone can read: rows must be comparable.

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
            known = frozenset.intersection(
                *(frozenset(user.user.id for user in users) for users in usable)
            )
            _COMMON[self, data.digest] = known
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


def run_grid(
    compute: Callable[[Plan, str], list[Cell]],
    profile: RunProfile,
    settings: EditSettings,
    *,
    tasks: Sequence[str] = (),
    data_dir: str = "",
    max_users: int = 0,
    draws: int = 0,
    world: dict[str, Any] | None = None,
    store: ArtifactStore | None = None,
    workers: int | None = None,
) -> Run:
    """Compute a study.

    Args:
        compute: From a plan and a backbone to the cells of one task and backbone; importable, and
            all that is costly in it goes through the artifact store.
        profile: Sizes, backbones and data of the run.
        settings: Every choice of the method.
        tasks: Tasks of the study; all of the profile if empty.
        data_dir: Folder of official LaMP files; empty for the embedded world.
        max_users: Cap on train and on test users; 0 for the profile's numbers.
        draws: Random groups; 0 for the profile's number.
        world: Knobs of the embedded world that differ from its own.
        store: Artifact store; the default one if None.
        workers: Processes; the profile's number if None.

    Raises:
        UserError: Missing or malformed data, or whatever ``compute`` refuses.
    """
    store = store or ArtifactStore()
    found, notes = available_tasks(profile, data_dir, settings.eval_split, tasks)
    if data_dir:
        # Real users are few in some files: a small group is then said, not refused (A20).
        settings = settings.with_(pairs_on_too_few="warn")
    seeds = tuple(range(draws)) if draws else settings.group_seeds
    knobs = tuple(sorted((world or {}).items()))
    plans = [
        Plan(profile, settings, task, data_dir, max_users, seeds, store.root, knobs)
        for task in found
    ]
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
    users = {
        plan.task: sorted_ids(data[plan.task], plan.common_users(data[plan.task])) for plan in plans
    }
    return Run(profile, settings, data, users, cells, notes)


_PARTS = ("train", "test")
# transformers imports the classes of a model at its first use; these are the embedded ones'.
_CLASSES = ("transformers.models.mistral.modeling_mistral", "transformers.models.t5.modeling_t5")


def _select(plan: Plan, part: str) -> None:
    plan.study(plan.profile.backbones[0]).select(getattr(plan.data(), part))


def _prepare(plan: Plan, backbone: str) -> None:
    data = plan.data()
    for part in _PARTS:
        plan.study(backbone).prepare(without_gold(getattr(data, part)))
