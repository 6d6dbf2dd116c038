"""Estimates with intervals over users for any method and metric, and the paper's own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import (
    Estimate,
    bootstrap_metric,
    confusion_by_user,
    sums_by_user,
)
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.methods import METHODS, Method
from chameleon_lib.sections.per_user import (
    Cell,
    Run,
    query_golds,
    query_users,
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


PAPER_BACKBONE = {"decoder": "Mistral-7B-Instruct-v0.3", "encoder-decoder": "Flan-T5-XXL"}


def paper_numbers() -> pd.DataFrame:
    """The paper's published tables (table, task, metric, direction, backbone, method, value)."""
    return pd.read_csv(Path(__file__).with_name("paper_tables.csv"))


def paper_value(task: str, metric: str, family: str, method: str) -> float | None:
    """One cell of the paper's Table 1, or None where it has no such row."""
    table = paper_numbers()
    row = table[
        (table["table"] == "table1")
        & (table["task"] == task.replace("_", "-"))
        & (table["metric"] == metric)
        & (table["backbone"] == PAPER_BACKBONE[family])
        & (table["method"] == method)
    ]
    return None if row.empty else float(row["value"].iloc[0])


def sums(run: Run, cells: Sequence[Cell], method: str, metric: str) -> np.ndarray:
    """Summed statistics (seeds, users, k) of one metric; queries without a value are left out."""
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
    values = np.concatenate([cell.scores[method][score] for cell in cells])  # (S, queries)
    known = np.isfinite(values)
    totals = [sums_by_user(row, users)[:, 0] for row in np.where(known, values, 0.0)]
    counts = [sums_by_user(row, users)[:, 0] for row in known]
    return np.stack([np.stack(totals), np.stack(counts)], axis=-1)


def estimate(
    run: Run, cells: Sequence[Cell], method: str, metric: str, against: str | None = None
) -> Estimate:
    """Level of a method, or its paired difference to another method on the same users."""
    other = None if against is None else sums(run, cells, against, metric)
    return bootstrap_metric(STATISTICS[metric][1], sums(run, cells, method, metric), other)


def metrics_of(run: Run, task: str) -> list[str]:
    """Official metrics of a task, then margin, habits (world only), changed and valid rates."""
    extra = ["habits"] if task == "LaMP_7" and run.data[task].truth is not None else []
    return [*get_task(task).metrics, "margin", *extra, "changed", "valid"]


def methods_in(cells: Sequence[Cell]) -> list[Method]:
    """The rows that these cells hold, in table order."""
    return [method for method in METHODS if all(method.id in cell.scores for cell in cells)]


def difference_on(
    run: Run, cells: Sequence[Cell], method: str, metric: str, chosen: np.ndarray
) -> Estimate:
    """Paired difference to Instruct on a part of the queries."""
    score, statistic = STATISTICS[metric]
    users = np.array(query_users(run, cells[0].task))[chosen].tolist()
    parts = []
    for name in (method, "instruct"):
        values = np.concatenate([cell.scores[name][score] for cell in cells])[:, chosen]
        parts.append(np.stack([sums_by_user(row, users) for row in values]))
    return bootstrap_metric(statistic, parts[0], parts[1])
