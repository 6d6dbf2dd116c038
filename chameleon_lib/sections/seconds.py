"""Seconds on this machine: a budget that runs out, and the writing of pairs on the clock.

Nothing from here may reach a table that is compared from run to run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chameleon_lib.core.insights import with_query_insights, write_insights, write_query_insights
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    answer_pairs,
    keep_different,
    pair_texts,
)
from chameleon_lib.errors import UserError
from chameleon_lib.sections.study import Study

_TIMED_USERS = 20
_CHUNK = 10  # users whose pairs are written between two looks at the clock


class Deadline:
    """Runs from the moment it is made.

    Args:
        seconds: The budget.
        clock: Gives seconds; another one in tests.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = seconds
        self._clock = clock
        self._start = clock()

    def spent(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def passed(self) -> bool:
        """Whether the budget is spent."""
        return self.spent() >= self.seconds


@dataclass(frozen=True)
class Rates:
    """Seconds per pair.

    Attributes:
        writing: Both insights of a user and both answers, per query.
        reading: Activations of both texts of a pair.
    """

    writing: float
    reading: float


def measured_rates(study: Study, users: Sequence[PreparedUser]) -> Rates:
    """Timed on the first users, since the pairs themselves are usually in the store; kept there."""
    sample = list(users[:_TIMED_USERS])

    def compute() -> dict[str, Any]:
        backbone, settings = study.backbone, study.settings
        start = time.perf_counter()
        write_insights(backbone, study.task, [user.items for user in sample], settings)
        pairs = answer_pairs(backbone, sample, settings)
        written = time.perf_counter()
        texts = [text for pair in pairs for text in pair_texts(study.task, pair, settings)]
        backbone.activations(
            [context for context, _ in texts],
            [answer for _, answer in texts],
            pooling=settings.embed_pooling,  # type: ignore[arg-type]
            site=settings.edit_site,
        )
        read = time.perf_counter()
        return {"writing": (written - start) / len(pairs), "reading": (read - written) / len(pairs)}

    inputs = [study.fingerprint, study.task, [user.user.id for user in sample]]
    modules = ("chameleon_lib.core.insights", "chameleon_lib.backbones")
    # Two numbers of the machine, nobody's data.
    record = study.store.get_or_compute("rates", inputs, compute, modules=modules, about=())
    return Rates(**record)


def write_pairs(
    study: Study, group: Sequence[PreparedUser], index: int, deadline: Deadline
) -> list[PreferencePair]:
    """Pairs of as many users as half of the budget allows; at least one has two answers.

    Raises:
        UserError: The whole group has no such pair.
    """
    backbone, settings = study.backbone, study.settings
    order = list(group)
    random.Random(f"clock/{index}").shuffle(order)
    pairs: list[PreferencePair] = []
    useful = False
    for at in range(0, len(order), _CHUNK):
        users = order[at : at + _CHUNK]
        written = write_insights(backbone, study.task, [u.items for u in users], settings)
        users = [
            PreparedUser(u.user, u.items, p, n, u.dropped_items)
            for u, (p, n) in zip(users, written, strict=True)
        ]
        if settings.insight_scope == "query":
            own = write_query_insights(backbone, study.task, users, settings)
            users = with_query_insights(users, own)
        pairs += answer_pairs(backbone, [u for u in users if u.complete], settings)
        useful = useful or bool(keep_different(pairs, settings)[0])
        if useful and deadline.spent() >= deadline.seconds / 2:
            break
    if not useful:
        raise UserError(f"{len(pairs)} pairs hold no two different answers; pool more users.")
    return pairs
