"""One direction per group (theta^P by SVD, equation 3; theta^N by CCS), and what tells of it.

A group is a layer, or a layer of a user. Estimators are named for what they are and return unit
vectors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from chameleon_lib.core.ccs import (
    CCSResult,
    accuracy,
    check_pairs,
    fit_ccs,
    prepare,
    shuffle_pairs,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError

PERSONAL = ("svd_p", "svd_p_centered", "svd_diff", "mean_diff", "svd_n", "random")
# What the CCS fit of the directions itself tells, without further fits.
CCS_NUMBERS = ("ccs_loss", "ccs_floor", "ccs_loss_spread", "ccs_accuracy", "ccs_polarity")


def personal_direction(
    name: str, h_p: Tensor, h_n: Tensor, seed: int = 0, mask: Tensor | None = None
) -> Tensor:
    """theta^P ``(G, d)`` float32 (A10), oriented so that the rows it comes from point along it.

    Args:
        name: ``svd_p`` (paper: uncentred), ``svd_p_centered``, ``svd_diff``, ``mean_diff``,
            ``svd_n`` (C7) or ``random`` (C9).
        h_p: ``(G, K, d)``.
        h_n: Same shape and row order.
        mask: Bool ``(G, K)``, True for real pairs.
    """
    if name not in PERSONAL:
        raise UserError(f"direction_personal is {name!r}; choose one of {', '.join(PERSONAL)}.")
    mask = check_pairs(h_n, h_p, mask)
    p, n = (torch.where(mask.unsqueeze(-1), h.double(), 0.0) for h in (h_p, h_n))
    if name == "random":
        return random_directions(h_p.shape[0], h_p.shape[2], seed).to(h_p.device)
    if name == "mean_diff":
        return unit(masked_mean(p - n, mask), name)
    rows = {"svd_p": p, "svd_p_centered": p, "svd_diff": p - n, "svd_n": n}[name]
    if name == "svd_p_centered":
        rows = (rows - masked_mean(rows, mask).unsqueeze(1)) * mask.unsqueeze(-1)
    theta = unit(top_singular(rows)[0], name).double()
    towards = masked_mean(p if name == "svd_p_centered" else rows, mask)
    sign = torch.where((towards * theta).sum(-1, keepdim=True) >= 0, 1.0, -1.0)
    return (theta * sign).float()


def neutral_direction(
    name: str,
    h_n: Tensor,
    h_p: Tensor,
    settings: EditSettings,
    seed: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """theta^N of every group beside CCS: ``logistic`` (C14), ``mean_diff`` or ``random``.

    Shapes as in ``personal_direction``; they point from P to N.
    """
    if name == "logistic":
        return unit(_logistic(h_n, h_p, settings, check_pairs(h_n, h_p, mask)), name)
    if name == "random":
        # Another stream than theta^P's, or both directions would be the same vector.
        return random_directions(h_p.shape[0], h_p.shape[2], seed + 1_000_003).to(h_p.device)
    return -personal_direction(name, h_p, h_n, seed, mask)


def _logistic(h_n: Tensor, h_p: Tensor, settings: EditSettings, mask: Tensor) -> Tensor:
    """Ridge logistic regression with the known classes, neutral = 1: what CCS must do without.

    The rows are prepared as for CCS and scaled to a root mean square of 1, so that the penalty
    (C = 1) means the same on every layer and model. It also makes the minimum one that rounding
    cannot move: pairs are often separable, where the unpenalised loss has none.
    """
    from sklearn.linear_model import LogisticRegression

    ready = prepare(h_n, h_p, mask, settings.with_(ccs_scale="rms"))
    found = []
    for rows, real in zip(ready.x.double().cpu().numpy(), mask.cpu().numpy(), strict=True):
        probe = LogisticRegression(tol=1e-8, max_iter=10_000)
        probe.fit(rows[np.tile(real, 2)], np.repeat([1, 0], real.sum()))
        found.append(torch.from_numpy(probe.coef_[0]))
    return torch.stack(found).to(h_p.device)


def top_singular(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Top right singular vector ``(G, d)`` and its share of the energy ``(G,)``, float64.

    Uses the smaller Gram matrix: K x K when there are fewer pairs than dimensions.
    """
    rows = rows.double()
    wide = rows.shape[1] <= rows.shape[2]
    values, vectors = torch.linalg.eigh(rows @ rows.mT if wide else rows.mT @ rows)
    top = vectors[..., -1:]  # eigenvalues ascend
    theta = (rows.mT @ top if wide else top).squeeze(-1)
    theta = theta / theta.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    share = values[:, -1] / values.clamp_min(0).sum(-1).clamp_min(1e-300)
    return theta, share


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Mean over real pairs, ``(G, d)``; padded rows must be zero."""
    return rows.sum(1) / mask.sum(1, keepdim=True)


def random_directions(groups: int, d: int, seed: int) -> Tensor:
    """Random unit vectors ``(G, d)`` (C9)."""
    generator = torch.Generator().manual_seed(seed)
    return unit(torch.randn(groups, d, generator=generator, dtype=torch.float64), "random")


def unit(theta: Tensor, name: str) -> Tensor:
    """Rows scaled to length 1, float32; raises where a direction does not exist."""
    norm = theta.double().norm(dim=-1, keepdim=True)
    if not bool((torch.isfinite(norm) & (norm > 1e-12)).all()):
        raise UserError(
            f"Direction {name} is zero or not finite: the pairs hold no such contrast; make more "
            "pairs or choose another direction."
        )
    return (theta.double() / norm).float()


def mean_difference(p: Tensor, n: Tensor, mask: Tensor) -> Tensor:
    """Mean of P minus N over real pairs, ``(G, d)``."""
    rows = torch.where(mask.unsqueeze(-1), p.double() - n.double(), 0.0)
    return masked_mean(rows, mask).float()


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    return torch.cosine_similarity(left.double(), right.double(), dim=-1, eps=1e-30).float()


def geometry(
    p: Tensor, n: Tensor, mask: Tensor, theta_p: Tensor, theta_n: Tensor, difference: Tensor
) -> dict[str, Tensor]:
    """What the directions are made of, one number per group; ``p`` and ``n (G, K, d)``."""
    real = mask.unsqueeze(-1)
    p, n = torch.where(real, p.double(), 0.0), torch.where(real, n.double(), 0.0)
    steps = torch.nn.functional.normalize(p - n, dim=-1)  # (G, K, d)
    count = mask.sum(1).double()
    # Mean cosine over distinct pairs, from the squared length of the summed unit vectors.
    moved = (steps.square().sum((1, 2))).clamp_min(1e-30)
    agreement = (steps.sum(1).square().sum(-1) - moved) / (moved * (moved - 1)).clamp_min(1e-30)
    return {
        "cos_p_n": _cosine(theta_p, theta_n),
        "cos_p_mean_h_p": _cosine(theta_p, masked_mean(p, mask)),
        "cos_p_v0_h_n": _cosine(theta_p, top_singular(n)[0]),
        "cos_n_mean_difference": _cosine(theta_n, difference),
        "energy_share": top_singular(p)[1].float(),
        "rms": (p.square().sum((1, 2)) / (count * p.shape[2])).sqrt().float(),
        "pair_cosine": torch.where(moved > 1.5, agreement, float("nan")).float(),
    }


def ccs_diagnostics(ccs: CCSResult) -> dict[str, Tensor]:
    """What a fit says of itself, one number per group."""
    return {
        "ccs_loss": ccs.loss,
        "ccs_floor": torch.full_like(ccs.loss, ccs.floor),
        "ccs_loss_spread": ccs.losses.amax(1) - ccs.losses.amin(1),
        "ccs_accuracy": ccs.accuracy,
        "ccs_polarity": ccs.polarity,
    }


def ccs_checks(
    p: Tensor, n: Tensor, settings: EditSettings, seed: int, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """How far the CCS loss of ``p`` and ``n (G, K, d)`` may be believed: fits on changed pairs.

    Returns:
        ``ccs_loss_shuffled`` and ``ccs_accuracy_held_out``, ``(G,)`` each.
    """
    mask = check_pairs(n, p, mask)
    swapped_n, swapped_p = shuffle_pairs(n, p, seed)
    return {
        "ccs_loss_shuffled": fit_ccs(swapped_n, swapped_p, settings, seed, mask).loss,
        "ccs_accuracy_held_out": _held_out_accuracy(p, n, mask, settings, seed),
    }


def _held_out_accuracy(
    p: Tensor, n: Tensor, mask: Tensor, settings: EditSettings, seed: int
) -> Tensor:
    """CCS accuracy on a fifth of the pairs it was not fitted to; NaN where too few are left."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(p.shape[1], dtype=torch.bool)
    held[torch.randperm(p.shape[1], generator=generator)[: p.shape[1] // 5]] = True
    held = held.to(mask.device)
    train, test = mask & ~held, mask & held
    enough = train.any(1) & test.any(1)  # (G,)
    result = torch.full((len(p),), float("nan"), device=p.device)
    if bool(enough.any()):
        probe = fit_ccs(n[enough], p[enough], settings, seed, train[enough]).theta.unsqueeze(-1)
        right = (n[enough].float() @ probe > p[enough].float() @ probe).squeeze(-1)
        # The polarity is that of the held-out pairs: an unsupervised probe has no known side.
        share = accuracy(right, torch.ones_like(right), test[enough])
        result[enough] = torch.maximum(share, 1 - share)
    return result
