"""Ratios of running times, measured side by side in one run; and their rows.

A time alone says nothing about another machine, so every measurement is a ratio against a named
reference that runs in the same round. The order alternates between rounds, and the median over
rounds is read beside the smallest and largest ratio. What takes less than a second runs between
two runs of its reference: the speed of a shared machine changes within a round.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from chameleon_lib.kit.progress import tell

Clock = Callable[[], float]
Variant = Callable[[int], Any]  # round number -> what it computed
COLUMNS = ("what", "setting", "reference", "ratio (median [min, max])", "goal", "same result?")


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest ratio over paired rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        return cls(median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Rounds:
    """Seconds and results per variant, one entry per round."""

    seconds: dict[str, list[float]]
    results: dict[str, list[Any]]

    def ratio(self, above: str, below: str, factor: float = 1.0) -> Ratio:
        """Time of ``above`` over time of ``below``, paired by round.

        ``factor``: work that one run of ``below`` does, in runs of ``above``.
        """
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return Ratio.of([factor * upper / lower for upper, lower in pairs])

    def share(self, name: str, of: float) -> Ratio:
        """Time of a variant over ``of`` seconds: how much of a limit it uses on this machine."""
        return Ratio.of([seconds / of for seconds in self.seconds[name]])


def clock_for(threads: int) -> tuple[Clock, str]:
    """The clock and its name: CPU time, which several threads would each add to, of one thread."""
    return (time.process_time, "CPU time") if threads == 1 else (time.perf_counter, "wall clock")


def run_rounds(
    label: str,
    variants: Mapping[str, Variant],
    rounds: int,
    clock: Clock,
    warm_up: Sequence[Callable[[], object]] | None = None,
) -> Rounds:
    """Runs every variant once per round, in an order that alternates.

    ``warm_up``: calls made before, untimed; by default each variant once.
    """
    tell(f"{label}: warming up")
    for call in [partial(run, 0) for run in variants.values()] if warm_up is None else warm_up:
        call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    results: dict[str, list[Any]] = {name: [] for name in variants}
    for number in range(rounds):
        gc.collect()  # what earlier rounds left behind is nobody's work now
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            start = clock()
            results[name].append(variants[name](number))
            # The clock's own step, so that a tiny test never divides by zero.
            seconds[name].append(max(clock() - start, 1e-9))
        shown = ", ".join(f"{name} {seconds[name][-1]:.2f} s" for name in variants)
        tell(f"{label}: round {number + 1}/{rounds} ({shown})")
    return Rounds(seconds, results)


@dataclass(frozen=True)
class Chain:
    """Ratios to one reference, and the results of every variant, one per round."""

    ratios: dict[str, Ratio]
    results: dict[str, list[Any]]


def run_chain(
    label: str, reference: str, variants: Mapping[str, Variant], rounds: int, clock: Clock
) -> Chain:
    """Runs the reference before, between and after the other variants of every round.

    A variant is compared with the mean of the two runs of the reference beside it, so that neither
    a slower minute nor a place in the order is counted as its own.
    """
    tell(f"{label}: warming up")
    for run in variants.values():
        run(0)
    others = [name for name in variants if name != reference]
    ratios: dict[str, list[float]] = {name: [] for name in others}
    results: dict[str, list[Any]] = {name: [None] * rounds for name in variants}

    def timed(name: str, number: int) -> float:
        start = clock()
        results[name][number] = variants[name](number)
        return max(clock() - start, 1e-9)

    for number in range(rounds):
        gc.collect()
        before = timed(reference, number)
        for name in others[:: 1 if number % 2 == 0 else -1]:
            own, after = timed(name, number), timed(reference, number)
            ratios[name].append(2 * own / (before + after))
            before = after
        shown = ", ".join(f"{name} {ratios[name][-1]:.2f}" for name in others)
        tell(f"{label}: round {number + 1}/{rounds} (times {reference}: {shown})")
    return Chain({name: Ratio.of(values) for name, values in ratios.items()}, results)


@dataclass(frozen=True)
class Goal:
    """A bound on the median ratio."""

    bound: float
    at_least: bool

    def met(self, ratio: Ratio) -> bool:
        return ratio.median >= self.bound if self.at_least else ratio.median <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:.3g}"


@dataclass(frozen=True)
class Row:
    """One measured ratio.

    Attributes:
        what: What is measured, and which way the ratio goes.
        setting: Sizes and model.
        reference: What it is compared with, and what was scaled.
        ratio: The measurement; None if the row says why there is none.
        goal: None if the row only informs.
        same: Whether both sides gave the same result; None if nothing was compared.
        evidence: What was compared for ``same``, or why there is no measurement.
    """

    what: str
    setting: str
    reference: str
    ratio: Ratio | None
    goal: Goal | None
    same: bool | None
    evidence: str

    @property
    def goal_met(self) -> bool | None:
        """Whether the median keeps the goal; None without a goal or a measurement."""
        return None if self.goal is None or self.ratio is None else self.goal.met(self.ratio)

    def cells(self) -> tuple[str, ...]:
        """The texts below ``COLUMNS``."""
        ratio = goal = "–"
        if self.ratio is not None:
            low, high = _short(self.ratio.low), _short(self.ratio.high)
            ratio = f"{_short(self.ratio.median)} [{low}, {high}]"
        if self.goal_met is not None:
            goal = f"{self.goal} ({'met' if self.goal_met else 'missed'})"
        same = "" if self.same is None else "yes: " if self.same else "no: "
        return (self.what, self.setting, self.reference, ratio, goal, same + self.evidence)


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
