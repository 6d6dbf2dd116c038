"""The tables of section 4.6, counted from a finished run of the history ablation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import Estimate, bootstrap_metric, sums_by_user
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.estimates import estimate, having, methods_in, where_defined
from chameleon_lib.sections.history_ablation.conditions import (
    EDITS,
    PAPER,
    Condition,
    prompt_length,
)
from chameleon_lib.sections.history_ablation.study import Choices
from chameleon_lib.sections.paired import Term, contrast
from chameleon_lib.sections.results import FAMILY_TITLES, Cell, Run, query_users

# Read off the paper's Figure 5 (± 0.002), which has the decoder only; shown, never compared with.
PLOT = {
    ("LaMP_2", "accuracy"): {5: 0.382, 10: 0.396, 15: 0.384, 20: 0.365, 25: 0.355},
    ("LaMP_2", "f1"): {5: 0.359, 10: 0.349, 15: 0.333, 20: 0.315, 25: 0.301},
    ("LaMP_3", "mae"): {5: 0.440, 10: 0.407, 15: 0.389, 20: 0.376, 25: 0.306},
    ("LaMP_3", "rmse"): {5: 0.850, 10: 0.815, 15: 0.769, 20: 0.708, 25: 0.657},
}


def cells_of(run: Run, task: str, family: str) -> dict[tuple[str, int], list[Cell]]:
    """(rule, items) → cells of one task and family, in the order of the run."""
    found = {}
    for name in run.conditions:
        cells = run.of(task, family, name)
        if cells:
            condition = Condition.parse(name)
            found[condition.rule, condition.k] = cells
    return found


def versus(cells: Sequence[Cell], others: Sequence[Cell], method: str) -> list[Term]:
    """One method under one selection minus the same under another.

    Compared are the backbones and, of an edit, the groups that both have: a rule may leave a small
    group without a pair to learn from. Empty where nothing is left.
    """
    held = {cell.backbone: cell for cell in having(others, method)}
    mine, theirs = [], []
    for cell in having(cells, method):
        other = held.get(cell.backbone)
        if other is None:
            continue
        if method in EDITS:
            both = set(cell.drawn) & set(other.drawn)
            if not both:
                continue
            cell, other = cell.in_draws(both, method), other.in_draws(both, method)
        mine.append(cell)
        theirs.append(other)
    return [Term(1, mine, method), Term(-1, theirs, method)] if mine else []


def levels(run: Run, task: str) -> pd.DataFrame:
    """Every method in every condition, with the paper's plot beside its own rule."""
    rows = []
    for family, rule, k, cells in _parts(run, task):
        for method in methods_in(cells):
            row = _place(family, rule, k, cells) | {"method": method.title}
            for metric in (*get_task(task).metrics, "valid"):
                row |= estimate_columns(estimate(run, cells, method.id, metric), metric)
            margin = where_defined(estimate, run, cells, method.id, "margin")
            row |= part_columns(margin, "margin")
            for metric in get_task(task).metrics:
                shown = (family, rule, method.id) == ("decoder", PAPER, "chameleon")
                value = PLOT.get((task, metric), {}).get(k) if shown else None
                row[f"paper {metric}"] = value
            rows.append(row)
    return _counts_last(rows)


def effects(run: Run, task: str) -> pd.DataFrame:
    """Every method against Instruct with the very same items."""
    rows = []
    for family, rule, k, cells in _parts(run, task):
        for method in methods_in(cells):
            if method.id == "instruct":
                continue
            row = _place(family, rule, k, cells) | {"method": method.title}
            metric = get_task(task).metrics[0]
            found = estimate(run, cells, method.id, metric, "instruct")
            row |= estimate_columns(found, f"{metric} change")
            margin = where_defined(estimate, run, cells, method.id, "margin", "instruct")
            row |= part_columns(margin, "margin change")
            rows.append(row)
    return _counts_last(rows)


def against_controls(run: Run, task: str) -> pd.DataFrame:
    """The paper's rule minus each control, for every method and number of items they share.

    Margins are compared in the embedded world only: in real data the generic answer is what the
    model says to the chosen items, so that two rules measure against different answers.
    """
    rows = []
    for family in run.families:
        cells = cells_of(run, task, family)
        for (rule, k), other in cells.items():
            if rule == PAPER:
                continue
            for method in methods_in(other):
                terms = versus(cells[PAPER, k], other, method.id)
                if not terms:
                    continue
                row = {
                    "family": FAMILY_TITLES[family],
                    "compared": f"{PAPER} minus {rule}",
                    "items": k,
                    "method": method.title,
                }
                metric = get_task(task).metrics[0]
                row |= estimate_columns(contrast(run, terms, metric), metric)
                if run.data[task].truth is not None:
                    row |= part_columns(where_defined(contrast, run, terms, "margin"), "margin")
                rows.append(row)
    return _counts_last(rows)


def prompts(run: Run, task: str) -> pd.DataFrame:
    """What the selection led to: insights, items that fit the context, pairs, edited layers."""
    rows = []
    for family, rule, k, cells in _parts(run, task):
        row = _place(family, rule, k, cells)
        if "named" in cells[0].scores["insight"]:
            named = _mean(run, task, [cell.scores["insight"]["named"][0] for cell in cells])
            row |= estimate_columns(named, "insights that name the taste")
        logs = [log for cell in cells for log in cell.draws if "kept" in log]
        row |= {
            "items in the prompt": float(
                np.mean([cell.scores["insight"]["items"].mean() for cell in cells])
            ),
            "items dropped": sum(cell.counts["dropped_items"] for cell in cells),
            "left out: no history": sum(cell.counts["no_history"] for cell in cells),
            "left out: too long": sum(cell.counts["too_long"] for cell in cells),
            "left out: empty insight": sum(cell.counts["empty_insight"] for cell in cells),
            "users in a group": _average(logs, "users"),
            "pairs kept": _average(logs, "kept"),
            "pairs identical": _average(logs, "identical"),
            "groups without a pair": sum("refused" in log for log in logs),
            "edited layers": " | ".join(
                ",".join(map(str, log["layers"])) or "none" for log in logs
            ),
            "n": len(run.test_users[task]),
            "seeds": len(logs) or len(cells),
        }
        rows.append(row)
    return _counts_last(rows)


def chosen(run: Run, task: str, choices: Choices) -> pd.DataFrame:
    """What each rule chooses: no model takes part in this.

    ``overlap`` is the share of the chosen items that the paper's rule chooses as well, beside what
    a random choice would share; where a tag is planted, ``taste`` is the share of the chosen items
    that carry it, beside that of the whole history.
    """
    ids = set(run.test_users[task])
    users = [user for user in run.data[task].test if user.id in ids]
    truth = run.data[task].truth
    rows = []
    for (rule, k), picked in choices.items():
        paper = choices[PAPER, k]
        shared = [
            len(set(mine) & set(other)) / len(mine)
            for mine, other in zip(picked, paper, strict=True)
        ]
        row: dict[str, Any] = {"rule": rule, "items": k}
        row |= estimate_columns(_over_users(shared), "overlap with pca")
        row["overlap by chance"] = float(
            np.mean([min(1.0, k / len(user.history)) for user in users])
        )
        if truth is not None and all(truth[user.id].taste.tag for user in users):
            marks = [[i.label == truth[user.id].taste.tag for i in user.history] for user in users]
            carried = [
                float(np.mean([mark[i] for i in mine]))
                for mark, mine in zip(marks, picked, strict=True)
            ]
            row |= estimate_columns(_over_users(carried), "taste")
            row["taste in the whole history"] = float(np.mean([np.mean(m) for m in marks]))
        rows.append(row)
    return _counts_last(rows)


def _parts(run: Run, task: str) -> Iterator[tuple[str, str, int, list[Cell]]]:
    for family in run.families:
        for (rule, k), cells in cells_of(run, task, family).items():
            yield family, rule, k, cells


def _place(family: str, rule: str, k: int, cells: Sequence[Cell]) -> dict[str, Any]:
    return {
        "family": FAMILY_TITLES[family],
        "rule": rule,
        "items": k,
        "prompt": prompt_length(k, cells[0].backbone),
    }


def _mean(run: Run, task: str, values: Sequence[np.ndarray]) -> Estimate:
    """Mean of values per query, (queries,) per seed."""
    users = query_users(run, task)
    return bootstrap_metric("mean", np.stack([sums_by_user(row, users) for row in values]))


def _over_users(values: Sequence[float]) -> Estimate:
    return bootstrap_metric("mean", sums_by_user(np.array(values)))


def _average(logs: Sequence[dict[str, Any]], name: str) -> float | None:
    return float(np.mean([log[name] for log in logs])) if logs else None


def _counts_last(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]
