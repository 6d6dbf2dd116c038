"""Paired contrasts: weighted sums of arms, user by user, and intervals for many tests at once.

Differences, interactions and slopes are all of this kind; none of them may compare arms as if they
had been measured on other users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from chameleon_lib.kit.stats import LEVEL, Estimate, bootstrap_metric
from chameleon_lib.sections.estimates import STATISTICS, sums
from chameleon_lib.sections.results import Cell, Run


@dataclass(frozen=True)
class Term:
    """One arm of a contrast: a weight, and a method of the cells of one family."""

    weight: float
    cells: Sequence[Cell]
    method: str


def user_sums(run: Run, cells: Sequence[Cell], method: str, metric: str) -> np.ndarray:
    """(users, 2) sums and counts of a metric that is a mean; every cell counts the same."""
    if STATISTICS[metric][1] != "mean":
        raise ValueError(f"{metric} is no mean over queries, so arms of it cannot be added up")
    return np.mean([sums(run, [cell], method, metric).mean(axis=0) for cell in cells], axis=0)


def contrast(run: Run, terms: Sequence[Term], metric: str) -> Estimate:
    """The weighted sum of some arms, paired user by user.

    With weights 1 and -1 this is the difference that ``estimates.estimate`` gives. Its ``n``
    counts the users who have a value.

    Raises:
        NoUsersError: No user has a value of the metric.
    """
    parts = [user_sums(run, term.cells, term.method, metric) for term in terms]
    counts = parts[0][:, 1]
    if any(not np.array_equal(part[:, 1], counts) for part in parts):
        raise ValueError("the arms of a contrast must have a value for the same queries")
    total = sum(term.weight * part[:, 0] for term, part in zip(terms, parts, strict=True))
    found = bootstrap_metric("mean", np.stack([total, counts], axis=-1))
    seeds = max(sum(len(c.answers[term.method]) for c in term.cells) for term in terms)
    # Weights that cancel leave 1e-17 behind, and an interval of that must include 0.
    value, low, high = (round(number, 12) + 0.0 for number in (found.value, found.low, found.high))
    return replace(found, value=value, low=low, high=high, seeds=seeds)


def difference(run: Run, cells: Sequence[Cell], one: str, other: str, metric: str) -> Estimate:
    """One method minus another on the same cells."""
    return contrast(run, [Term(1, cells, one), Term(-1, cells, other)], metric)


def widened(found: Estimate, tests: int) -> Estimate:
    """The interval stretched to a Bonferroni width: it covers all of ``tests`` at once.

    Each side of the percentile interval is multiplied by the ratio of the normal quantiles. Percent
    points that far out could not be read off 10,000 resamples.
    """
    tail = (1 - LEVEL) / 2
    normal = NormalDist()
    factor = normal.inv_cdf(1 - tail / max(tests, 1)) / normal.inv_cdf(1 - tail)
    low = found.value - factor * (found.value - found.low)
    high = found.value + factor * (found.high - found.value)
    return replace(found, low=low, high=high)
