"""The same CCS objective, minimised in the span of the data by L-BFGS; the fast solver.

The loss sees theta through ``z = X theta + b`` alone and its gradient combines the rows of X. So
every step stays in ``start + span(rows)`` and is written by its coefficients:

* fewer rows than d: ``theta = start + X^T a``. With the Gram matrix ``G = X X^T`` logits are
  ``G a`` and inner products ``a.(G a')``: an iteration costs two products with G, whatever d is;
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

from chameleon_lib.core.ccs_coordinates import Span, Step
from chameleon_lib.core.ccs_objective import CCSObjective, Objective, initial_probes

_MEMORY = 6
_ITERATIONS = 100
_GOOD_ENOUGH = 1e-9  # below it a loss only says "separable"; float32 ranks no further
_RELATIVE_GAIN = 1e-6
_PATIENCE = 5
_BACKTRACKS = 12


@dataclass(eq=False)
class _Pair:
    """What L-BFGS remembers of a step: ``s`` moved the gradient by ``y``.

    ``rho`` is ``1 / s.y``, or 0 where the pair has no positive curvature and must not be used;
    ``scale`` is ``s.y / y.y`` of the newest usable pair. Both are ``(G, T, 1)``.
    """

    s: Step
    y: Step
    rho: Tensor
    scale: Tensor


def solve_span(
    x: Tensor,
    objective: CCSObjective,
    *,
    lr: float,
    weight_decay: float,
    epochs: int,
    tries: int,
    seed: int,
    stop_at: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimises the objective within the ball that AdamW of this budget can reach.

    Args:
        x: ``(G, 2K, d)`` prepared rows, neutral first; rows of padding must be zero.
        stop_at: Losses ``(G,)``; a group stops as soon as its best try is no worse.

    Returns:
        Weights ``(G, T, d)`` and biases ``(G, T, 1)``.
    """
    groups, _, d = x.shape
    decay = (1 - lr * weight_decay) ** epochs
    weight, bias = (
        decay * start.to(x).expand(groups, -1, -1) for start in initial_probes(tries, d, seed)
    )
    return _from_start(x, objective, weight, bias, budget_radius(lr, epochs, d), stop_at)


def budget_radius(lr: float, epochs: int, d: int) -> float:
    """How far AdamW can take ``(theta, b)`` in ``epochs`` steps of size ``lr``."""
    return lr * epochs * (d + 1) ** 0.5


def minimise_in_ball(
    x: Tensor, objective: Objective, weight: Tensor, bias: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Minimises any objective of the logits within ``radius`` of the given start.

    Args:
        x: ``(G, 2K, d)``.
        weight: Start as columns ``(G, d, T)``.
        bias: Start ``(G, 1, T)``.

    Returns:
        Weights ``(G, d, T)`` and biases ``(G, 1, T)``.
    """
    weight, bias = _from_start(x, objective, weight.mT, bias.mT, radius, None)
    return weight.mT, bias.mT


def _from_start(
    x: Tensor,
    objective: Objective,
    weight: Tensor,
    bias: Tensor,
    radius: float,
    stop_at: Tensor | None,
) -> tuple[Tensor, Tensor]:
    span = Span(x)
    start = torch.baddbmm(bias, weight, x.mT)  # (G, T, 2K)
    extra_weight, extra_bias = span.vector(_minimise(span, objective, start, radius, stop_at))
    return weight + extra_weight, bias + extra_bias


def _minimise(
    span: Span, objective: Objective, start: Tensor, radius: float, stop_at: Tensor | None
) -> Step:
    loss = objective.loss(start).unsqueeze(2)  # (G, T, 1)
    gradient = span.of_residual(objective.residual(start))
    at = gradient.times(torch.zeros_like(loss))
    memory: list[_Pair] = []
    idle = torch.zeros_like(loss)
    finished = torch.zeros_like(loss, dtype=torch.bool)
    for iteration in range(_ITERATIONS):
        slope = _tangent(span, at, gradient, radius)
        direction = _two_loop(span, slope.coef, memory)
        descent = span.inner(slope.coef, direction)
        # Where the quasi-Newton direction does not descend, the plain gradient does.
        if bool((descent >= 0).any()):
            direction = _where(descent < 0, direction, slope.times(-torch.ones_like(loss)))
            descent = span.inner(slope.coef, direction)
        if iteration == 0:
            # One logit is the natural first step: sigmoids are neither flat nor saturated there.
            largest = direction.z.abs().amax(2, keepdim=True)
            direction = direction.times(1 / largest.clamp_min(1e-30))
            descent = span.inner(slope.coef, direction)
        new, new_loss = _line_search(span, objective, start, at, direction, loss, descent, radius)
        # A finished problem stays put, so that its result does not depend on the rest of the batch.
        new, new_loss = _where(finished, at, new), torch.where(finished, loss, new_loss)
        idle = torch.where(loss - new_loss > _RELATIVE_GAIN * loss, 0 * idle, idle + 1)
        new_gradient = span.of_residual(objective.residual(start + new.z))
        s, y = new.minus(at), new_gradient.minus(gradient)
        curvature = span.inner(s.coef, y)
        # Curvature must be positive for L-BFGS; other pairs are left out of that problem's memory.
        usable = curvature > 1e-12
        rho = torch.where(usable, 1 / curvature.clamp_min(1e-12), 0.0)
        ratio = curvature / span.inner(y.coef, y).clamp_min(1e-30)
        scale = torch.where(usable, ratio, memory[-1].scale if memory else 1.0)
        memory = [*memory[1 - _MEMORY :], _Pair(s, y, rho, scale)]
        at, gradient, loss = new, new_gradient, new_loss
        finished = finished | (idle >= _PATIENCE) | (loss < _GOOD_ENOUGH)
        if stop_at is not None:
            finished = finished | (loss.amin(1, keepdim=True) <= stop_at[:, None, None])
        if bool(finished.all()):
            break
    return at


def _where(condition: Tensor, left: Step, right: Step) -> Step:
    return Step(
        torch.where(condition, left.coef, right.coef), torch.where(condition, left.z, right.z)
    )


def _tangent(span: Span, at: Step, gradient: Step, radius: float) -> Step:
    """The gradient without its outward part, for problems that sit on the ball's surface."""
    square = span.inner(at.coef, at)
    outward = span.inner(gradient.coef, at)  # negative: descending would leave the ball
    stuck = (square > 0.999 * radius**2) & (outward < 0)
    return gradient.plus(at, torch.where(stuck, -outward / square.clamp_min(1e-30), 0 * square))


def _two_loop(span: Span, gradient: Tensor, memory: list[_Pair]) -> Step:
    """L-BFGS direction (Nocedal and Wright, algorithm 7.4), one per group and try.

    Only coefficients move in the loops: one product at the end is cheaper than logits throughout.
    """
    q = gradient
    alphas = []
    for pair in reversed(memory):
        alpha = pair.rho * span.inner(q, pair.s)
        q = torch.addcmul(q, alpha, pair.y.coef, value=-1)
        alphas.append(alpha)
    if memory:
        q = q * memory[-1].scale
    for pair, alpha in zip(memory, reversed(alphas), strict=True):
        q = torch.addcmul(q, alpha - pair.rho * span.inner(q, pair.y), pair.s.coef)
    return span.step(-q)


def _line_search(
    span: Span,
    objective: Objective,
    start: Tensor,
    at: Step,
    direction: Step,
    loss: Tensor,
    descent: Tensor,
    radius: float,
) -> tuple[Step, Tensor]:
    """Backtracking along the path projected on the ball; logits are linear, so trials are cheap."""
    size = torch.ones_like(loss)
    done = torch.zeros_like(loss, dtype=torch.bool)
    at_at, at_to, to_to = (
        span.inner(at.coef, at),
        span.inner(direction.coef, at),
        span.inner(direction.coef, direction),
    )
    best_keep, best_size, best_loss = torch.ones_like(loss), torch.zeros_like(loss), loss
    for _ in range(_BACKTRACKS):
        square = at_at + 2 * size * at_to + size**2 * to_to
        keep = (radius / square.clamp_min(1e-30).sqrt()).clamp_max(1.0)
        moved = torch.addcmul(at.z, size, direction.z)
        trial = objective.loss(torch.addcmul(start, keep, moved)).unsqueeze(2)
        accept = ~done & (trial <= loss + 1e-4 * size * descent)
        best_keep = torch.where(accept, keep, best_keep)
        best_size = torch.where(accept, size, best_size)
        best_loss = torch.where(accept, trial, best_loss)
        done = done | accept
        if bool(done.all()):
            break
        size = torch.where(done, size, size * 0.4)
    return at.plus(direction, best_size).times(best_keep), best_loss
