"""Finished runs made by hand: users of the embedded world, answers right at a planted rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from chameleon_lib.core.task import get_task
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.studies.arms import confusion_codes
from chameleon_lib.studies.data import TaskData, load_task_data
from chameleon_lib.studies.methods import METHODS
from chameleon_lib.studies.run import Answers, Cell, Run, agreeing
from tests.studies.small import SETTINGS

BASE = 0.4  # share of right answers of a method without an effect
SEEDS = 2


@lru_cache(maxsize=8)
def users_of(task: str, n_users: int) -> TaskData:
    profile = replace(PROFILES["demo"], n_train=10, n_dev=2, n_test=n_users)
    return load_task_data(profile, task)


def planted_run(
    rates: Mapping[str, float] | None = None,
    *,
    tasks: tuple[str, ...] = ("LaMP_3",),
    backbones: tuple[str, ...] = ("demo:decoder:0",),
    n_users: int = 120,
) -> Run:
    """A run whose method ``m`` answers right for a share ``rates[m]`` of users, :data:`BASE` else.

    Who is right is drawn per method and seed, how many are not; nothing was computed by a model.
    """
    data = {task: users_of(task, n_users) for task in tasks}
    ids = {task: [user.id for user in part.test] for task, part in data.items()}
    run = Run(PROFILES["demo"], SETTINGS, data, ids, [])
    for task in tasks:
        for backbone in backbones:
            run.cells.append(_cell(run, task, backbone, rates or {}))
    return run


def _cell(run: Run, task: str, backbone: str, rates: Mapping[str, float]) -> Cell:
    answers: dict[str, list[Answers]] = {}
    for number, method in enumerate(METHODS):
        seeds = 1 if method.kind == "baseline" or method.id == "neutral" else SEEDS
        rate = rates.get(method.id, BASE)
        answers[method.id] = [
            _answers(run, task, rate, np.random.default_rng([number, seed, *backbone.encode()]))
            for seed in range(seeds)
        ]
    scores = {name: scores_of(run, task, found) for name, found in answers.items()}
    counts = {"users": 120, "no_history": 4, "too_long": 1, "empty_insight": 2, "dropped_items": 3}
    return Cell(backbone, task, answers, scores, counts, [log(0), log(1)])


def _answers(run: Run, task: str, rate: float, random: np.random.Generator) -> Answers:
    golds = [str(q.gold) for user in run.data[task].test for q in user.queries]
    right = random.permutation(len(golds)) < round(rate * len(golds))
    texts = [gold if ok else wrong(task, gold) for gold, ok in zip(golds, right, strict=True)]
    margin = np.where(right, 1.0, -1.0)
    margin[agreeing(run, task)] = np.nan
    return Answers(texts, margin)


def wrong(task: str, gold: str) -> str:
    """Another answer: the next label, or other words."""
    labels = get_task(task).labels
    return labels[(labels.index(gold) + 1) % len(labels)] if labels else "no such words"


def scores_of(run: Run, task: str, answers: list[Answers]) -> dict[str, np.ndarray]:
    """Scores as a cell has them, (seeds, queries) each; LaMP-7 habits stand for themselves."""
    golds = [str(q.gold) for user in run.data[task].test for q in user.queries]
    rows: dict[str, list[Any]] = {}
    for answer in answers:
        one: dict[str, Any] = dict(per_sample_scores(task, golds, answer.texts))
        one |= {"margin": answer.margin, "valid": np.ones(len(golds))}
        one["changed"] = np.zeros(len(golds))
        one["confusion"] = confusion_codes(task, golds, answer.texts)
        if task == "LaMP_7":
            one["habits"] = np.full(len(golds), 0.5)
        for name, values in one.items():
            rows.setdefault(name, []).append(np.asarray(values, dtype=np.float64))
    return {name: np.stack(values) for name, values in rows.items()}


def _size(layers: list[int], ratio: float) -> dict[str, Any]:
    """Two queries, the second moved twice as far; most of an edit is its boost."""
    users = ["test_0", "test_1"]
    parts = {
        name: [[share * ratio] * len(layers), [2 * share * ratio] * len(layers)]
        for name, share in (("edit", 1.0), ("boost", 0.9), ("removal", 0.1))
    }
    return {"users": users, "layers": layers, **parts}


def log(index: int) -> dict[str, Any]:
    """What a draw logs, small enough to check by hand."""
    rows = [{"layer": float(layer), "ccs_loss": 0.1 * (layer + index)} for layer in range(3)]
    layers = [1] if index else [0, 1]
    sizes = {
        "chameleon": _size(layers, 0.5 + 0.1 * index),
        "fitted": _size([0, 1, 2], 0.2),
        "from_neutral": _size(layers, 0.5),
        "fitted_shuffled": _size([0, 1, 2], 0.2),
        "random": _size(layers, 0.1),
    }
    return {
        "sizes": sizes,
        "users": 10,
        "pairs": 20,
        "kept": 15 - index,
        "identical": 5 + index,
        "layers": layers,
        "rows": rows,
        "fits": {},
        "right": {
            "users": [f"train-{pair // 2}" for pair in range(20)],
            "personal": [pair % 4 < 2 + index for pair in range(20)],
            "neutral": [True] * 20,
        },
    }


def swapped(run: Run, one: str, other: str) -> Run:
    """The same run with the two methods' answers exchanged for a random half of the queries."""
    cells = []
    for cell in run.cells:
        random = np.random.default_rng(5)
        n = len(cell.answers[one][0].texts)
        turn = random.random(n) < 0.5
        first, second = cell.answers[one], cell.answers[other] * len(cell.answers[one])
        pairs = [_exchange(a, b, turn) for a, b in zip(first, second, strict=False)]
        answers = {**cell.answers, one: [a for a, _ in pairs], other: [b for _, b in pairs]}
        changed = {name: scores_of(run, cell.task, answers[name]) for name in (one, other)}
        cells.append(replace(cell, answers=answers, scores={**cell.scores, **changed}))
    return replace(run, cells=cells)


def _exchange(a: Answers, b: Answers, turn: np.ndarray) -> tuple[Answers, Answers]:
    chosen = list(zip(a.texts, b.texts, turn, strict=True))
    return (
        Answers([y if t else x for x, y, t in chosen], np.where(turn, b.margin, a.margin)),
        Answers([x if t else y for x, y, t in chosen], np.where(turn, a.margin, b.margin)),
    )


def without_margins(run: Run) -> Run:
    """The same run where every user's answer is the generic one, so that nobody has a margin."""
    cells = []
    for cell in run.cells:
        scores = {
            method: {**found, "margin": np.full_like(found["margin"], np.nan)}
            for method, found in cell.scores.items()
        }
        cells.append(replace(cell, scores=scores))
    return replace(run, cells=cells)


def query_golds(run_: Run, task: str) -> list[str]:
    """The gold of every test query, in the order of the scores."""
    chosen = set(run_.test_users[task])
    users = [u for u in run_.data[task].test if u.id in chosen]
    return [str(q.gold) for u in users for q in u.queries]
