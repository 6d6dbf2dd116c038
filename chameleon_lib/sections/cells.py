"""One cell of Table 1: every arm of one backbone on one task, answered and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chameleon_lib.backbones.demo.world import habits_followed
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.kit.progress import tell
from chameleon_lib.lamp.metrics import per_sample_scores
from chameleon_lib.lamp.tasks import is_valid_answer
from chameleon_lib.sections.answering import Answers, Exam, Reference
from chameleon_lib.sections.arms import arms_of, build_draw, draw_group, plain_arms
from chameleon_lib.sections.data import TaskData, without_gold
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.study import Study


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


def compute_cell(
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
    exam = Exam(study, test, reference_answers(study, data, test))
    results = {name: [answers] for name, answers in exam.answer(plain_arms()).items()}
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
        for name, answers in exam.answer(arms_of(draw)).items():
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
