"""The CCS objective in logits, its hand-written gradient, and the fixed starting points.

Section 3.2 of the paper (method reference, section 3.7). With ``s = sigmoid(theta.x + b)``:

    L = (1/K) sum_i [ (s_N + s_P - 1)^2 + c(min(s_N, s_P)) ],   c(m) = m^2 (default) or m as printed

The loss touches theta through ``X theta`` alone, so its gradient is ``X^T R`` with R = dL/dlogit:
one matrix product serves every group and every try, and no automatic differentiation is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Objective(Protocol):
    """A loss of logits ``(G, 2K, T)``; rows 0..K-1 are neutral, rows K..2K-1 personalised."""

    def loss(self, z: Tensor) -> Tensor:
        """Losses ``(G, T)``."""

    def residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``(G, T)`` and ``dL/dz (G, 2K, T)``."""


@dataclass(frozen=True, eq=False)
class CCSObjective:
    """The CCS loss of G groups.

    Attributes:
        weights: ``(G, K, 1)``, 1 / number of pairs of the group, 0 for padding.
        squared: Whether the confidence term is squared (A8).
    """

    weights: Tensor
    squared: bool

    def loss(self, z: Tensor) -> Tensor:
        """Logits ``(G, 2K, T)`` to losses ``(G, T)``."""
        s_n, s_p = torch.sigmoid(z).chunk(2, dim=1)
        least = torch.minimum(s_n, s_p)
        each = (s_n + s_p - 1).square() + (least.square() if self.squared else least)
        return (each * self.weights).sum(1)

    def residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``(G, T)`` and ``dL/dz (G, 2K, T)``."""
        s = torch.sigmoid(z)
        s_n, s_p = s.chunk(2, dim=1)
        least, gap = torch.minimum(s_n, s_p), s_n + s_p - 1
        each = gap.square() + (least.square() if self.squared else least)
        slope = 2 * least if self.squared else torch.ones_like(least)
        # Equal members share the slope, as torch.minimum does.
        share_n = (s_n < s_p).to(s) + 0.5 * (s_n == s_p).to(s)
        ds = torch.cat([2 * gap + slope * share_n, 2 * gap + slope * (1 - share_n)], dim=1)
        weights = torch.cat([self.weights, self.weights], dim=1)
        return (each * self.weights).sum(1), ds * s * (1 - s) * weights


@dataclass(frozen=True, eq=False)
class LogisticObjective:
    """Logistic loss with the known classes, neutral = 1: the honest comparator of CCS (C14).

    Attributes:
        weights: ``(G, K, 1)``, as in ``CCSObjective``.
    """

    weights: Tensor

    def loss(self, z: Tensor) -> Tensor:
        """Losses ``(G, T)``, the sum of both classes' means."""
        z_n, z_p = z.chunk(2, dim=1)
        return ((softplus(-z_n) + softplus(z_p)) * self.weights).sum(1)

    def residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``(G, T)`` and ``dL/dz (G, 2K, T)``."""
        s_n, s_p = torch.sigmoid(z).chunk(2, dim=1)
        return self.loss(z), torch.cat([(s_n - 1) * self.weights, s_p * self.weights], dim=1)


def initial_probes(tries: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Starting weights ``(d, T)`` and biases ``(1, T)``, distributed as those of ``nn.Linear``.

    Every group starts from the same draws: a group then gives the same result alone and in a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = (2 * torch.rand(tries, d + 1, generator=generator) - 1) / d**0.5
    return draws[:, :d].T.contiguous(), draws[:, d:].T.contiguous()


def loss_floor(squared: bool) -> float:
    """Lowest loss of a probe that answers the same p everywhere: 0.200 squared, 0.4375 printed."""
    p = 0.4 if squared else 0.375
    return (2 * p - 1) ** 2 + (p * p if squared else p)
