"""Finished runs made by hand: users of the embedded world, answers right at a planted rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from chameleon_lib.core.task import get_task
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.studies.arms import confusion_codes
from chameleon_lib.studies.data import TaskData, load_task_data
from chameleon_lib.studies.forms import form_of
from chameleon_lib.studies.frame import Arm
from chameleon_lib.studies.methods import METHODS
from chameleon_lib.studies.run import Answers, Cell, Run, agreeing_queries
from chameleon_lib.studies.s03_ladder import OTHER, OWN
from chameleon_lib.studies.s05_selections import Choices, Selection
from tests.studies.small import SETTINGS

BASE = 0.4  # share of right answers of a method without an effect
SEEDS = 2
BOTH = ("demo:decoder:0", "demo:encdec:0")
Rates = Mapping[str, float]  # method → share of right answers; BASE for the others
Log = dict[str, Any]


@lru_cache(maxsize=8)
def users_of(task: str, n_users: int) -> TaskData:
    profile = replace(PROFILES["demo"], n_train=10, n_dev=2, n_test=n_users)
    return load_task_data(profile, task)


def planted_run(
    rates: Rates | None = None,
    *,
    tasks: tuple[str, ...] = ("LaMP_3",),
    backbones: tuple[str, ...] = ("demo:decoder:0",),
    n_users: int = 120,
    salt: int = 0,
) -> Run:
    """A run whose method ``m`` answers right for a share ``rates[m]`` of users, :data:`BASE` else.

    Who is right is drawn per method, seed and salt, how many are not; no model takes part.
    """
    data = {task: users_of(task, n_users) for task in tasks}
    cells = [
        _cell(data[task], backbone, rates or {}, salt) for task in tasks for backbone in backbones
    ]
    return Run(PROFILES["demo"], SETTINGS, data, cells)


def _cell(data: TaskData, backbone: str, rates: Rates, salt: int) -> Cell:
    answers: dict[Arm, Answers] = {}
    for number, method in enumerate(METHODS):
        once = method.kind == "baseline" or method.id == "neutral"
        for seed in range(1 if once else SEEDS):
            random = np.random.default_rng([number, seed, salt, *backbone.encode()])
            arm = Arm(method.id) if once else Arm(method.id, seed)
            answers[arm] = _answers(data, rates.get(method.id, BASE), random)
    counts = {
        "users": 120, "no_history": 4, "too_long": 1, "empty_insight": 2, "dropped_items": 3,
        "cut_items": 0,
    }  # fmt: skip
    users = [user.id for user in data.test]
    return Cell(backbone, data.task, users, answers, counts, [log(0), log(1)])


def _answers(data: TaskData, rate: float, random: np.random.Generator) -> Answers:
    golds = [str(q.gold) for user in data.test for q in user.queries]
    right = random.permutation(len(golds)) < round(rate * len(golds))
    texts = [gold if ok else wrong(data.task, gold) for gold, ok in zip(golds, right, strict=True)]
    assert data.truth is not None
    truths = [data.truth[user.id] for user in data.test]
    alike = [p == g for t in truths for p, g in zip(t.personal, t.generic, strict=True)]
    return scored(data.task, golds, texts, np.where(alike, np.nan, np.where(right, 1.0, -1.0)))


def wrong(task: str, gold: str) -> str:
    """Another answer: the next label, or other words."""
    labels = get_task(task).labels
    return labels[(labels.index(gold) + 1) % len(labels)] if labels else "no such words"


def scored(task: str, golds: list[str], texts: list[str], margin: np.ndarray) -> Answers:
    """Answers with scores as a cell has them; LaMP-7 habits stand for themselves."""
    scores: dict[str, Any] = {
        **per_sample_scores(task, golds, texts), **form_of(task, golds, texts)
    }  # fmt: skip
    scores |= {"margin": margin, "valid": np.ones(len(golds)), "changed": np.zeros(len(golds))}
    scores["confusion"] = confusion_codes(task, golds, texts)
    if task == "LaMP_7":
        scores["habits"] = np.full(len(golds), 0.5)
    return Answers(texts, margin, {n: np.asarray(v, dtype=np.float64) for n, v in scores.items()})


def _size(layers: list[int], ratio: float) -> Log:
    """Two queries, the second moved twice as far; most of an edit is its boost."""
    parts = {
        name: [[share * ratio] * len(layers), [2 * share * ratio] * len(layers)]
        for name, share in (("edit", 1.0), ("boost", 0.9), ("removal", 0.1))
    }
    return {"users": ["test_0", "test_1"], "layers": layers, **parts}


def log(index: int) -> Log:
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
        "draw": index,
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


# --- looking at cells, and changing them ----------------------------------------------------------


def answers_of(cell: Cell) -> dict[str, list[Answers]]:
    """Method → its answers, one per seed."""
    found: dict[str, list[Answers]] = {}
    for arm, answers in cell.answers.items():
        found.setdefault(arm.method, []).append(answers)
    return found


def texts_of(cell: Cell) -> dict[Arm, list[str]]:
    return {arm: answers.texts for arm, answers in cell.answers.items()}


def scores_of(cell: Cell, method: str, score: str) -> np.ndarray:
    """One score of a method, (seeds, queries)."""
    return np.stack([answers.scores[score] for answers in answers_of(cell)[method]])


def margins_of(cell: Cell, method: str) -> np.ndarray:
    return np.stack([answers.margin for answers in answers_of(cell)[method]])


def keeping(cell: Cell, chosen: Callable[[Arm], bool], **changes: Any) -> Cell:
    """The cell with the arms that are chosen alone."""
    answers = {arm: found for arm, found in cell.answers.items() if chosen(arm)}
    return replace(cell, answers=answers, **changes)


def rescored(cell: Cell, score: str, change: Callable[[Arm, np.ndarray], np.ndarray]) -> Cell:
    """The cell with one score of every arm changed."""
    answers = {
        arm: replace(found, scores={**found.scores, score: change(arm, found.scores[score])})
        for arm, found in cell.answers.items()
    }
    return replace(cell, answers=answers)


def leveled(cell: Cell, method: str, score: str, levels: tuple[float, ...]) -> Cell:
    """The cell with one level of a score for every group of a method."""
    return rescored(
        cell,
        score,
        lambda arm, values: (
            np.full_like(values, levels[arm.draw]) if arm.method == method else values
        ),
    )


def without_margins(run: Run) -> Run:
    """The same run where every user's answer is the generic one, so that nobody has a margin."""
    nothing = [rescored(c, "margin", lambda _, values: values * np.nan) for c in run.cells]
    return replace(run, cells=nothing)


def swapped(run: Run, one: str, other: str) -> Run:
    """The same run with the two methods' answers exchanged for a random half of the queries."""
    cells = []
    for cell in run.cells:
        golds, answers = run.data[cell.task].golds(cell.users), dict(cell.answers)
        turn = np.random.default_rng(5).random(len(golds)) < 0.5
        for arm in [arm for arm in answers if arm.method == one]:
            partner = arm._replace(method=other)
            partner = partner if partner in answers else Arm(other)
            a, b = cell.answers[arm], cell.answers[partner]
            for place, (mine, theirs) in ((arm, (a, b)), (partner, (b, a))):
                texts = np.where(turn, theirs.texts, mine.texts).tolist()
                margin = np.where(turn, theirs.margin, mine.margin)
                answers[place] = scored(cell.task, golds, texts, margin)
        cells.append(replace(cell, answers=answers))
    return replace(run, cells=cells)


def query_golds(run: Run, task: str) -> list[str]:
    """The gold of every test query, in the order of the scores."""
    return run.data[task].golds(run.test_users[task])


def agreeing(run: Run, task: str) -> np.ndarray:
    """Which test queries have one answer for user and anyone."""
    same = agreeing_queries(run, task)
    users = run.data[task].chosen(run.test_users[task])
    return np.array([query.id in same for user in users for query in user.queries])


# --- runs with conditions -------------------------------------------------------------------------


def conditions_run(
    rates: Mapping[str, Rates],
    *,
    tasks: tuple[str, ...] = ("LaMP_2",),
    backbones: tuple[str, ...] = BOTH,
    n_users: int = 120,
    change: Callable[[Cell], Cell] | None = None,
) -> Run:
    """A run whose methods answer right at ``rates[condition][method]``, conditions together.

    Who is right depends on method and seed alone, so equal rates are equal answers; ``change`` is
    made to every cell.
    """
    cells: list[Cell] = []
    for name, own in rates.items():
        run = planted_run(own, tasks=tasks, backbones=backbones, n_users=n_users)
        cells += [replace(cell, condition=name) for cell in run.cells]
    return replace(run, cells=[(change or _logged)(cell) for cell in cells])


def _logged(cell: Cell) -> Cell:
    logs = [
        {"draw": index, "users": 10, "kept": 8 + index, "identical": 2, "layers": [index]}
        for index in range(SEEDS)
    ]
    return replace(cell, draws=logs)


SIZES = {OWN: 1, OTHER: 1, "20 users": 20, "100 users": 100}
_ALL_SIZES = ("instruct", "chameleon", "random")
_GROUPS = (*_ALL_SIZES, "from_neutral", "shuffled_pairs", "fitted", "fitted_shuffled")


def planted_sizes(
    rates: Mapping[str, Rates] | None = None,
    *,
    conditions: Mapping[str, int] = SIZES,
    tasks: tuple[str, ...] = ("LaMP_3",),
    backbones: tuple[str, ...] = ("demo:decoder:0",),
) -> Run:
    """A finished run of the group-size study."""

    def sized(cell: Cell) -> Cell:
        size = conditions[cell.condition]
        names = _ALL_SIZES if size == 1 else _GROUPS
        logs = [size_log(cell.condition, size, index) for index in range(2)]
        return keeping(cell, lambda arm: arm.method in names, draws=logs)

    given = {name: (rates or {}).get(name, {}) for name in conditions}
    return conditions_run(given, tasks=tasks, backbones=backbones, change=sized)


def size_log(condition: str, size: int, index: int) -> Log:
    """What a draw of the group-size study logs, small enough to check by hand."""
    users = {OWN: 80, OTHER: 40}.get(condition, size)
    value = size / 100
    cosines = {"own draw": value, "other draws": value / 2 + index / 10}
    methods = ("chameleon",) if size == 1 else ("chameleon", "fitted")
    return {
        "size": size,
        "users": users,
        "pairs": users + 20,
        "kept": users,
        "identical": 20,
        "layers": {0: 30, 2: 50} if size == 1 else [index, 2],
        "agreement": {
            (method, theta, against): value
            for method in methods
            for theta in ("theta_p", "theta_n")
            for against, value in cosines.items()
        },
        "shared": 0.5 + index / 10,
        "d": 16,
    }


K = SETTINGS.selection_k  # 3: the "paper's number" of the runs of the history ablation
FEW, PAPER, MANY = (Selection("pca", k) for k in (K - 1, K, K + 2))
RAW, RANDOM, RECENT, NEAREST = (
    Selection(rule, K) for rule in ("pca raw", "random", "recent", "nearest")
)
SELECTIONS = (FEW, PAPER, MANY, RAW, RANDOM, RECENT, NEAREST)
PROMPTS_ONLY = (RAW,)
Selected = Mapping[Selection, Rates]


def planted_history(
    rates: Selected | None = None,
    *,
    conditions: tuple[Selection, ...] = SELECTIONS,
    without_pairs: tuple[Selection, ...] = (),
    **planted: Any,
) -> Run:
    """A finished run of the history ablation; who is right is drawn anew in every condition.

    In the conditions ``without_pairs`` no group had a pair, and so there is no edit.
    """
    cells: list[Cell] = []
    for at, selection in enumerate(conditions):
        run = planted_run((rates or {}).get(selection), salt=at, **planted)
        cells += [_chosen(cell, selection, at, selection in without_pairs) for cell in run.cells]
    return replace(run, cells=cells)


def _chosen(cell: Cell, selection: Selection, at: int, bare: bool) -> Cell:
    names = ["instruct", "insight"]
    logs: list[Log] = [{}]
    if selection not in PROMPTS_ONLY:
        names += [] if bare else ["chameleon", "fitted"]
        pairs = [{"kept": 0, "identical": 10, "layers": [], "refused": "no pair"} if bare else
                 {"kept": 4 + i, "identical": 6, "layers": [i]} for i in range(SEEDS)]  # fmt: skip
        logs = [{"draw": i, "users": 10, **log} for i, log in enumerate(pairs)]
    logs = [{**log, "rule": selection.rule, "items": selection.k} for log in logs]
    found = keeping(
        cell,
        lambda arm: arm.method in names,
        condition=selection.name,
        counts={**cell.counts, "dropped_items": at},
        draws=logs,
    )
    n = len(cell.users)
    found.answers[Arm("insight")].scores.update(
        named=np.array(np.arange(n) < round((at + 1) / 10 * n), dtype=float),
        items=np.full(n, float(selection.k)),
    )
    return found


def planted_choices(run: Run, task: str) -> Choices:
    """``pca`` takes the first items that lack the user's tag, ``random`` those that carry it."""
    truth = run.data[task].truth
    assert truth is not None
    found: Choices = {("pca", K): [], ("random", K): []}
    for user in run.data[task].chosen(run.test_users[task]):
        tag = truth[user.id].taste.tag
        order = sorted(range(len(user.history)), key=lambda i: user.history[i].label == tag)
        found["pca", K].append(sorted(order[:K]))
        found["random", K].append(sorted(order[-K:]))
    return found
