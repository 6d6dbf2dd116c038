"""What is trained: one sparse autoencoder for both kinds of vectors, and two projections."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from chameleon_lib.difference.vectors import SLOTS
from chameleon_lib.errors import UserError

RHO = 0.05  # mean code of a unit that sparsity asks for
KL_WEIGHT = 1e-3
SAE_WEIGHT, SAE_WIDTH = 100.0, 1024  # weight of the autoencoder's loss at the paper's width
FLOOR = -0.16997  # GELU puts out nothing below
_EDGE = 1e-6
Activation = Literal["gelu", "softplus"]
Weight = Literal["match", "keep"]


def sae_weight(rule: Weight, d: int) -> float:
    """Weight of the autoencoder's loss: the paper's (keep), or its balance at width ``d`` (match).

    A zero reconstruction of unit vectors costs ``1 / (2 d)``, so the balance is ``100 d / 1024``.
    """
    if rule not in ("match", "keep"):
        raise UserError(f"sae_weight is {rule!r}; use match or keep.")
    return SAE_WEIGHT * (d / SAE_WIDTH if rule == "match" else 1.0)


def sparsity(codes: Tensor, mask: Tensor) -> Tensor:
    """Mean KL(rho || rho_hat) over samples and units, a scalar of at least 0.

    ``rho_hat`` is the mean code of a unit over the vectors of a sample, clamped into (0, 1).

    Args:
        codes: ``(B, n, h)``.
        mask: ``(B, n)`` bool, true for real vectors.
    """
    counts = mask.sum(dim=1).clamp_min(1)[:, None]
    found = (codes * mask[..., None]).sum(dim=1) / counts  # (B, h)
    found = found.clamp(_EDGE, 1 - _EDGE)
    rho = torch.as_tensor(RHO, dtype=found.dtype, device=found.device)
    kl = rho * (rho / found).log() + (1 - rho) * ((1 - rho) / (1 - found)).log()
    return kl[mask.any(dim=1)].mean() if mask.any() else found.new_zeros(())


class Autoencoder(nn.Module):
    """Under-complete: d to h to d, an activation after both layers.

    Args:
        d: Width of a vector.
        h: Width of a code.
        activation: ``gelu`` (the paper's) or ``softplus``, which has no dead units; of the code.
    """

    def __init__(self, d: int, h: int, activation: Activation = "gelu") -> None:
        super().__init__()
        if activation not in ("gelu", "softplus"):
            raise UserError(f"activation is {activation!r}; use gelu or softplus.")
        act = nn.GELU() if activation == "gelu" else nn.Softplus()
        self.encoder = nn.Sequential(nn.Linear(d, h), act)
        self.decoder = nn.Sequential(nn.Linear(h, d), nn.GELU())

    def loss(self, x: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
        """``smoothL1(x, decoded) + 1e-3 KL``, over real vectors; a scalar."""
        if not mask.any():
            return codes.new_zeros(())
        return smooth_l1_loss(self.decoder(codes)[mask], x[mask]) + KL_WEIGHT * sparsity(
            codes, mask
        )


class Distiller(nn.Module):
    """From the vectors of a sample to soft prompts, history before difference.

    Args:
        d: Width of a vector.
        hidden: Width of the language model.
        h: Width of a code, d / 2 by default; 0 leaves the autoencoder out.
        activation: Of the code.
        slots: Vectors of each kind.
    """

    def __init__(
        self,
        d: int,
        hidden: int,
        h: int | None = None,
        activation: Activation = "gelu",
        slots: int = SLOTS,
    ) -> None:
        super().__init__()
        h = d // 2 if h is None else h
        self.slots = slots
        self.sae = Autoencoder(d, h, activation) if h else None
        self.history, self.difference = (
            nn.Sequential(nn.Linear(h or d, hidden), nn.GELU(), nn.Linear(hidden, hidden))
            for _ in range(2)
        )

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Soft prompts ``(B, 2 slots, hidden)`` and the autoencoder's loss, unweighted.

        Args:
            x: Vectors ``(B, 2 slots, d)``: of the history, then the differences.
            mask: ``(B, 2 slots)`` bool, true for real vectors.
        """
        codes = x if self.sae is None else self.sae.encoder(x)
        of_history, of_difference = codes[:, : self.slots], codes[:, self.slots :]
        soft = [self.history(of_history), self.difference(of_difference)]
        loss = x.new_zeros(()) if self.sae is None else self.sae.loss(x, codes, mask)
        return torch.cat(soft, dim=1), loss


class FreePrompt(nn.Module):
    """Soft prompts that are learned and the same for everybody: what training alone can do.

    Args:
        slots: Number of them.
        hidden: Width of the language model.
    """

    def __init__(self, slots: int, hidden: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(slots, hidden) * 0.02)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As of :class:`Distiller`; the vectors are not looked at."""
        del mask
        return self.rows.expand(len(x), -1, -1), x.new_zeros(())


@torch.no_grad()
def look(sae: Autoencoder, x: Tensor) -> dict[str, float]:
    """How an autoencoder stands: shares over vectors ``(n, d)``.

    Returns:
        ``dead units``: share of units whose mean code is at the clamp, where sparsity has no
        gradient; ``mean code``; ``active codes``: share of codes above rho; ``below the floor``:
        share of inputs that the decoder cannot reach; ``explained``: 1 − squared error over that
        of the mean vector.
    """
    codes = sae.encoder(x)
    error = (sae.decoder(codes) - x).square().sum()
    return {
        "dead units": float((codes.mean(dim=0) <= _EDGE).float().mean()),
        "mean code": float(codes.mean()),
        "active codes": float((codes > RHO).float().mean()),
        "below the floor": float((x < FLOOR).float().mean()),
        "explained": float(1 - error / (x - x.mean(dim=0)).square().sum()),
    }
