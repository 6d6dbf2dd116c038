"""The rows of the benchmark table, as Markdown for readers and as CSV for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from chameleon_lib.bench.timing import Ratio

COLUMNS = ("what", "setting", "reference", "ratio (median [min, max])", "goal", "same result?")


@dataclass(frozen=True)
class Goal:
    """A bound on the median ratio."""

    bound: float
    at_least: bool

    def met(self, ratio: Ratio) -> bool:
        """Whether the median keeps the bound."""
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
        alone: Measured once in processes of its own, on one thread and in CPU time.
    """

    what: str
    setting: str
    reference: str
    ratio: Ratio | None
    goal: Goal | None
    same: bool | None
    evidence: str
    alone: bool = False

    @property
    def goal_met(self) -> bool | None:
        """Whether the median keeps the goal; None without a goal or a measurement."""
        return None if self.goal is None or self.ratio is None else self.goal.met(self.ratio)

    def cells(self) -> tuple[str, ...]:
        """The texts below ``COLUMNS``."""
        ratio, goal = "–", "–"
        if self.ratio is not None:
            low, high = _short(self.ratio.low), _short(self.ratio.high)
            ratio = f"{_short(self.ratio.median)} [{low}, {high}]"
        if self.goal is not None and self.goal_met is not None:
            goal = f"{self.goal} ({'met' if self.goal_met else 'missed'})"
        same = self.evidence
        if self.same is not None:
            same = f"{'yes' if self.same else 'no'}: {self.evidence}"
        return (self.what, self.setting, self.reference, ratio, goal, same)


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def frame(rows: Sequence[Row], *, threads: int, clock: str) -> pd.DataFrame:
    """One record per row, numbers in columns of their own."""
    return pd.DataFrame(
        [
            {
                "what": row.what,
                "setting": row.setting,
                "reference": row.reference,
                "ratio": row.ratio and row.ratio.median,
                "ratio_min": row.ratio and row.ratio.low,
                "ratio_max": row.ratio and row.ratio.high,
                "rounds": row.ratio and row.ratio.rounds,
                "goal": None if row.goal is None else str(row.goal),
                "goal_met": row.goal_met,
                "same": row.same,
                "evidence": row.evidence,
                "threads": 1 if row.alone else threads,
                "clock": "CPU time" if row.alone else clock,
            }
            for row in rows
        ]
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
