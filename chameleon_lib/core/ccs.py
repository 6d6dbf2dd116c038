"""CCS probes of all layers, users and tries in one batch (section 3.2 of the paper).

The weight of the probe with the lowest loss is the neutral direction theta^N. Low loss is no
evidence when K is small against d: read it beside ``floor`` and the loss of ``shuffle_pairs``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chameleon_lib.core.ccs_solvers import CCSObjective, loss_floor, solve_reference, solve_span
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError

_CHUNK = 20_000_000  # activations per batch of groups: 80 MB of float32
_CHUNK_REFERENCE = 3_000_000  # 12 MB: every epoch reads all rows twice, so they stay in cache


@dataclass(frozen=True, eq=False)
class CCSResult:
    """Best probe of every group."""

    theta: Tensor  # ``(G, d)``, weights in the units of the activations that came in
    # ``(G,)``, in the same units (with ``per_class``: at the midpoint of the class means)
    bias: Tensor
    loss: Tensor  # ``(G,)``, final loss of the best try
    losses: Tensor  # ``(G, T)``, final losses of all tries
    accuracy: Tensor  # ``(G,)``, on the pairs it was fitted to, ``max(acc, 1 - acc)``
    polarity: Tensor  # ``(G,)``, +1 if g(N) > g(P) for most pairs, else -1
    floor: float  # loss of the best probe that answers the same for every input


@torch.no_grad()
def fit_ccs(
    h_n: Tensor,
    h_p: Tensor,
    settings: EditSettings,
    seed: int,
    mask: Tensor | None = None,
    *,
    stop_at: Tensor | None = None,
) -> CCSResult:
    """Fits one probe per group; a group gives the same result alone and in a batch.

    Args:
        h_n: Neutral activations ``(G, K, d)``; G counts layers x users.
        h_p: Personalised activations, same shape and row order.
        seed: Of the starting points.
        mask: Bool ``(G, K)``, True for real pairs, where groups have different K.
        stop_at: Losses ``(G,)``, span solver only: a group stops as soon as its best try is no
            worse. Without it every try runs to its own end.
    """
    mask = check_pairs(h_n, h_p, mask)
    groups, pairs, d = h_n.shape
    if stop_at is not None and (settings.ccs_solver != "span" or stop_at.shape != (groups,)):
        raise UserError(
            f"stop_at needs ccs_solver 'span' and one loss for each of {groups} groups; "
            f"it has shape {tuple(stop_at.shape)} and the solver is {settings.ccs_solver!r}."
        )
    chunk = _CHUNK if settings.ccs_solver == "span" else _CHUNK_REFERENCE
    size = max(1, chunk // (2 * pairs * d))
    parts = []
    for at in range(0, groups, size):
        some = slice(at, at + size)
        stop = None if stop_at is None else stop_at[some]
        parts.append(_fit_chunk(h_n[some], h_p[some], mask[some], settings, seed, stop))
    names = ("theta", "bias", "loss", "losses", "accuracy", "polarity")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return CCSResult(**joined, floor=loss_floor(settings.ccs_confidence == "squared"))


def check_pairs(h_n: Tensor, h_p: Tensor, mask: Tensor | None) -> Tensor:
    """The mask as bool ``(G, K)``; raises where shapes, numbers or counts are wrong."""
    if h_n.dim() != 3 or h_n.shape != h_p.shape:
        raise UserError(
            f"h_n {tuple(h_n.shape)} and h_p {tuple(h_p.shape)} must both be (G, K, d)."
        )
    if mask is None:
        mask = torch.ones(h_n.shape[:2], dtype=torch.bool, device=h_n.device)
    if mask.shape != h_n.shape[:2]:
        raise UserError(f"The mask {tuple(mask.shape)} must be {tuple(h_n.shape[:2])}.")
    mask = mask.bool()
    if not bool(mask.any(dim=1).all()):
        raise UserError("A group has no preference pair; leave it out or make pairs for it.")
    if not _finite(h_n, mask) or not _finite(h_p, mask):
        raise UserError("Activations hold NaN or infinity; use bfloat16 or float32 weights.")
    return mask


def _finite(rows: Tensor, mask: Tensor) -> bool:
    """Whether the real rows hold numbers only; both extremes carry a NaN or an infinity."""
    extremes = torch.aminmax(rows if bool(mask.all()) else rows[mask])
    return bool(torch.isfinite(extremes.min) and torch.isfinite(extremes.max))


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows ready for a probe: ``x (G, 2K, d)``, pair weights, and how to undo the preparation."""

    x: Tensor
    weights: Tensor  # (G, 1, K)
    middle: Tensor  # (G, 1, d)
    scale: Tensor  # (G, 1, 1)

    def original_units(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(G, d)`` and biases ``(G,)`` that act on the activations as they came in."""
        weight = weight / self.scale[:, 0]
        return weight, bias - (weight * self.middle[:, 0]).sum(-1)


def prepare(h_n: Tensor, h_p: Tensor, mask: Tensor, settings: EditSettings) -> Rows:
    """Float32 rows after ``ccs_normalize`` (A6) and ``ccs_scale`` (B10); padding becomes zero."""
    real = mask.unsqueeze(-1)  # (G, K, 1)
    count = real.sum(1, keepdim=True).float()
    n, p = h_n.float(), h_p.float()
    padded = not bool(mask.all())
    if padded:
        n, p = torch.where(real, n, 0.0), torch.where(real, p, 0.0)
    middle = n.new_zeros(len(n), 1, n.shape[2])
    if settings.ccs_normalize != "none":
        mean_n, mean_p = n.sum(1, keepdim=True) / count, p.sum(1, keepdim=True) / count
        middle = (mean_n + mean_p) / 2  # (G, 1, d)
        if settings.ccs_normalize == "joint":
            mean_n = mean_p = middle
        n, p = n - mean_n, p - mean_p
        if padded:
            n, p = n * real, p * real
    x = torch.cat([n, p], dim=1)
    scale = torch.ones_like(count)
    if settings.ccs_scale == "rms":
        total = x.square().sum((1, 2), keepdim=True)
        scale = (total / (2 * count * x.shape[2])).sqrt().clamp_min(1e-30)
        x = x / scale
    return Rows(x, (real / count).mT, middle, scale)


def _fit_chunk(
    h_n: Tensor,
    h_p: Tensor,
    mask: Tensor,
    settings: EditSettings,
    seed: int,
    stop_at: Tensor | None,
) -> CCSResult:
    ready = prepare(h_n, h_p, mask, settings)
    objective = CCSObjective(ready.weights, settings.ccs_confidence == "squared")
    reference = settings.ccs_solver == "reference"
    solve = solve_reference if reference else partial(solve_span, stop_at=stop_at)
    weight, bias = solve(ready.x, objective, settings, seed)
    z = torch.baddbmm(bias, weight, ready.x.mT)  # (G, T, 2K)
    losses = objective.loss(z)
    best = losses.argmin(dim=1)  # (G,)
    group = torch.arange(len(best), device=best.device)
    accuracy, polarity = pair_accuracy(z[group, best], mask)
    theta, offset = ready.original_units(weight[group, best], bias[group, best, 0])
    return CCSResult(
        theta, offset, losses[group, best], losses, accuracy, polarity, floor=float("nan")
    )


def pair_accuracy(z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy ``max(acc, 1 - acc)`` and polarity of logits ``(G, 2K)``, neutral rows first.

    A pair counts as right if ``g(N) > g(P)``, as the CCS code's averaged confidence does.
    """
    z_n, z_p = z.chunk(2, dim=1)
    agreement = accuracy(z_n > z_p, torch.ones_like(mask), mask)
    polarity = torch.where(agreement >= 0.5, 1.0, -1.0)
    return torch.maximum(agreement, 1 - agreement), polarity


def accuracy(predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of equal entries along the last axis.

    Raises:
        UserError: Shapes differ. Broadcasting (n, 1) against (n,) gives 0.5 for any probe (R16).
    """
    if predictions.shape != labels.shape or (mask is not None and mask.shape != labels.shape):
        raise UserError(
            f"Predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} must have "
            "the same shape."
        )
    right = (predictions == labels).float()
    if mask is None:
        return right.mean(-1)
    return (right * mask).sum(-1) / mask.sum(-1)


def shuffle_pairs(h_n: Tensor, h_p: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """P and N ``(..., K, d)`` swapped at random inside pairs (C10), the same in every group."""
    generator = torch.Generator().manual_seed(seed)
    swap = (torch.rand(h_n.shape[-2], 1, generator=generator) < 0.5).to(h_n.device)
    return torch.where(swap, h_p, h_n), torch.where(swap, h_n, h_p)
