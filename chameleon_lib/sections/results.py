"""What a study leaves behind: scored cells, and the users behind every number."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.sections.answering import Answers
from chameleon_lib.sections.data import TaskData

FAMILY_TITLES = {
    "decoder": "decoder (Mistral class)",
    "encoder-decoder": "encoder-decoder (T5 class)",
}


@dataclass(frozen=True)
class Cell:
    """Everything measured for one (backbone, task), under one condition of a study.

    Attributes:
        backbone: Backbone id.
        family: ``decoder`` or ``encoder-decoder``.
        task: Task name.
        answers: Method id → one :class:`Answers` per seed (draws, or random directions).
        scores: Method id → score name → (seeds, queries).
        counts: Users left out and why.
        draws: Log of every draw.
        condition: What was varied, such as "20 users"; empty where nothing is.
    """

    backbone: str
    family: str
    task: str
    answers: dict[str, list[Answers]]
    scores: dict[str, dict[str, np.ndarray]]
    counts: dict[str, int]
    draws: list[dict[str, Any]]
    condition: str = ""

    @property
    def drawn(self) -> list[int]:
        """Numbers of the groups that gave an edit; the log of another says why it was refused."""
        return [log["draw"] for log in self.draws if "refused" not in log]

    def in_draws(self, draws: Collection[int], method: str) -> Cell:
        """The cell with those answers of an edit alone that are from some groups."""
        at = [place for place, draw in enumerate(self.drawn) if draw in draws]
        answers = [self.answers[method][place] for place in at]
        scores = {name: values[at] for name, values in self.scores[method].items()}
        return replace(
            self,
            answers={**self.answers, method: answers},
            scores={**self.scores, method: scores},
        )


@dataclass(frozen=True)
class Run:
    """All cells of a study with the users they were measured on."""

    profile: RunProfile
    settings: EditSettings
    data: dict[str, TaskData]
    test_users: dict[str, list[str]]
    cells: list[Cell]
    notes: list[str] = field(default_factory=list)

    def of(self, task: str, family: str, condition: str = "") -> list[Cell]:
        """The cells of one task, family and condition: one per training seed of the backbone."""
        wanted = (task, family, condition)
        return [c for c in self.cells if (c.task, c.family, c.condition) == wanted]

    @property
    def conditions(self) -> list[str]:
        """Conditions in order."""
        return list(dict.fromkeys(cell.condition for cell in self.cells))

    @property
    def families(self) -> list[str]:
        """Backbone families in order."""
        return list(dict.fromkeys(cell.family for cell in self.cells))


def sorted_ids(data: TaskData, chosen: Collection[str]) -> list[str]:
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
