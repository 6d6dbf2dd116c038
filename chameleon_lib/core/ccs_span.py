"""The same CCS objective, minimised in the span of the data by L-BFGS; the fast solver.

The loss sees theta through ``z = X theta + b`` alone and its gradient combines the rows of X. So
every step stays in ``start + span(rows)`` and is written by its coefficients:

* fewer rows than d: ``theta = start + X^T a``. With the Gram matrix ``G = X X^T`` logits are
  ``G a`` and inner products ``a.(G a')``: an iteration costs one product with G, whatever d is;
* otherwise the coefficients are theta itself.

Two conventions stand for the fixed budget of AdamW. The start is shrunk by ``(1 - lr wd)^epochs``,
which is all that weight decay does outside the span. AdamW moves a coordinate by about lr an epoch,
so theta by at most about ``lr * epochs * sqrt(d + 1)``: the search is confined to that ball around
the start. Small activations therefore stay hard to fit, as for AdamW (B10); without the ball each
layer with 2K <= d would reach loss 0. The ball is wider than the path AdamW takes, so losses come
out lower and directions differ: compare losses of one solver only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chameleon_lib.core.ccs_objective import CCSObjective, Objective, initial_probes

_MEMORY = 6
_ITERATIONS = 100
_GOOD_ENOUGH = 1e-9  # below it a loss only says "separable"; float32 ranks no further
_RELATIVE_GAIN = 1e-6
_PATIENCE = 5
_BACKTRACKS = 12


@dataclass(eq=False)
class _Step:
    """A vector of span(rows): its coefficients ``(G, c, T)`` and its logits ``(G, 2K, T)``."""

    coef: Tensor
    z: Tensor

    def plus(self, other: _Step, scale: Tensor) -> _Step:
        return _Step(self.coef + scale * other.coef, self.z + scale * other.z)

    def times(self, scale: Tensor) -> _Step:
        return _Step(self.coef * scale, self.z * scale)


class _Span:
    """Coordinates of span(rows), with a constant column standing for the bias."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.dual = x.shape[1] < x.shape[2]
        if self.dual:
            self.gram = torch.baddbmm(torch.ones_like(x[:, :1, :1]), x, x.mT)  # (G, 2K, 2K)
        else:
            self.rows = torch.cat([x, torch.ones_like(x[:, :, :1])], dim=2)  # (G, 2K, d + 1)

    def of_residual(self, residual: Tensor) -> _Step:
        """The vector ``X^T residual``."""
        if self.dual:
            return _Step(residual, self.gram @ residual)
        coef = self.rows.mT @ residual
        return _Step(coef, self.rows @ coef)

    def inner(self, left: _Step, right: _Step) -> Tensor:
        """Inner products ``(G, 1, T)`` of the vectors, in theta space."""
        return (left.coef * (right.z if self.dual else right.coef)).sum(1, keepdim=True)

    def vector(self, step: _Step) -> tuple[Tensor, Tensor]:
        """Weights ``(G, d, T)`` and biases ``(G, 1, T)``."""
        if self.dual:
            return self.x.mT @ step.coef, step.coef.sum(1, keepdim=True)
        return step.coef[:, :-1], step.coef[:, -1:]


def solve_span(
    x: Tensor,
    objective: CCSObjective,
    *,
    lr: float,
    weight_decay: float,
    epochs: int,
    tries: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Minimises the objective within the ball that AdamW of this budget can reach.

    Args:
        x: ``(G, 2K, d)`` prepared rows, neutral first; rows of padding must be zero.

    Returns:
        Weights ``(G, d, T)`` and biases ``(G, 1, T)``.
    """
    groups, _, d = x.shape
    decay = (1 - lr * weight_decay) ** epochs
    weight, bias = (
        decay * start.to(x).expand(groups, -1, -1) for start in initial_probes(tries, d, seed)
    )
    return minimise_in_ball(x, objective, weight, bias, budget_radius(lr, epochs, d))


def budget_radius(lr: float, epochs: int, d: int) -> float:
    """How far AdamW can take ``(theta, b)`` in ``epochs`` steps of size ``lr``."""
    return lr * epochs * (d + 1) ** 0.5


def minimise_in_ball(
    x: Tensor, objective: Objective, weight: Tensor, bias: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Minimises any objective of the logits within ``radius`` of the given start.

    Args:
        x: ``(G, 2K, d)``.
        weight: Start ``(G, d, T)``.
        bias: Start ``(G, 1, T)``.

    Returns:
        Weights ``(G, d, T)`` and biases ``(G, 1, T)``.
    """
    span = _Span(x)
    start = torch.baddbmm(bias, x, weight)  # (G, 2K, T)
    moved = _minimise(span, objective, start, radius)
    extra_weight, extra_bias = span.vector(moved)
    return weight + extra_weight, bias + extra_bias


def _minimise(span: _Span, objective: Objective, start: Tensor, radius: float) -> _Step:
    loss, residual = objective.residual(start)
    loss = loss.unsqueeze(1)  # (G, 1, T)
    gradient = span.of_residual(residual)
    at = gradient.times(torch.zeros_like(loss))
    memory: list[tuple[_Step, _Step, Tensor]] = []
    idle = torch.zeros_like(loss)
    finished = torch.zeros_like(loss, dtype=torch.bool)
    for iteration in range(_ITERATIONS):
        slope = _tangent(span, at, gradient, radius)
        direction = _two_loop(span, slope, memory)
        descent = span.inner(slope, direction)
        # Where the quasi-Newton direction does not descend, the plain gradient does.
        direction = _where(descent < 0, direction, slope.times(-torch.ones_like(loss)))
        if iteration == 0:
            # One logit is the natural first step: sigmoids are neither flat nor saturated there.
            largest = direction.z.abs().amax(1, keepdim=True)
            direction = direction.times(1 / largest.clamp_min(1e-30))
        descent = span.inner(slope, direction)
        new, new_loss = _line_search(span, objective, start, at, direction, loss, descent, radius)
        # A finished problem stays put, so that its result does not depend on the rest of the batch.
        new, new_loss = _where(finished, at, new), torch.where(finished, loss, new_loss)
        idle = torch.where(loss - new_loss > _RELATIVE_GAIN * loss, 0 * idle, idle + 1)
        _, residual = objective.residual(start + new.z)
        new_gradient = span.of_residual(residual)
        minus = -torch.ones_like(loss)
        s, y = new.plus(at, minus), new_gradient.plus(gradient, minus)
        curvature = span.inner(s, y)
        # Curvature must be positive for L-BFGS; other pairs are left out of that problem's memory.
        rho = torch.where(curvature > 1e-12, 1 / curvature.clamp_min(1e-12), 0 * curvature)
        memory = [*memory[1 - _MEMORY :], (s, y, rho)]
        at, gradient, loss = new, new_gradient, new_loss
        finished = finished | (idle >= _PATIENCE) | (loss < _GOOD_ENOUGH)
        if bool(finished.all()):
            break
    return at


def _where(condition: Tensor, left: _Step, right: _Step) -> _Step:
    return _Step(
        torch.where(condition, left.coef, right.coef), torch.where(condition, left.z, right.z)
    )


def _tangent(span: _Span, at: _Step, gradient: _Step, radius: float) -> _Step:
    """The gradient without its outward part, for problems that sit on the ball's surface."""
    square = span.inner(at, at)
    outward = span.inner(at, gradient)  # negative: descending would leave the ball
    stuck = (square > 0.999 * radius**2) & (outward < 0)
    return gradient.plus(at, torch.where(stuck, -outward / square.clamp_min(1e-30), 0 * square))


def _two_loop(span: _Span, gradient: _Step, memory: list[tuple[_Step, _Step, Tensor]]) -> _Step:
    """L-BFGS direction (Nocedal and Wright, algorithm 7.4), one per group and try."""
    q = gradient
    alphas = []
    for s, y, rho in reversed(memory):
        alpha = rho * span.inner(s, q)
        q = q.plus(y, -alpha)
        alphas.append(alpha)
    scale = torch.ones_like(span.inner(q, q))
    for s, y, rho in memory:  # the newest usable pair decides
        ratio = span.inner(s, y) / span.inner(y, y).clamp_min(1e-30)
        scale = torch.where(rho > 0, ratio, scale)
    q = q.times(scale)
    for (s, y, rho), alpha in zip(memory, reversed(alphas), strict=True):
        q = q.plus(s, alpha - rho * span.inner(y, q))
    return q.times(-torch.ones_like(scale))


def _line_search(
    span: _Span,
    objective: Objective,
    start: Tensor,
    at: _Step,
    direction: _Step,
    loss: Tensor,
    descent: Tensor,
    radius: float,
) -> tuple[_Step, Tensor]:
    """Backtracking along the path projected on the ball; logits are linear, so trials are cheap."""
    size = torch.ones_like(loss)
    done = torch.zeros_like(loss, dtype=torch.bool)
    at_at, at_to, to_to = (
        span.inner(at, at),
        span.inner(at, direction),
        span.inner(direction, direction),
    )
    best_keep, best_size, best_loss = torch.ones_like(loss), torch.zeros_like(loss), loss
    for _ in range(_BACKTRACKS):
        square = at_at + 2 * size * at_to + size**2 * to_to
        keep = (radius / square.clamp_min(1e-30).sqrt()).clamp_max(1.0)
        trial = objective.loss(start + keep * (at.z + size * direction.z)).unsqueeze(1)
        accept = ~done & (trial <= loss + 1e-4 * size * descent)
        best_keep = torch.where(accept, keep, best_keep)
        best_size = torch.where(accept, size, best_size)
        best_loss = torch.where(accept, trial, best_loss)
        done = done | accept
        if bool(done.all()):
            break
        size = torch.where(done, size, size * 0.4)
    return at.plus(direction, best_size).times(best_keep), best_loss
