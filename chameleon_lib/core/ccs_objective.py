"""The CCS objective in logits, its hand-written gradient, and the fixed starting points.

Section 3.2 of the paper (method reference, section 3.7). With ``s = sigmoid(theta.x + b)``:

    L = (1/K) sum_i [ (s_N + s_P - 1)^2 + c(min(s_N, s_P)) ],   c(m) = m^2 (default) or m as printed

The loss touches theta through ``X theta`` alone, so its gradient is ``X^T R`` with R = dL/dlogit:
one matrix product serves every group and every try, and no automatic differentiation is needed.
Tries are rows, ``(G, T, d)`` and ``(G, T, 2K)``: with ten tries the products of this layout, whose
long side is contiguous, take a third to a sixth of the time that tries as columns take.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Objective(Protocol):
    """A loss of logits ``(G, T, 2K)``; columns 0..K-1 are neutral, columns K..2K-1 personalised."""

    def loss(self, z: Tensor) -> Tensor:
        """Losses ``(G, T)``."""

    def residual(self, z: Tensor) -> Tensor:
        """The residual ``dL/dz (G, T, 2K)``."""


@dataclass(frozen=True, eq=False)
class CCSObjective:
    """The CCS loss of G groups.

    Attributes:
        weights: ``(G, 1, K)``, 1 / number of pairs of the group, 0 for padding.
        squared: Whether the confidence term is squared (A8).
    """

    weights: Tensor
    squared: bool

    def loss(self, z: Tensor) -> Tensor:
        """Logits ``(G, T, 2K)`` to losses ``(G, T)``."""
        s_n, s_p = torch.sigmoid(z).chunk(2, dim=2)
        least = torch.minimum(s_n, s_p)
        each = (s_n + s_p - 1).square() + (least.square() if self.squared else least)
        return (each * self.weights).sum(2)

    def residual(self, z: Tensor) -> Tensor:
        """The residual ``dL/dz (G, T, 2K)``.

        With ``min = (s_N + s_P - |s_N - s_P|) / 2`` both members of a pair have the slope
        ``common -+ side``. Equal members share the slope of the minimum, as autograd does. A small
        problem pays for the number of operations, so they are few and work in place.
        """
        s = torch.sigmoid(z)
        s_n, s_p = s.chunk(2, dim=2)
        total, side = s_n + s_p, torch.sub(s_n, s_p).sign_()
        if self.squared:
            least = torch.minimum(s_n, s_p)
            common = torch.add(least, total, alpha=2).sub_(2)
            side.mul_(least)
        else:
            common = total.mul_(2).sub_(1.5)
            side.mul_(0.5)
        slope = torch.cat([common - side, common.add_(side)], dim=2)
        return slope.mul_(torch.addcmul(s, s, s, value=-1)).mul_(self._twice)

    @cached_property
    def _twice(self) -> Tensor:
        return torch.cat([self.weights, self.weights], dim=2)  # (G, 1, 2K)


@dataclass(frozen=True, eq=False)
class LogisticObjective:
    """Logistic loss with the known classes, neutral = 1: the honest comparator of CCS (C14).

    Attributes:
        weights: ``(G, 1, K)``, as in ``CCSObjective``.
    """

    weights: Tensor

    def loss(self, z: Tensor) -> Tensor:
        """Losses ``(G, T)``, the sum of both classes' means."""
        z_n, z_p = z.chunk(2, dim=2)
        return ((softplus(-z_n) + softplus(z_p)) * self.weights).sum(2)

    def residual(self, z: Tensor) -> Tensor:
        """The residual ``dL/dz (G, T, 2K)``."""
        s_n, s_p = torch.sigmoid(z).chunk(2, dim=2)
        return torch.cat([(s_n - 1) * self.weights, s_p * self.weights], dim=2)


def initial_probes(tries: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Starting weights ``(T, d)`` and biases ``(T, 1)``, distributed as those of ``nn.Linear``.

    Every group starts from the same draws: a group then gives the same result alone and in a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = (2 * torch.rand(tries, d + 1, generator=generator) - 1) / d**0.5
    return draws[:, :d], draws[:, d:]


def loss_floor(squared: bool) -> float:
    """Lowest loss of a probe that answers the same p everywhere: 0.200 squared, 0.4375 printed."""
    p = 0.4 if squared else 0.375
    return (2 * p - 1) ** 2 + (p * p if squared else p)
