"""Diagnostics of directions, per layer and user (method reference, section 12)."""

from __future__ import annotations

import torch
from torch import Tensor

from chameleon_lib.core.ccs import CCSResult, accuracy, check_pairs, fit_ccs, shuffle_pairs
from chameleon_lib.core.estimators import masked_mean, top_singular
from chameleon_lib.core.settings import EditSettings

# What the CCS fit of the directions itself tells, without further fits.
CCS_NUMBERS = ("ccs_loss", "ccs_floor", "ccs_loss_spread", "ccs_accuracy", "ccs_polarity")


def mean_difference(p: Tensor, n: Tensor, mask: Tensor) -> Tensor:
    """Mean of P minus N over real pairs, ``(G, d)``."""
    rows = torch.where(mask.unsqueeze(-1), p.double() - n.double(), 0.0)
    return masked_mean(rows, mask).float()


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    return torch.cosine_similarity(left.double(), right.double(), dim=-1, eps=1e-30).float()


def geometry(
    p: Tensor, n: Tensor, mask: Tensor, theta_p: Tensor, theta_n: Tensor, difference: Tensor
) -> dict[str, Tensor]:
    """What the directions are made of, one number per group; inputs as in ``fit_directions``."""
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
    """How far the CCS loss may be believed: fits on shuffled and on split pairs.

    Args:
        p: Personalised activations ``(G, K, d)``.
        n: Neutral ones, same shape and row order.
        settings: The ``ccs_*`` fields.
        seed: Seed of the restarts, and of what is shuffled and held out.
        mask: Bool ``(G, K)``, True for real pairs.

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
