"""Finished runs of the history ablation made by hand, from the planted ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from chameleon_lib.studies.frame import NO_DRAW
from chameleon_lib.studies.run import Arm, Cell, Run
from chameleon_lib.studies.s05_selections import Choices, Selection
from tests.studies.planted import BASE, planted_run
from tests.studies.small import SETTINGS

K = SETTINGS.selection_k  # 3: the "paper's number" of these runs
FEW, PAPER, MANY = (Selection("pca", k) for k in (K - 1, K, K + 2))
RAW, RANDOM, RECENT, NEAREST = (
    Selection(rule, K) for rule in ("pca raw", "random", "recent", "nearest")
)
CONDITIONS = (FEW, PAPER, MANY, RAW, RANDOM, RECENT, NEAREST)
PROMPTS_ONLY = (RAW,)
EDITS = ("chameleon", "fitted")

# Who is right is drawn anew in every condition: it is lent from methods that draw it differently.
_LENDERS = {
    "instruct": ("instruct", "official", "official_history", "insight", "neutral"),
    "chameleon": ("chameleon", "p_only", "n_only", "svd_diff", "logistic", "random", "answer_only"),
    "fitted": ("fitted", "fitted_shuffled", "permute_answers", "from_neutral", "mean_difference"),
}
_LENDERS["insight"] = _LENDERS["instruct"][::-1]
Rates = Mapping[Selection, Mapping[str, float]]


def planted_history(
    rates: Rates | None = None,
    *,
    conditions: tuple[Selection, ...] = CONDITIONS,
    without_pairs: tuple[Selection, ...] = (),
    **planted: Any,
) -> Run:
    """A run whose method ``m`` under condition ``c`` answers right at ``rates[c][m]``.

    In the conditions ``without_pairs`` no group had a pair, and so there is no edit.
    """
    runs = []
    for at, selection in enumerate(conditions):
        wanted = (rates or {}).get(selection, {})
        found = {}
        for method, lenders in _LENDERS.items():
            lent = {lenders[at % len(lenders)]: wanted.get(method, BASE)}
            found[method] = planted_run(lent, **planted)
        runs.append((selection, at, found))
    first = runs[0][2]["instruct"]
    cells = []
    for index in range(len(first.cells)):
        for selection, at, found in runs:
            sources = {method: run.cells[index] for method, run in found.items()}
            cell = _cell(sources, selection, at)
            cells.append(_bare(cell) if selection in without_pairs else cell)
    return replace(first, cells=cells)


def _bare(cell: Cell) -> Cell:
    """The cell as it is where no group had a pair."""
    kept = ("instruct", "insight")
    return replace(
        cell,
        answers={name: cell.answers[name] for name in kept},
        scores={name: cell.scores[name] for name in kept},
        draws=[
            log | {"kept": 0, "identical": 10, "layers": [], "refused": "no pair"}
            for log in cell.draws
        ],
    )


def _cell(sources: Mapping[str, Cell], selection: Selection, at: int) -> Cell:
    methods = ["instruct", "insight"]
    methods += [] if selection in PROMPTS_ONLY else ["chameleon", "fitted"]
    base, answers, scores = sources["instruct"], {}, {}
    for method in methods:
        lender = _LENDERS[method][at % len(_LENDERS[method])]
        answers[method] = sources[method].answers[lender]
        scores[method] = dict(sources[method].scores[lender])
    n = len(answers["instruct"][0].texts)
    share = (at + 1) / 10
    scores["insight"]["named"] = np.array([np.arange(n) < round(share * n)], dtype=float)
    scores["insight"]["items"] = np.full((1, n), float(selection.k))
    counts = {"users": n, "no_history": 4, "too_long": 1, "empty_insight": 2, "dropped_items": at}
    logs: list[dict[str, Any]] = [{}]
    if selection not in PROMPTS_ONLY:
        logs = [
            {"draw": i, "users": 10, "kept": 4 + i, "identical": 6, "layers": [i]}
            for i in range(len(answers["chameleon"]))
        ]
    logs = [{**log, "rule": selection.rule, "items": selection.k} for log in logs]
    arms = {
        method: [Arm(method, at if method in EDITS else NO_DRAW) for at in range(len(found))]
        for method, found in answers.items()
    }
    return replace(base, condition=selection.name, answers=answers, scores=scores, counts=counts,
                   draws=logs, arms=arms)  # fmt: skip


def planted_choices(run: Run, task: str) -> Choices:
    """``pca`` takes the first items that lack the user's tag, ``random`` those that carry it."""
    truth = run.data[task].truth
    assert truth is not None
    ids = set(run.test_users[task])
    found: Choices = {("pca", K): [], ("random", K): []}
    for user in run.data[task].test:
        if user.id in ids:
            tag = truth[user.id].taste.tag
            order = sorted(range(len(user.history)), key=lambda i: user.history[i].label == tag)
            found["pca", K].append(sorted(order[:K]))
            found["random", K].append(sorted(order[-K:]))
    return found
