"""Closed-label tasks answered twice: by writing, and by the likeliest of the labels.

A small public model often writes a sentence where a label is asked for, so that written answers
say more of its obedience than of its knowledge. Here every label of the task is scored as the whole
answer, ``log p(label + EOS | prompt)``, under the same prompts and edits as in Table 1, and the
likeliest is taken. The embedded models were taught to answer with a label and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from chameleon_lib.core.backbone import Prepared
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import prompt_texts
from chameleon_lib.core.task import get_task
from chameleon_lib.kit.hashing import digest
from chameleon_lib.studies.arms import (
    ARMS_AT_ONCE,
    arms_of,
    build_draw,
    edit_key,
    groups_of,
    random_per_draw,
    score_cell,
)
from chameleon_lib.studies.frame import Arm, joined, pick, summarise, titled
from chameleon_lib.studies.methods import FITTED, PAPER
from chameleon_lib.studies.run import Answers, Cell, Desk, Plan, Run

SCORED = ("instruct", "insight", PAPER, f"{PAPER}+insight", FITTED, f"{FITTED}+insight", "random")
WRITTEN, LIKELIEST = "by generation", "by scoring the labels"


def table(run: Run, plans: list[Plan], task: str) -> pd.DataFrame:
    """Both ways of answering beside each other, per model and method of :data:`SCORED`.

    Args:
        run: Table 1, whose written answers are shown.
        plans: Those that it was computed from.
        task: A task of the run.

    Returns:
        ``model``, ``method``, ``answers`` (the way), the task's metrics with their intervals over
        users, the share of valid answers, ``n`` and ``seeds``; empty for a task without labels and
        where all models are embedded.
    """
    names = [name for name in run.profile.backbones if not name.startswith("demo:")]
    if not names or not get_task(task).labels:
        return pd.DataFrame()
    plan = next(plan for plan in plans if plan.task == task)
    cells = [likeliest(plan.open(name), plan.draws) for name in names]
    scored = replace(run, cells=cells).frame
    written = pick(run.frame, task=task)
    written = written[written["backbone"].isin(names) & written["method"].isin(SCORED)]
    both = [part.assign(answers=way) for way, part in ((WRITTEN, written), (LIKELIEST, scored))]
    found = summarise(
        joined(both),
        [*get_task(task).metrics, "valid"],
        by=("model", "answers"),
    )
    return titled(found)


def likeliest(desk: Desk, draws: tuple[int, ...]) -> Cell:
    """The arms of :data:`SCORED` answered by the likeliest label; the edits are those of Table 1.

    Args:
        desk: Backbone, task and users.
        draws: Seeds of the random groups.
    """
    study = desk.study
    arms: dict[Arm, tuple[str, Edit | None]] = {
        Arm(kind): (kind, None) for kind in ("instruct", "insight")
    }
    for group in groups_of(study, desk.train, draws, golds=desk.data.train):
        asked = arms_of(build_draw(study, group, random_per_draw(study.settings, draws)))
        arms |= {arm: how for arm, how in asked.items() if arm.method in SCORED}
    labels = get_task(study.task).labels
    answers = {
        arm: Answers([labels[at] for at in scores.argmax(axis=1)], np.full(len(scores), np.nan))
        for arm, scores in label_scores(desk, arms).items()
    }
    return score_cell(desk, answers, [{"draw": index} for index in draws])


def label_scores(desk: Desk, arms: Mapping[Arm, tuple[str, Edit | None]]) -> dict[Arm, np.ndarray]:
    """``log p(label + EOS | prompt)`` in nats, ``(queries, labels)`` per arm, kept in the store."""
    study, labels = desk.study, get_task(desk.study.task).labels
    kinds = dict.fromkeys(kind for kind, _ in arms.values())
    texts = {kind: prompt_texts(study.task, desk.test, kind, study.settings) for kind in kinds}
    backbone, read = study.backbone, dict[str, Prepared]()

    @torch.no_grad()
    def compute(batch: Sequence[tuple[str, Edit | None]]) -> list[dict[str, Any]]:
        found = [
            torch.empty(len(texts[kind]), len(labels), dtype=torch.float64) for kind, _ in batch
        ]
        for kind in dict.fromkeys(kind for kind, _ in batch):
            if kind not in read:
                read[kind] = backbone.prepare(texts[kind])
            for rows, part in backbone.in_turn(read[kind]):
                for (own, edit), scores in zip(batch, found, strict=True):
                    if own == kind:
                        row_edit = None if edit is None else edit.rows(rows)
                        scored = backbone.score_many(part, [labels] * len(rows), edit=row_edit)
                        scores[rows] = torch.stack(scored).double().cpu()
        return [{"scores": scores} for scores in found]

    records = study.store.map(
        "label_scores",
        list(arms.values()),
        compute,
        inputs={**study.inputs("model_"), "labels": list(labels)},
        key_of=lambda how: [digest(texts[how[0]]), edit_key(how[1])],
        batch_size=ARMS_AT_ONCE,
        label=f"{study.backbone_id} {study.task} labels",
        modules=("chameleon_lib.core.edit", "chameleon_lib.backbones"),
    )
    return {arm: np.asarray(record["scores"]) for arm, record in zip(arms, records, strict=True)}
