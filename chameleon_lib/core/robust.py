"""Guards against a few users, or a few items, that pull a fit where the others do not go.

A poisoned history looks like any other until its pull is measured. All guards here are settings
(``guard_*``) and off by default:

- :func:`outliers` leaves out pairs whose gradient is much longer than the others', or points away
  from them (a robust z-score: median and median absolute deviation);
- :func:`capped` gives no user more than a multiple of the median user's number of pairs;
- :func:`pooled_gradient` clips every user's gradient to a multiple of the median length, as
  "Learning Differentially Private Recurrent Language Models" (2018) clips users' updates to a
  constant, and then takes the coordinate-wise trimmed mean of "Byzantine-Robust Distributed
  Learning: Towards Optimal Statistical Rates" (2018);
- :func:`far_users` names the users whose activation offsets lie farthest from the median one, so
  that directions of activations are found without them.

All of it is arithmetic on numbers that others measured; no model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from chameleon_lib.errors import UserError

LEAST = 4  # items that a spread can be told of
_NORMAL = 0.6745  # the median absolute deviation of a normal variable is this many of its own sd


def robust_z(values: Tensor) -> Tensor:
    """``0.6745 (v − median) / MAD`` of ``(K,)`` numbers, float64.

    Where more than half of the numbers are alike, those are 0 and any other is infinite.
    """
    values = values.double()
    apart = values - values.quantile(0.5)
    spread = apart.abs().quantile(0.5)
    if float(spread) <= 1e-12 * float(values.abs().max().clamp_min(1e-300)):
        far = apart.abs() > 1e-9 * values.abs().max().clamp_min(1e-300)
        return torch.where(far, apart.sign() * torch.inf, torch.zeros_like(apart))
    return _NORMAL * apart / spread


def outliers(gradients: Tensor, limit: float) -> Tensor:
    """Which pairs pull unlike the others, bool ``(K,)``.

    Two numbers are compared, each with those of the other pairs: the logarithm of a gradient's
    length, of which too much is suspect, and its cosine with the sum of all others, of which too
    little is. The second is the first-order influence of the pair on the loss of the others, with
    lengths left out.

    Args:
        gradients: One per pair, ``(K, D)``; with fewer than :data:`LEAST` nothing is an outlier.
        limit: Robust z-score beyond which a pair is one.
    """
    if gradients.dim() != 2 or not bool(torch.isfinite(gradients).all()):
        raise UserError(
            f"Influences need finite gradients (pairs, numbers), not {tuple(gradients.shape)}."
        )
    if len(gradients) < LEAST:
        return torch.zeros(len(gradients), dtype=torch.bool)
    rows = gradients.double()
    length = rows.norm(dim=1)
    units = rows / length.clamp_min(1e-300)[:, None]  # (K, D)
    agreement = torch.cosine_similarity(units, units.sum(0) - units, dim=1, eps=1e-30)
    long = robust_z(length.clamp_min(1e-300).log()) > limit
    return (long | (robust_z(agreement) < -limit)).cpu()


def capped(owners: Sequence[str], cap: float) -> list[bool]:
    """Which pairs stay where no user may give more than ``cap`` times the median user's number.

    A user's first pairs stay, and one at least.
    """
    counts = {owner: 0 for owner in owners}
    for owner in owners:
        counts[owner] += 1
    most = max(1, int(cap * median(counts.values()))) if counts else 0
    seen: dict[str, int] = {}
    stays = []
    for owner in owners:
        seen[owner] = seen.get(owner, 0) + 1
        stays.append(seen[owner] <= most)
    return stays


def clipped(gradients: Tensor, cap: float) -> tuple[Tensor, float]:
    """Users' gradients ``(U, D)``, none longer than ``cap`` times the median length; that bound."""
    length = gradients.norm(dim=1)
    bound = cap * length.quantile(0.5)
    tiny = torch.finfo(length.dtype).tiny  # nobody pulls: nothing to clip
    factor = (bound / length.clamp_min(tiny)).clamp_max(1.0)
    return gradients * factor[:, None], float(bound)


def trimmed_mean(gradients: Tensor, share: float) -> Tensor:
    """Mean of ``(U, D)`` over users, of every coordinate without its ``share`` at both ends.

    ``share`` of the users is rounded down; where that is nobody it is the mean.
    """
    cut = int(share * len(gradients))
    if cut == 0:
        return gradients.mean(0)
    return gradients.sort(dim=0).values[cut : len(gradients) - cut].mean(0)


def pooled_gradient(gradients: Tensor, cap: float | None, trim: float) -> Tensor:
    """One gradient ``(D,)`` from those of users ``(U, D)``, with no user's influence unbounded.

    With a cap and no trimming, one user of U, whatever it sends, moves the result by at most
    ``(c + c') / U + |c − c'|``, where c and c' are the bounds of :func:`clipped` without it and
    with it: its own clipped gradient, and the others' change of clipping. The median keeps both
    bounds among the lengths of the others.
    """
    if cap is not None:
        gradients, _ = clipped(gradients, cap)
    return trimmed_mean(gradients, trim)


def by_owner(rows: Tensor, owners: Sequence[str]) -> Tensor:
    """Means of rows ``(K, D)`` per owner, ``(U, D)``, in the order of first appearance."""
    place = {owner: at for at, owner in enumerate(dict.fromkeys(owners))}
    index = torch.tensor([place[owner] for owner in owners], device=rows.device)
    sums = rows.new_zeros(len(place), rows.shape[1]).index_add_(0, index, rows)
    return sums / torch.bincount(index, minlength=len(place)).to(rows)[:, None]


def far_users(offsets: Tensor, owners: Sequence[str], share: float) -> set[str]:
    """The ``share`` of users, rounded down, whose offsets lie farthest from the median one.

    Args:
        offsets: Of every pair, ``(K, D)``: personalised minus neutral activation.
        owners: Whose pair it is.
        share: Of the users.
    """
    names = list(dict.fromkeys(owners))
    cut = int(share * len(names))
    if cut == 0:
        return set()
    means = by_owner(offsets.double(), owners)
    apart = (means - means.quantile(0.5, dim=0)).norm(dim=1)
    return {names[at] for at in apart.argsort(descending=True, stable=True)[:cut].tolist()}
