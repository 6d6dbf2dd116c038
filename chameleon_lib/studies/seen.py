"""Did a trained rival learn? Its answers to its own training users, beside the plain model.

A comparison with a rival that learned nothing would be void.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.task import get_task
from chameleon_lib.data.metrics import higher_is_better, per_sample_scores
from chameleon_lib.kit.stats import Estimate, bootstrap_metric
from chameleon_lib.studies.answering import Exam, Reference
from chameleon_lib.studies.data import without_gold
from chameleon_lib.studies.frame import STATISTICS, group_sums
from chameleon_lib.studies.study import Study

Log = dict[str, Any]


def said(
    study: Study, users: Sequence[PreparedUser], kind: str, edit: Edit | None = None
) -> dict[str, str]:
    """Query id → what a model says to it; nothing about the golds reaches it."""
    blind = [
        replace(user, user=plain)
        for user, plain in zip(users, without_gold([u.user for u in users]), strict=True)
    ]
    queries = [query.id for user in users for query in user.user.queries]
    nothing = Reference([""] * len(queries), [""] * len(queries))  # no margin is asked for
    texts = Exam(study, blind, nothing).answer({kind: (kind, edit)})[kind].texts
    return dict(zip(queries, texts, strict=True))


def seen_scores(
    task: str,
    users: Sequence[PreparedUser],
    after: Mapping[str, str],
    before: Mapping[str, str],
) -> Log:
    """The task's first metric on training queries, for the log of a draw.

    Args:
        task: Task name.
        users: Train users with gold answers and the queries that were trained on.
        after: Query id → answer of the tuned model.
        before: Query id → answer of the untouched model.

    Returns:
        ``users``, ``after`` and ``before``, one entry per query each.
    """
    gold = {query.id: str(query.gold) for user in users for query in user.user.queries}
    score = STATISTICS[get_task(task).metrics[0]][0]
    rows = {
        name: per_sample_scores(task, list(gold.values()), [texts[query] for query in gold])[score]
        for name, texts in (("after", after), ("before", before))
    }
    return {
        "users": [user.user.id for user in users for _ in user.user.queries],
        **{name: [float(value) for value in values] for name, values in rows.items()},
    }


def change_on_seen(logs: Sequence[Mapping[str, Any]]) -> Estimate:
    """After the training minus before it, over the ``seen`` entries of several trainings.

    Users of all groups are pooled; a user in several groups counts once, with the mean of them.
    """
    after, before = (
        group_sums([(log["seen"]["users"], log["seen"][arm]) for log in logs])
        for arm in ("after", "before")
    )
    return replace(bootstrap_metric("mean", after, before), seeds=len(logs))


def has_learned(task: str, logs: Sequence[Mapping[str, Any]], gain: Estimate) -> bool:
    """Whether every loss fell and the training users gain beyond chance."""
    ends = [quarters(log["loss"]) for log in logs]
    better = gain.low > 0 if higher_is_better(get_task(task).metrics[0]) else gain.high < 0
    return better and all(last < first for first, last in ends)


def quarters(loss: Sequence[float]) -> tuple[float, float]:
    """Mean loss of the first and of the last quarter of the steps."""
    size = max(1, len(loss) // 4)
    return sum(loss[:size]) / size, sum(loss[-size:]) / size
