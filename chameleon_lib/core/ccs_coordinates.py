"""Vectors of the span of the data, by coefficients and logits; see ``ccs_span``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GRAM_PARTS = 4


@dataclass(eq=False)
class Step:
    """A vector of span(rows): its coefficients ``(G, T, c)`` and its logits ``(G, T, 2K)``."""

    coef: Tensor
    z: Tensor

    def plus(self, other: Step, scale: Tensor) -> Step:
        """``self + scale * other``, scale ``(G, T, 1)``."""
        return Step(
            torch.addcmul(self.coef, scale, other.coef), torch.addcmul(self.z, scale, other.z)
        )

    def minus(self, other: Step) -> Step:
        """``self - other``."""
        return Step(self.coef - other.coef, self.z - other.z)

    def times(self, scale: Tensor) -> Step:
        """``scale * self``, scale ``(G, T, 1)``."""
        return Step(self.coef * scale, self.z * scale)


class Span:
    """Coordinates of span(rows), with a constant column standing for the bias.

    With fewer rows than d the coefficients combine rows and the Gram matrix stands for the rows;
    otherwise the coefficients are theta itself.

    Args:
        x: ``(G, 2K, d)``.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.dual = x.shape[1] < x.shape[2]
        if self.dual:
            self.gram = _gram(x)  # (G, 2K, 2K)
        else:
            self.rows = torch.cat([x, torch.ones_like(x[:, :, :1])], dim=2)  # (G, 2K, d + 1)

    def of_residual(self, residual: Tensor) -> Step:
        """The vector ``X^T residual``."""
        return self.step(residual if self.dual else residual @ self.rows)

    def step(self, coef: Tensor) -> Step:
        """The vector with these coefficients ``(G, T, c)``."""
        return Step(coef, coef @ (self.gram if self.dual else self.rows.mT))

    def inner(self, left: Tensor, right: Step) -> Tensor:
        """Inner products ``(G, T, 1)``, in theta space, of a vector's coefficients and a vector."""
        return (left * (right.z if self.dual else right.coef)).sum(2, keepdim=True)

    def vector(self, step: Step) -> tuple[Tensor, Tensor]:
        """Weights ``(G, T, d)`` and biases ``(G, T, 1)``."""
        if self.dual:
            return step.coef @ self.x, step.coef.sum(2, keepdim=True)
        return step.coef[..., :-1], step.coef[..., -1:]


def _gram(x: Tensor) -> Tensor:
    """``X X^T + 1 (G, 2K, 2K)``; what lies above the diagonal is copied, not computed."""
    count = x.shape[1]
    edges = [count * part // _GRAM_PARTS for part in range(_GRAM_PARTS + 1)]
    gram = x.new_empty(len(x), count, count)
    for low, high in zip(edges, edges[1:], strict=False):
        block = torch.bmm(x[:, low:high], x[:, :high].mT).add_(1)
        gram[:, low:high, :high] = block
        gram[:, :high, low:high] = block.mT
    return gram
