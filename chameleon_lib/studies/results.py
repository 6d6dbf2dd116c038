"""What a study leaves behind: scored cells, and the users behind every number."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.studies.answering import Answers
from chameleon_lib.studies.data import TaskData
from chameleon_lib.studies.frame import NO_DRAW, Arm, long_frame
from chameleon_lib.studies.methods import model_of

# By family, where rows are about a backbone itself and not about results.
FAMILY_TITLES = {
    "decoder": "decoder (Mistral class)",
    "encoder-decoder": "encoder-decoder (T5 class)",
}


@dataclass(frozen=True)
class Cell:
    """Everything measured for one (backbone, task), under one condition of a study.

    Attributes:
        backbone: Backbone id.
        task: Task name.
        answers: Method id → one :class:`Answers` per seed (draws, or random directions).
        scores: Method id → score name → (seeds, queries).
        counts: Users left out and why.
        draws: Log of every draw.
        condition: What was varied, such as "20 users"; empty where nothing is.
        arms: Method id → which group each of its answers is from; by their place if empty.
    """

    backbone: str
    task: str
    answers: dict[str, list[Answers]]
    scores: dict[str, dict[str, np.ndarray]]
    counts: dict[str, int]
    draws: list[dict[str, Any]]
    condition: str = ""
    arms: dict[str, list[Arm]] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The backbone without its training seed."""
        return model_of(self.backbone)

    def arms_of(self, method: str) -> list[Arm]:
        """Which group each answer of a method is from."""
        if method in self.arms:
            return self.arms[method]
        draws = [log.get("draw", at) for at, log in enumerate(self.draws) if "refused" not in log]
        count = len(self.answers[method])
        each, rest = divmod(count, max(len(draws), 1))
        if not draws or rest or not each:
            return [Arm(method, NO_DRAW, at) for at in range(count)]
        return [Arm(method, draws[at // each], at % each) for at in range(count)]


@dataclass(frozen=True)
class Run:
    """All cells of a study with the users they were measured on."""

    profile: RunProfile
    settings: EditSettings
    data: dict[str, TaskData]
    test_users: dict[str, list[str]]
    cells: list[Cell]
    notes: list[str] = field(default_factory=list)

    def at(self, task: str, model: str, condition: str = "") -> list[Cell]:
        """The cells of one task, model and condition: one per training seed of the model."""
        wanted = (task, model, condition)
        return [c for c in self.cells if (c.task, c.model, c.condition) == wanted]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All results as one long frame; its columns are those of ``sections.frame``."""
        asked = {
            task: [
                (user.id, query.id)
                for user in data.test
                if user.id in set(self.test_users[task])
                for query in user.queries
            ]
            for task, data in self.data.items()
        }
        users, queries = (
            {task: [pair[at] for pair in pairs] for task, pairs in asked.items()} for at in (0, 1)
        )
        return long_frame(
            [
                {
                    "task": cell.task,
                    "model": cell.model,
                    "backbone": cell.backbone,
                    "condition": cell.condition,
                    **arm._asdict(),
                    "user": users[cell.task],
                    "query": queries[cell.task],
                    "scores": {name: rows[at] for name, rows in cell.scores[method].items()},
                    "texts": cell.answers[method][at].texts,
                }
                for cell in self.cells
                for method in cell.scores
                for at, arm in enumerate(cell.arms_of(method))
            ]
        )

    @property
    def models(self) -> list[str]:
        """Models in order."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def conditions(self) -> list[str]:
        """Conditions in order."""
        return list(dict.fromkeys(cell.condition for cell in self.cells))


def sorted_ids(data: TaskData, chosen: Collection[str]) -> list[str]:
    """Ids of the chosen test users in the order of the data."""
    return [user.id for user in data.test if user.id in chosen]


def query_users(run_: Run, task: str) -> list[str]:
    """The user of every test query, in the order of the scores."""
    chosen = set(run_.test_users[task])
    return [u.id for u in run_.data[task].test if u.id in chosen for _ in u.queries]


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


def agreeing_queries(run_: Run, task: str) -> list[str]:
    """Test queries with one answer for user and anyone, in an embedded world."""
    asked = [query.id for user in run_.data[task].test for query in user.queries
             if user.id in set(run_.test_users[task])]  # fmt: skip
    return [query for query, same in zip(asked, agreeing(run_, task), strict=True) if same]


def split_of(run: Run, task: str) -> str:
    """Which users are scored, in words."""
    data = run.data[task]
    if data.imported:
        return "users of an imported table"
    return "official dev users" if data.truth is None else "test users of the embedded world"
