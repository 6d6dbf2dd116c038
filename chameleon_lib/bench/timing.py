"""Ratios of running times, measured side by side in one run.

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


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest ratio over paired rounds."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Rounds:
    """Seconds and results per variant, one entry per round."""

    seconds: dict[str, list[float]]
    results: dict[str, list[Any]]

    def ratio(self, above: str, below: str, factor: float = 1.0) -> Ratio:
        """Time of ``above`` over time of ``below``, paired by round.

        Args:
            above: Name of the variant in the numerator.
            below: Name of the variant in the denominator.
            factor: Work that one run of ``below`` does, in runs of ``above``.
        """
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        values = [factor * upper / lower for upper, lower in pairs]
        return _spread(values)

    def share(self, name: str, of: float) -> Ratio:
        """Time of a variant over ``of`` seconds: how much of a limit it uses on this machine."""
        return _spread([seconds / of for seconds in self.seconds[name]])


def _spread(values: list[float]) -> Ratio:
    return Ratio(median(values), min(values), max(values), len(values))


def clock_for(threads: int) -> tuple[Clock, str]:
    """The clock and its name for tables.

    CPU time does not count the moments in which other programs hold the core; with several
    threads it would count each of them, so there the wall clock is read.
    """
    return (time.process_time, "CPU time") if threads == 1 else (time.perf_counter, "wall clock")


def run_rounds(
    label: str,
    variants: Mapping[str, Variant],
    rounds: int,
    clock: Clock,
    warm_up: Sequence[Callable[[], object]] | None = None,
) -> Rounds:
    """Runs every variant once per round, in an order that alternates.

    Args:
        label: Name for the progress lines.
        variants: What to time.
        rounds: Number of rounds.
        clock: From ``clock_for``.
        warm_up: Calls made before, untimed; by default each variant once.
    """
    tell(f"{label}: warming up")
    if warm_up is None:
        warm_up = [partial(run, 0) for run in variants.values()]
    for call in warm_up:
        call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    results: dict[str, list[Any]] = {name: [] for name in variants}
    for number in range(rounds):
        order = list(variants)[:: 1 if number % 2 == 0 else -1]
        gc.collect()  # what earlier rounds left behind is nobody's work now
        for name in order:
            start = clock()
            result = variants[name](number)
            # The clock's own step, so that a tiny test never divides by zero.
            seconds[name].append(max(clock() - start, 1e-9))
            results[name].append(result)
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

    Args:
        label: Name for the progress lines.
        reference: The variant that the others are compared with.
        variants: What to time, the reference among them.
        rounds: Number of rounds.
        clock: From ``clock_for``.
    """
    tell(f"{label}: warming up")
    for run in variants.values():
        run(0)
    others = [name for name in variants if name != reference]
    ratios: dict[str, list[float]] = {name: [] for name in others}
    results: dict[str, list[Any]] = {name: [] for name in variants}

    def timed(name: str, number: int) -> float:
        start = clock()
        result = variants[name](number)
        seconds = max(clock() - start, 1e-9)
        results[name][number:] = [result]
        return seconds

    for number in range(rounds):
        gc.collect()  # what earlier rounds left behind is nobody's work now
        before = timed(reference, number)
        for name in others[:: 1 if number % 2 == 0 else -1]:
            own = timed(name, number)
            after = timed(reference, number)
            ratios[name].append(2 * own / (before + after))
            before = after
        shown = ", ".join(f"{name} {ratios[name][-1]:.2f}" for name in others)
        tell(f"{label}: round {number + 1}/{rounds} (times {reference}: {shown})")
    return Chain({name: _spread(values) for name, values in ratios.items()}, results)
