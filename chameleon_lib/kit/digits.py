"""The one rule by which numbers are written: as many digits as their interval supports.

The last digits of a sum differ from processor to processor. What is written (tables, the frames
behind figures, verdicts) is cut here, and what notebooks show and figures draw is cut alike; what
is decided (verdicts, chosen layers, the order of rows) is decided before.

1. **A value with an interval**, ``stem_low`` to ``stem_high``: all three get the decimals of the
   two leading digits of half the interval's width, and at most three: 0.566667 [0.475, 0.65]
   becomes 0.567 [0.475, 0.65], and -2.20704 [-2.48703, -1.92318] becomes -2.21 [-2.49, -1.92].
   A bound that is not 0 (1e-9 of the width is) is written as at least one step away from 0, on its
   side; a value between its bounds stays between them. Where rounding widens the interval so far
   that it has coarser steps, these are used, so that what is rounded once stays as it is.
2. **Another fraction** gets three significant digits, and whole numbers keep all of theirs: 12345.6
   becomes 12346.
3. **Whole numbers** (counts, bytes, operations) are exact up to six digits where they are computed
   as floats, and to the last where they are integers.
4. **What a model computes** in floating point (log-probabilities, cosines, sizes of edits;
   `computed` knows them by the words of their names) has at most two decimals: noise of 1e-5 in a
   model's outputs moves a mean of log-probabilities by about 1e-5.

Halves go to the even digit, judged after nine digits, so that the noise of a sum decides no tie.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import Estimate

HALF_DIGITS = 2  # of half an interval's width
MOST_DECIMALS = 3  # of what has an interval: those of the paper's tables
PLAIN_DIGITS = 3  # of a fraction without an interval
WHOLE_DIGITS = 6  # of a whole number that was computed as a float
COMPUTED_DECIMALS = 2  # at most, of what a model computes
_COMPUTED = {"margin", "nats", "cos", "cosine", "energy", "rms", "halves"}
_COMPUTED_NAMES = {"lowest", "highest", "chance", "pc1", "pc2"}  # of tables of cosines; coordinates
_GENERAL = ("value", "ours", "ci")  # names of a measure that another column names
_MEASURES = ("measure", "metric", "quantity")  # columns that name what a row measures


def significant(value: float, digits: int) -> float:
    """The number at so many significant digits."""
    return float(f"{value:.{digits}g}")


def at_decimals(value: float, decimals: int) -> float:
    """The number at so many decimals (negative ones are powers of ten before the point)."""
    exact = Decimal(f"{value:.9g}")
    return float(exact.quantize(Decimal(1).scaleb(-decimals))) + 0.0


def _exponent(value: float) -> int:
    """Of the leading digit of a positive number; 0.0999999999 counts as 0.1."""
    return Decimal(f"{value:.9g}").adjusted()


def computed(name: str) -> bool:
    """Whether a column or a measure of this name is what a model computes (rule 4)."""
    stem = name.casefold().removesuffix("_low").removesuffix("_high")
    words = set(re.split(r"[^a-zα-ω]+", stem))
    return bool(words & _COMPUTED) or stem in _COMPUTED_NAMES or stem.endswith(" ratio")


def most_decimals(name: str) -> int:
    """Of a value with an interval, by its name."""
    return COMPUTED_DECIMALS if computed(name) else MOST_DECIMALS


def plain(value: float, most: int = 99) -> float:
    """A number without an interval (rules 2 and 3), of so many decimals at most."""
    if not math.isfinite(value) or value == 0:
        return value + 0.0
    if float(f"{value:.9g}").is_integer():
        return significant(value, WHOLE_DIGITS)
    decimals = min(most, max(0, PLAIN_DIGITS - 1 - _exponent(abs(value))))
    return significant(at_decimals(value, decimals), WHOLE_DIGITS)


def _cut(value: float, low: float, high: float, decimals: int) -> tuple[float, float, float]:
    step, nothing = 10.0**-decimals, 1e-9 * (high - low)

    def bound(end: float) -> float:
        near = at_decimals(end, decimals)
        if near or abs(end) <= nothing:
            return near
        return at_decimals(math.copysign(step, end), decimals)

    ends, middle = (bound(low), bound(high)), at_decimals(value, decimals)
    if low <= value <= high:
        middle = min(max(middle, ends[0]), ends[1])
    return (middle, *ends)


def _decimals(low: float, high: float, most: int) -> int:
    half = (high - low) / 2
    return min(most, HALF_DIGITS - 1 - _exponent(half)) if half else most


def interval(
    value: float, low: float, high: float, most: int = MOST_DECIMALS
) -> tuple[float, float, float]:
    """A value with its interval (rule 1); one without width, or with a gap, has rule 2."""
    if not all(map(math.isfinite, (value, low, high))) or float(f"{high - low:.9g}") <= 0:
        return plain(value, most), plain(low, most), plain(high, most)
    found = _cut(value, low, high, decimals := _decimals(low, high, most))
    if (coarser := _decimals(*found[1:], most)) < decimals:
        found = _cut(value, low, high, coarser)
    return found


def step(name: str, value: float, low: float = math.nan, high: float = math.nan) -> float:
    """One in the last digit that is written of a number, by itself or with its interval."""
    if low < high:
        return float(10.0 ** -_decimals(low, high, most_decimals(name)))
    most = COMPUTED_DECIMALS if computed(name) else 99
    decimals = max(0, PLAIN_DIGITS - 1 - _exponent(abs(value))) if value else most
    return float(10.0 ** -min(most, decimals))


def estimate(found: Estimate, name: str = "") -> Estimate:
    """An estimate as it is written; ``name`` is what it measures."""
    value, low, high = interval(found.value, found.low, found.high, most_decimals(name))
    return replace(found, value=value, low=low, high=high)


def interval_stems(columns: list[str]) -> list[str]:
    """Return every stem for which both stem_low and stem_high are columns."""
    return [c[:-4] for c in columns if c.endswith("_low") and f"{c[:-4]}_high" in columns]


def value_column(stem: str, columns: list[str]) -> str | None:
    """The column whose interval stem_low and stem_high are; None if only the interval is there."""
    names = (stem, *(_GENERAL if stem == "ci" else ()))
    return next((name for name in names if name in columns), None)


def rounded(df: pd.DataFrame) -> pd.DataFrame:
    """The frame with every number as it is written; other cells, and the frame given, stay."""
    out = df.copy()
    columns = [str(column) for column in df.columns]
    done: set[str] = set()
    by_name: Mapping[str, Any] = dict(zip(columns, df.columns, strict=True))
    for stem in interval_stems(columns):
        ends = [f"{stem}_low", f"{stem}_high"]
        name = value_column(stem, columns)
        trio = [by_name[column] for column in (name or ends[0], *ends)]
        names = _measured(df, name or stem)
        cells = [
            interval(_float(value), _float(low), _float(high), most_decimals(measure))
            for value, low, high, measure in zip(*(df[c] for c in trio), names, strict=True)
        ]
        for at, column in reversed(list(enumerate(trio))):
            out[column] = [cell[at] for cell in cells]
        done.update(map(str, trio))
    for name, column in by_name.items():
        if name not in done and not pd.api.types.is_integer_dtype(df[column]):
            out[column] = _plain_column(df[column], COMPUTED_DECIMALS if computed(name) else 99)
    return out


def _measured(df: pd.DataFrame, name: str) -> list[str]:
    """What each row of a column measures: by its own name, or that in the row for a general one."""
    column = next((c for c in _MEASURES if c in df.columns), None)
    if column is None or computed(name):
        return [name] * len(df)
    return [f"{name} {measure}" if name in _GENERAL else name for measure in df[column]]


def _plain_column(cells: pd.Series, most: int) -> pd.Series:
    if pd.api.types.is_float_dtype(cells):
        return cells.astype(float).map(lambda cell: plain(cell, most))
    if cells.dtype != object:
        return cells
    written = [plain(float(cell), most) if isinstance(cell, (float, np.floating)) else cell
               for cell in cells]  # fmt: skip
    return pd.Series(written, cells.index, dtype=object)  # pandas would make text of markup


def _float(cell: object) -> float:
    return math.nan if cell is None or cell is pd.NA else float(cell)  # type: ignore[arg-type]
