"""One cell of Table 1: every arm of one backbone on one task, answered and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.kit.progress import tell
from chameleon_lib.lamp.records import User
from chameleon_lib.sections.answering import Exam
from chameleon_lib.sections.arms import arms_of, build_draw, draw_group, plain_arms
from chameleon_lib.sections.data import TaskData, without_gold
from chameleon_lib.sections.edit_size import edit_size
from chameleon_lib.sections.grid import Desk
from chameleon_lib.sections.results import Cell
from chameleon_lib.sections.rivals import prompted_rivals, trained_rivals
from chameleon_lib.sections.scoring import reference_answers, score_cell
from chameleon_lib.sections.seen import said

# Edits whose size is measured: the two that are compared, and a control of either's size.
SIZED = ("chameleon", "fitted", "from_neutral", "fitted_shuffled", "random/0")


def compute_cell(desk: Desk, draws: tuple[int, ...]) -> Cell:
    """All arms of one backbone on one task."""
    study, data = desk.study, desk.data
    tell(f"{study.backbone_id} {study.task}: {len(desk.test)} test users, {len(draws)} groups")
    # Golds are withheld until the positive control and ALOE ask for those of train users by name.
    train, _ = study.prepare(without_gold(data.train))
    pairs = study.pairs(train)
    reference = reference_answers(study, data, desk.test)
    exam = Exam(study, desk.test, reference)
    results = {name: [answers] for name, answers in exam.answer(plain_arms()).items()}
    rivals = study.backbone_id in study.profile.studied
    if rivals:
        results |= prompted_rivals(exam)
        before = said(study, train, "instruct")
    logs = []
    for index in draws:
        group = with_gold(draw_group(train, study.settings.group_size, index), data.train)
        ids = {user.user.id for user in group}
        own = [pair for pair in pairs if pair.user_id in ids]
        n_random = -(-study.settings.controls_random_draws // len(draws))
        draw = build_draw(study, group, own, index, n_random)
        sizes = {name: edit_size(study, desk.test, draw.edits[name]) for name in SIZED}
        log = {**draw.log, **_pair_quality(data, own), "sizes": sizes}
        for name, answers in exam.answer(arms_of(draw)).items():
            results.setdefault(name.split("/")[0], []).append(answers)
        if rivals:
            found = trained_rivals(exam, group, own, index, before)
            for name, (answers, trained) in found.items():
                results.setdefault(name, []).append(answers)
                log[name] = trained
        logs.append(log)
    return score_cell(desk, results, logs)


def with_gold(group: Sequence[PreparedUser], users: Sequence[User]) -> list[PreparedUser]:
    """The prepared users with the gold answers that were withheld from the stages before."""
    golds = {user.id: user for user in users}
    return [replace(user, user=golds[user.user.id]) for user in group]


def _pair_quality(data: TaskData, pairs: Sequence[Any]) -> dict[str, Any]:
    """Which synthetic answers equal the planted ones, with their users; empty for real data."""
    if data.truth is None:
        return {}
    truth = {}
    for user in data.train:
        planted = data.truth[user.id]
        for query, p, n in zip(user.queries, planted.personal, planted.generic, strict=True):
            truth[query.id] = (p, n)
    return {
        "right": {
            "users": [pair.user_id for pair in pairs],
            "personal": [pair.answer_p == truth[pair.query_id][0] for pair in pairs],
            "neutral": [pair.answer_n == truth[pair.query_id][1] for pair in pairs],
        }
    }
