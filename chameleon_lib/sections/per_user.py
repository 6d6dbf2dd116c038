"""Section 4.2, Table 1: users with history, three tasks, two backbone families.

``run`` computes everything (resumable); the table functions only count and resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lib.backbones.demo.world import habits_followed
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.metrics import per_sample_scores
from chameleon_lib.lamp.tasks import is_valid_answer
from chameleon_lib.sections.arms import METHODS, arms_of, build_draw, draw_group, plain_arms
from chameleon_lib.sections.data import TaskData, available_tasks, load_task_data, without_gold
from chameleon_lib.sections.parallel import warm
from chameleon_lib.sections.study import Answers, Reference, Study

FAMILY_TITLES = {
    "decoder": "decoder (Mistral class)",
    "encoder-decoder": "encoder-decoder (T5 class)",
}


@dataclass(frozen=True)
class Cell:
    """Everything measured for one (backbone, task).

    Attributes:
        backbone: Backbone id.
        family: ``decoder`` or ``encoder-decoder``.
        task: Task name.
        answers: Method id → one :class:`Answers` per seed (draws, or random directions).
        scores: Method id → score name → (seeds, queries).
        counts: Users left out and why.
        draws: Log of every draw.
    """

    backbone: str
    family: str
    task: str
    answers: dict[str, list[Answers]]
    scores: dict[str, dict[str, np.ndarray]]
    counts: dict[str, int]
    draws: list[dict[str, Any]]


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
    users = {plan.task: sorted_ids(data[plan.task], plan.common_users()) for plan in plans}
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

    def common_users(self) -> set[str]:
        """Test users that every backbone can read: rows must be comparable."""
        test = without_gold(self.data().test)
        usable = [self.study(name).prepare(test)[0] for name in self.profile.backbones]
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
    common = plan.common_users()
    users, counts = study.prepare(without_gold(data.test))
    chosen = [user for user in users if user.user.id in common]
    return _cell(study, data, chosen, counts, plan.draws)


def sorted_ids(data: TaskData, chosen: set[str]) -> list[str]:
    """Ids of the chosen test users in the order of the data."""
    return [user.id for user in data.test if user.id in chosen]


def _cell(
    study: Study,
    data: TaskData,
    test: Sequence[PreparedUser],
    counts: dict[str, int],
    draws: tuple[int, ...],
) -> Cell:
    """All arms of one backbone on one task."""
    tell(f"{study.backbone_id} {study.task}: {len(test)} test users, {len(draws)} groups")
    # Golds are withheld until the positive control asks for those of train users by name.
    train, _ = study.prepare(without_gold(data.train))
    pairs = study.pairs(train)
    golds = {user.id: user for user in data.train}
    reference = reference_answers(study, data, test)
    results: dict[str, list[Answers]] = {}
    for name, answers in study.answer(test, plain_arms(), reference).items():
        results[name] = [answers]
    logs = []
    for index in draws:
        group = [
            replace(user, user=golds[user.user.id])
            for user in draw_group(train, study.settings.group_size, index)
        ]
        ids = {user.user.id for user in group}
        own = [pair for pair in pairs if pair.user_id in ids]
        n_random = -(-study.settings.controls_random_draws // len(draws))
        draw = build_draw(study, group, own, index, n_random)
        arms: dict[str, tuple[str, Edit | None]] = arms_of(draw)
        for name, answers in study.answer(test, arms, reference).items():
            results.setdefault(name.split("/")[0], []).append(answers)
        logs.append({**draw.log, **_pair_quality(data, own)})
    queries = [
        q for user in data.test if user.id in {u.user.id for u in test} for q in user.queries
    ]
    gold = [str(query.gold) for query in queries]
    scores = {
        name: _scores(study.task, gold, answers, data, test, results["instruct"][0])
        for name, answers in results.items()
    }
    order = [method.id for method in METHODS if method.id in results]
    return Cell(
        study.backbone_id,
        study.backbone.family,
        study.task,
        {name: results[name] for name in order},
        {name: scores[name] for name in order},
        counts,
        logs,
    )


def reference_answers(study: Study, data: TaskData, test: Sequence[PreparedUser]) -> Reference:
    """What margins compare: planted answers in the world, gold and neutral output in real data."""
    if data.truth is not None:
        truths = [data.truth[user.user.id] for user in test]
        return Reference(
            [answer for truth in truths for answer in truth.personal],
            [answer for truth in truths for answer in truth.generic],
        )
    golds = {q.id: str(q.gold) for user in data.test for q in user.queries}
    neutral = study.pairs(test)
    return Reference(
        [golds[pair.query_id] for pair in neutral], [pair.answer_n for pair in neutral]
    )


def _pair_quality(data: TaskData, pairs: Sequence[Any]) -> dict[str, float]:
    """Share of synthetic answers that equal the planted ones; empty for real data."""
    if data.truth is None:
        return {}
    truth = {}
    for user in data.train:
        planted = data.truth[user.id]
        for query, p, n in zip(user.queries, planted.personal, planted.generic, strict=True):
            truth[query.id] = (p, n)
    right_p = [pair.answer_p == truth[pair.query_id][0] for pair in pairs]
    right_n = [pair.answer_n == truth[pair.query_id][1] for pair in pairs]
    return {"personal_right": float(np.mean(right_p)), "neutral_right": float(np.mean(right_n))}


def _scores(
    task: str,
    gold: Sequence[str],
    answers: Sequence[Answers],
    data: TaskData,
    test: Sequence[PreparedUser],
    instruct: Answers,
) -> dict[str, np.ndarray]:
    """Score name → (seeds, queries) for one method; ``margin`` holds NaN where undefined."""
    rows: dict[str, list[np.ndarray]] = {}
    for answer in answers:
        one: dict[str, Any] = dict(per_sample_scores(task, gold, answer.texts))
        one["valid"] = [is_valid_answer(task, text) for text in answer.texts]
        one["changed"] = [a != b for a, b in zip(answer.texts, instruct.texts, strict=True)]
        one["margin"] = answer.margin
        if data.truth is not None and task == "LaMP_7":
            tastes = [data.truth[u.user.id].taste for u in test for _ in u.user.queries]
            one["habits"] = [
                habits_followed(text, taste)
                for text, taste in zip(answer.texts, tastes, strict=True)
            ]
        for name, values in one.items():
            rows.setdefault(name, []).append(np.asarray(values, dtype=np.float64))
    return {name: np.stack(values) for name, values in rows.items()}


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
