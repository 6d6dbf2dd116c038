"""McNemar's test and the one rule that turns numbers into a verdict.

The estimates themselves come from `chameleon_lib.kit.bootstrap` and are re-exported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from chameleon_lib.kit.bootstrap import (
    LEVEL,
    METRICS,
    N_BOOT,
    Estimate,
    NoUsersError,
    bootstrap_metric,
    confusion_by_user,
    paired_bootstrap,
    seed_sd,
    sums_by_user,
)

__all__ = [
    "DIRECTION_ONLY",
    "DOES_NOT_HOLD",
    "HOLDS",
    "LEVEL",
    "METRICS",
    "MIN_USERS",
    "NOT_REPRODUCED",
    "NOT_RUN",
    "N_BOOT",
    "OPPOSITE",
    "REPRODUCED",
    "STATUSES",
    "TOO_FEW_USERS",
    "Estimate",
    "McNemar",
    "NoUsersError",
    "bootstrap_metric",
    "confusion_by_user",
    "effect_word",
    "mcnemar",
    "own_claim",
    "paired_bootstrap",
    "seed_sd",
    "sums_by_user",
    "verdict",
]

#: Below this many users a verdict is withheld and only counts are shown.
MIN_USERS = 100

REPRODUCED = "reproduced"
DIRECTION_ONLY = "direction only"
NOT_REPRODUCED = "not reproduced"
OPPOSITE = "opposite"
TOO_FEW_USERS = "too few users"
NOT_RUN = "not run at this scale"
# Nothing can be reproduced that the paper does not claim: the kit's own claims get their own words.
HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
STATUSES = (
    REPRODUCED,
    DIRECTION_ONLY,
    NOT_REPRODUCED,
    OPPOSITE,
    TOO_FEW_USERS,
    NOT_RUN,
    HOLDS,
    DOES_NOT_HOLD,
)


def own_claim(status: str) -> str:
    """The word for a claim of the kit that the paper does not make; the rule stays `verdict`'s."""
    return {REPRODUCED: HOLDS, NOT_REPRODUCED: DOES_NOT_HOLD}.get(status, status)


@dataclass(frozen=True, slots=True)
class McNemar:
    """Discordant counts (b: only a right, c: only b right) and the exact two-sided p."""

    b: int
    c: int
    p: float


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Exact McNemar test on two right/wrong arrays, (queries,) each.

    p = min(1, 2 BinomCDF(min(b, c); b + c, 1/2)), method section 12.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"want two arrays of one shape (queries,), got {a.shape} and {b.shape}")
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("McNemar needs right/wrong (0 or 1) per query")
    only_a = int(np.sum((a == 1) & (b == 0)))
    only_b = int(np.sum((a == 0) & (b == 1)))
    total = only_a + only_b
    tail = sum(math.comb(total, i) for i in range(min(only_a, only_b) + 1))
    return McNemar(only_a, only_b, float(min(1.0, 2 * tail / 2**total)))


def verdict(
    effect: Estimate | None,
    controls: Sequence[Estimate],
    higher_is_better: bool = True,
    *,
    paper_sign: int = 1,
    min_users: int = MIN_USERS,
) -> str:
    """Turn an effect and its controls into one of the six words. This is the only such rule.

    `effect` is ours minus the baseline; each of `controls` is **ours minus that control** on the
    same users (equal to the difference of the two effects, since the baseline cancels). Both are
    oriented so that the paper's claim points upwards: pass raw differences with
    ``higher_is_better=False`` for errors, ``paper_sign=-1`` when the paper claims a loss.

    1. "not run at this scale": there is no effect, because the claim was not run here.
    2. "too few users": fewer than `min_users` users; show counts, judge nothing (rule R18).
    3. "opposite": the whole interval lies below 0.
    4. "not reproduced": the interval includes 0.
    5. "reproduced": the interval lies above 0 **and** so does the interval of ours minus every
       control, and there is at least one control.
    6. "direction only": the interval lies above 0, but some control does as well (its paired
       difference interval reaches 0), or no control was run that could have done so.
    """
    if effect is None:
        return NOT_RUN
    if paper_sign not in (1, -1):
        raise ValueError(f"paper_sign is 1 (a gain) or -1 (a loss), got {paper_sign}")
    if any(control.n != effect.n for control in controls):
        raise ValueError("effect and controls must come from the same users (paired differences)")
    if effect.n < min_users:
        return TOO_FEW_USERS
    flip = (paper_sign == -1) != (not higher_is_better)
    effect = -effect if flip else effect
    margins = [-control if flip else control for control in controls]
    if effect.high < 0:
        return OPPOSITE
    if effect.low <= 0:
        return NOT_REPRODUCED
    beaten = bool(margins) and all(margin.low > 0 for margin in margins)
    return REPRODUCED if beaten else DIRECTION_ONLY


def effect_word(low: float, high: float, n: int, *, higher_is_better: bool = True) -> str:
    """The word for an interval of ``n`` users in prose; none where they are too few to judge by.

    A verdict asks for the controls as well; this says only on which side of zero the interval is.

    Returns:
        "helps", "hurts" or "no effect shown"; empty below :data:`MIN_USERS` users.
    """
    if n < MIN_USERS:
        return ""
    if not higher_is_better:
        low, high = -high, -low
    return "helps" if low > 0 else "hurts" if high < 0 else "no effect shown"
