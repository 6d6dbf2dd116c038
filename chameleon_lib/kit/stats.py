"""Estimates with 95 % intervals by resampling users, and the one rule that judges them.

Users are the unit of resampling everywhere: several queries of one user are not independent
(`METHOD.md`, how numbers are made). A resample draws the same users for every arm and every seed,
so that differences stay paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

N_BOOT = 10_000
LEVEL = 0.95
_CELLS_PER_CHUNK = 4_000_000


class NoUsersError(ValueError):
    """No user has a value of this metric, so there is nothing to estimate."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % percentile interval, its users and its seeds."""

    value: float
    low: float
    high: float
    n: int
    seeds: int

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) for x in (self.value, self.low, self.high)):
            raise ValueError(f"an Estimate needs finite numbers, got {self}")
        if self.low > self.high or self.n < 1 or self.seeds < 1:
            raise ValueError(f"an Estimate needs low <= high, n >= 1 and seeds >= 1, got {self}")

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low, self.n, self.seeds)

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def _stack(values: ArrayLike, ndim: int, name: str) -> Floats:
    """Bring (users, ...) or (seeds, users, ...) to the latter; refuse NaN and empty arrays."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == ndim:
        array = array[None]
    if array.ndim != ndim + 1 or array.size == 0:
        raise ValueError(f"{name}: want (users, ...) or (seeds, users, ...), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds NaN or infinity; drop or repair these users first")
    return array


def _check_users(a: Floats, b: Floats) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"paired arms need the same users: {a.shape[1]} against {b.shape[1]}")


def _estimate(value: float, boot: Floats, n: int, seeds: int) -> Estimate:
    tail = (1.0 - LEVEL) / 2.0
    # Sums of equal seeds in another order differ by 1e-16: no verdict may hang on that. Adding 0
    # makes a negative zero an ordinary one.
    low, high = np.round(np.quantile(boot, [tail, 1.0 - tail]), 12) + 0.0
    return Estimate(round(float(value), 12) + 0.0, float(low), float(high), n, seeds)


def _ratio(sums: Floats) -> Floats:
    count = sums[..., 1]
    return np.divide(sums[..., 0], count, out=np.full_like(count, np.nan), where=count > 0)


def _root_ratio(sums: Floats) -> Floats:
    return np.sqrt(_ratio(sums))


def _macro_f1(sums: Floats) -> Floats:
    """(..., 3 * labels) of tp, fp, fn -> (...,); an absent class counts 0, as LaMP has it."""
    tp, fp, fn = np.split(sums, 3, axis=-1)
    denominator = 2 * tp + fp + fn
    f1 = np.divide(2 * tp, denominator, out=np.zeros_like(tp), where=denominator > 0)
    return np.asarray(f1.mean(axis=-1))


METRICS: Mapping[str, Callable[[Floats], Floats]] = {
    "mean": _ratio,
    "rmse": _root_ratio,
    "macro_f1": _macro_f1,
}


def sums_by_user(values: ArrayLike, users: Sequence[str] | None = None) -> Floats:
    """Sufficient statistics (users, 2) = (sum, count) of per-query values, for "mean" and "rmse".

    For "rmse" pass squared errors. Users keep their order of first appearance.
    """
    return _by_user(_counted(np.asarray(values, dtype=np.float64)), users)


def confusion_by_user(
    golds: Sequence[str],
    preds: Sequence[str],
    labels: Sequence[str],
    users: Sequence[str] | None = None,
) -> Floats:
    """Per-user counts (users, 3 * labels) = tp | fp | fn for "macro_f1".

    Predictions outside `labels` only add a false negative to the gold class, as in LaMP.
    """
    if len(golds) != len(preds):
        raise ValueError(f"{len(golds)} golds against {len(preds)} predictions")
    unknown = sorted(set(golds) - set(labels))
    if unknown:
        raise ValueError(f"gold answers outside the label list: {unknown} (rule R21)")
    column = np.array(labels)[None, :]
    gold = np.array(golds)[:, None] == column  # (queries, labels)
    pred = np.array(preds)[:, None] == column
    counts = np.concatenate([gold & pred, ~gold & pred, gold & ~pred], axis=1)
    return _by_user(counts.astype(np.float64), users)


def _by_user(rows: Floats, users: Sequence[str] | None) -> Floats:
    if users is None:
        return rows
    if len(users) != len(rows):
        raise ValueError(f"{len(rows)} queries but {len(users)} user ids")
    position = {user: i for i, user in enumerate(dict.fromkeys(users))}
    out = np.zeros((len(position), *rows.shape[1:]))
    np.add.at(out, [position[user] for user in users], rows)
    return out


def bootstrap_metric(
    metric: str | Callable[[Floats], Floats],
    sums_a: ArrayLike,
    sums_b: ArrayLike | None = None,
    n_boot: int = N_BOOT,
    seed: int = 0,
    seed_weights: tuple[Floats | None, Floats | None] = (None, None),
) -> Estimate:
    """Bootstrap a metric that is no mean over users (macro-F1, RMSE), or the difference a - b.

    Args:
        metric: a key of METRICS, or a function from summed statistics (..., k) to (...).
        sums_a: (users, k) or (seeds, users, k) from `sums_by_user` or `confusion_by_user`.
        sums_b: the other arm for the same users, or None.
        n_boot: number of resamples.
        seed: seed of the resampling.
        seed_weights: (seeds,) weights of the seeds of both arms, where they do not count equally.

    Returns:
        The estimate. For "mean" and "rmse" users without a value in any seed of any arm are left
        out before resampling, and its ``n`` counts the others.

    Raises:
        NoUsersError: "mean" or "rmse" of a seed in which no user has a value.
    """
    reduce = METRICS[metric] if isinstance(metric, str) else metric
    a = _stack(sums_a, 2, "sums_a")  # (S, n, k)
    arms = [(1.0, a, seed_weights[0])]
    if sums_b is not None:
        b = _stack(sums_b, 2, "sums_b")
        _check_users(a, b)
        arms.append((-1.0, b, seed_weights[1]))
    counts_users = reduce in (_ratio, _root_ratio)  # the last of k is who has a value at all
    if counts_users:
        counted = np.concatenate([arm[..., 1] for _, arm, _ in arms]) > 0  # (S of all arms, n)
        if not counted.any(axis=1).all():
            raise NoUsersError("no user has a value of this metric")
        arms = [(sign, arm[:, counted.any(axis=0)], weights) for sign, arm, weights in arms]
    n = arms[0][1].shape[1]
    drawn = _weights(n, n_boot, seed)  # (n_boot, n)
    boot: Floats = np.zeros(n_boot)
    value = 0.0
    for sign, arm, weights in arms:
        columns = np.moveaxis(arm, 0, 1)  # (n, S, k): all seeds in one product with the draws
        summed = (drawn @ columns.reshape(n, -1)).reshape(n_boot, *columns.shape[1:])
        per_seed = np.moveaxis(reduce(summed), -1, 0)  # (S, n_boot)
        boot = boot + sign * np.average(per_seed, axis=0, weights=weights)
        value += sign * float(np.average([reduce(x.sum(axis=0)) for x in arm], weights=weights))
    if counts_users:
        # Where seeds differ in who has a value, a resample may hold nobody of one of them.
        boot = boot[~np.isnan(boot)]
    return _estimate(value, boot, n, len(a))


def bootstrap_mean(
    per_user_a: ArrayLike,
    per_user_b: ArrayLike | None = None,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> Estimate:
    """Bootstrap the mean of one score per user, or the paired difference a - b.

    Args:
        per_user_a: (users,) or (seeds, users).
        per_user_b: the other arm for the same users in the same order, or None; its own number of
            seeds may differ.
        n_boot: number of resamples.
        seed: seed of the resampling.

    Returns:
        The estimate, averaged over seeds inside every resample. The interval covers the choice of
        users, not the choice of seeds: show `seed_sd` beside it.
    """
    a = _counted(_stack(per_user_a, 1, "per_user_a"))
    b = None if per_user_b is None else _counted(_stack(per_user_b, 1, "per_user_b"))
    return bootstrap_metric("mean", a, b, n_boot, seed)


def _counted(values: Floats) -> Floats:
    """Values (...,) beside a count of one each: (..., 2)."""
    return np.stack([values, np.ones_like(values)], axis=-1)


@lru_cache(maxsize=4)
def _weights(n: int, n_boot: int, seed: int) -> Floats:
    """How often every user occurs in every resample, (n_boot, n).

    The same users are resampled for every row of every table, so the draws are made once; summed
    statistics of a resample are then one matrix product.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS_PER_CHUNK // (2 * n))  # chunks bound the memory, not the stream of draws
    chunks = []
    for start in range(0, n_boot, step):
        index = rng.integers(0, n, size=(min(step, n_boot - start), n))
        flat = (index + n * np.arange(len(index))[:, None]).ravel()
        chunks.append(np.bincount(flat, minlength=index.size).reshape(index.shape))
    return np.concatenate(chunks).astype(np.float64)


def seed_sd(per_user: ArrayLike) -> float:
    """Standard deviation over seeds of the mean, (seeds, users or queries) -> float.

    NaN for one seed, which has no spread.
    """
    array = _stack(per_user, 1, "per_user")
    return float(array.mean(axis=1).std(ddof=1)) if len(array) > 1 else math.nan


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

    p = min(1, 2 BinomCDF(min(b, c); b + c, 1/2)).
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


def swap_test(
    metric: str,
    sums_a: ArrayLike,
    sums_b: ArrayLike,
    n_draws: int = N_BOOT,
    seed: int = 0,
) -> float:
    """Two-sided p of "both arms are alike" by swapping them in random users.

    A paired permutation test of any metric of :data:`METRICS`, with the observed order counted in:
    p = (1 + draws at least as far from 0) / (1 + draws).

    Args:
        metric: A key of METRICS.
        sums_a: (users, k) from `sums_by_user` or `confusion_by_user`.
        sums_b: The other arm for the same users.
        n_draws: Number of random swaps.
        seed: Seed of the swaps.
    """
    a, b = _stack(sums_a, 2, "sums_a")[0], _stack(sums_b, 2, "sums_b")[0]
    _check_users(a[None], b[None])
    rng, reduce = np.random.default_rng(seed), METRICS[metric]
    total, other = (a + b).sum(axis=0), b.sum(axis=0)
    seen = abs(float(reduce(a.sum(axis=0)) - reduce(other)))
    step, far = max(1, _CELLS_PER_CHUNK // len(a)), 0
    for start in range(0, n_draws, step):
        keep = rng.integers(0, 2, size=(min(step, n_draws - start), len(a)))
        kept = other + keep @ (a - b)  # (draws, k); what is left is the other arm
        found = np.abs(reduce(kept) - reduce(total - kept))
        far += int(np.sum(found >= seen - 1e-12))
    return (1 + far) / (1 + n_draws)


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
