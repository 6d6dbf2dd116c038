"""Estimates with intervals over users for any method and metric, and the paper's own numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import (
    Estimate,
    NoUsersError,
    bootstrap_metric,
    confusion_by_user,
    sums_by_user,
)
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.methods import METHODS, Method
from chameleon_lib.sections.results import (
    Cell,
    Run,
    query_golds,
    query_users,
    stacked,
)

# Metric → (score per query, statistic over summed scores).
STATISTICS = {
    "accuracy": ("accuracy", "mean"),
    "f1": ("answers", "macro_f1"),
    "mae": ("abs_error", "mean"),
    "rmse": ("squared_error", "rmse"),
    "rouge1": ("rouge1", "mean"),
    "rougeL": ("rougeL", "mean"),
    "margin": ("margin", "mean"),
    "habits": ("habits", "mean"),
    "changed": ("changed", "mean"),
    "valid": ("valid", "mean"),
}

Arguments = ParamSpec("Arguments")

PAPER_BACKBONE = {"decoder": "Mistral-7B-Instruct-v0.3", "encoder-decoder": "Flan-T5-XXL"}


def paper_numbers() -> pd.DataFrame:
    """The paper's published tables (table, task, metric, direction, backbone, method, value)."""
    return pd.read_csv(Path(__file__).with_name("paper_tables.csv"))


def paper_value(
    task: str, metric: str, family: str, method: str, table: str = "table1"
) -> float | None:
    """One cell of the paper's Table 1 or 2, or None where it has no such row."""
    numbers = paper_numbers()
    row = numbers[
        (numbers["table"] == table)
        & (numbers["task"] == task.replace("_", "-"))
        & (numbers["metric"] == metric)
        & (numbers["backbone"] == PAPER_BACKBONE[family])
        & (numbers["method"] == method)
    ]
    return None if row.empty else float(row["value"].iloc[0])


def having(cells: Sequence[Cell], *methods: str) -> list[Cell]:
    """The cells that hold all of these methods: a trained one runs on some backbones only."""
    return [cell for cell in cells if all(method in cell.scores for method in methods)]


def sums(run: Run, cells: Sequence[Cell], method: str, metric: str) -> np.ndarray:
    """Summed statistics (seeds, users, k) of one metric; queries without a value are left out.

    A user without any value has the count 0 and is left out where the sums are resampled.
    """
    task = cells[0].task
    users = query_users(run, task)
    score, statistic = STATISTICS[metric]
    if statistic == "macro_f1":
        gold, labels = query_golds(run, task), get_task(task).labels
        return np.stack(
            [
                confusion_by_user(gold, [text.strip() for text in answers.texts], labels, users)
                for cell in cells
                for answers in cell.answers[method]
            ]
        )
    values = stacked(cells, method, score)  # (S, queries)
    known = np.isfinite(values)
    totals = [sums_by_user(row, users)[:, 0] for row in np.where(known, values, 0.0)]
    counts = [sums_by_user(row, users)[:, 0] for row in known]
    return np.stack([np.stack(totals), np.stack(counts)], axis=-1)


def estimate(
    run: Run, cells: Sequence[Cell], method: str, metric: str, against: str | None = None
) -> Estimate:
    """Level of a method, or its paired difference to another method on the same users.

    Every cell counts the same, whatever the number of its groups: a backbone is a backbone. Cells
    without the method, or without the one it is compared with, do not enter. Its ``n`` counts the
    users who have a value.

    Raises:
        NoUsersError: No user has a value of the metric in some cell.
    """
    held = having(cells, method, against or method)
    other = None if against is None else sums(run, held, against, metric)
    return bootstrap_metric(
        STATISTICS[metric][1],
        sums(run, held, method, metric),
        other,
        seed_weights=(_equal(held, method), None if against is None else _equal(held, against)),
    )


def group_sums(parts: Sequence[tuple[Sequence[str], Sequence[float]]]) -> np.ndarray:
    """(users, 2) sums and counts of values that several overlapping groups have given.

    Users of all groups are pooled; a user in several groups counts once, with the mean of them.

    Args:
        parts: Per group the user of every value, and the values.
    """
    users = [user for own, _ in parts for user in own]
    held = Counter(user for own, _ in parts for user in set(own))
    groups = np.array([[held[user]] for user in dict.fromkeys(users)])  # (users, 1)
    return sums_by_user([value for _, values in parts for value in values], users) / groups


def where_defined(
    compute: Callable[Arguments, Estimate], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Estimate | None:
    """An estimate of a measure that may be undefined, as the margin is where answers agree.

    Returns:
        What ``compute`` returns for the arguments; None where no user has a value.
    """
    try:
        return compute(*args, **kwargs)
    except NoUsersError:
        return None


def _equal(cells: Sequence[Cell], method: str) -> np.ndarray:
    """(S,) weights of the seeds of a method under which every cell counts the same."""
    counts = [len(cell.answers[method]) for cell in cells]
    return np.concatenate([np.full(count, 1 / count) for count in counts])


def metrics_of(run: Run, task: str) -> list[str]:
    """Official metrics of a task, then margin, habits (world only), changed and valid rates."""
    extra = ["habits"] if task == "LaMP_7" and run.data[task].truth is not None else []
    return [*get_task(task).metrics, "margin", *extra, "changed", "valid"]


def methods_in(cells: Sequence[Cell]) -> list[Method]:
    """The rows that any of these cells holds, in table order."""
    return [method for method in METHODS if having(cells, method.id)]


def difference_on(
    run: Run, cells: Sequence[Cell], method: str, metric: str, chosen: np.ndarray
) -> Estimate:
    """Paired difference to Instruct on a part of the queries."""
    score, statistic = STATISTICS[metric]
    users = np.array(query_users(run, cells[0].task))[chosen].tolist()
    held, parts = having(cells, method), []
    for name in (method, "instruct"):
        values = stacked(held, name, score)[:, chosen]
        parts.append(np.stack([sums_by_user(row, users) for row in values]))
    weights = (_equal(held, method), _equal(held, "instruct"))
    return bootstrap_metric(statistic, parts[0], parts[1], seed_weights=weights)
