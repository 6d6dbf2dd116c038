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
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One measured ratio.

    Attributes:
        what: What is measured, and which way the ratio goes.
        setting: Sizes and model.
        reference: What it is compared with, and what was scaled.
        ratio: The measurement.
        goal: None if the row only informs.
        same: Whether both sides gave the same result.
        evidence: What was compared for ``same``.
    """

    what: str
    setting: str
    reference: str
    ratio: Ratio
    goal: Goal | None
    same: bool
    evidence: str

    def cells(self) -> tuple[str, ...]:
        """The texts below ``COLUMNS``."""
        ratio = f"{_short(self.ratio.median)} [{_short(self.ratio.low)}, {_short(self.ratio.high)}]"
        goal = "–"
        if self.goal is not None:
            goal = f"{self.goal} ({'met' if self.goal.met(self.ratio) else 'missed'})"
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
                "ratio": row.ratio.median,
                "ratio_min": row.ratio.low,
                "ratio_max": row.ratio.high,
                "rounds": row.ratio.rounds,
                "goal": None if row.goal is None else str(row.goal),
                "goal_met": None if row.goal is None else row.goal.met(row.ratio),
                "same": row.same,
                "evidence": row.evidence,
                "threads": threads,
                "clock": clock,
            }
            for row in rows
        ]
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
