"""From what the arms said to a scored cell: metrics per query, margins, changes, writing habits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.task import User, is_valid_answer
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.demo.world import habits_followed
from chameleon_lib.errors import UserError
from chameleon_lib.studies.answering import Answers, Reference
from chameleon_lib.studies.data import TaskData
from chameleon_lib.studies.frame import confusion_codes
from chameleon_lib.studies.grid import Desk
from chameleon_lib.studies.methods import METHODS
from chameleon_lib.studies.results import Arm, Cell
from chameleon_lib.studies.study import Study


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


def with_gold(group: Sequence[PreparedUser], users: Sequence[User]) -> list[PreparedUser]:
    """The prepared users with the gold answers that were withheld from the stages before."""
    golds = {user.id: user for user in users}
    return [replace(user, user=golds[user.user.id]) for user in group]


def score_cell(
    desk: Desk,
    answers: Mapping[Arm, Answers],
    logs: Sequence[Mapping[str, Any]],
    condition: str = "",
) -> Cell:
    """Score the answers of every method.

    Args:
        desk: Whose answers they are.
        answers: Arm → its answers, in the order of the draws; ``instruct`` must be there.
        logs: Log of every draw.
        condition: What was varied.

    Raises:
        UserError: A method that ``METHODS`` does not know, or no Instruct to compare with.
    """
    results: dict[str, list[Answers]] = {}
    arms: dict[str, list[Arm]] = {}
    for arm, found in answers.items():
        results.setdefault(arm.method, []).append(found)
        arms.setdefault(arm.method, []).append(arm)
    known = [method.id for method in METHODS]
    unknown = sorted(set(results) - set(known))
    if unknown or "instruct" not in results:
        raise UserError(f"A cell needs 'instruct' and known methods; unknown: {unknown}.")
    tested = {user.user.id for user in desk.test}
    gold = [str(q.gold) for user in desk.data.test if user.id in tested for q in user.queries]
    return Cell(
        desk.study.backbone_id,
        desk.study.task,
        {name: list(results[name]) for name in known if name in results},
        {
            name: _scores(
                desk.study.task, gold, results[name], desk.data, desk.test, results["instruct"][0]
            )
            for name in known
            if name in results
        },
        desk.counts,
        [dict(log) for log in logs],
        condition,
        arms,
    )


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
        one["confusion"] = confusion_codes(task, gold, answer.texts)
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
