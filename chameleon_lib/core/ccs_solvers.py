"""The CCS objective in logits and its two solvers: AdamW (reference), and L-BFGS in a span.

Section 3.2 of the paper. With ``s = sigmoid(theta.x + b)``:

    L = (1/K) sum_i [ (s_N + s_P - 1)^2 + c(min(s_N, s_P)) ],   c(m) = m^2 (default) or m as printed

The loss touches theta through ``X theta`` alone, so its gradient is ``X^T R`` with R = dL/dlogit:
one matrix product serves every group and every try, and no automatic differentiation is needed.
Tries are rows, ``(G, T, d)`` and ``(G, T, 2K)``: with ten tries the products of this layout, whose
long side is contiguous, take a third to a sixth of the time that tries as columns take.

**The span solver.** The loss sees theta through ``z = X theta + b`` alone and its gradient combines
the rows of X. So every step stays in ``start + span(rows)`` and is written by its coefficients:

* fewer rows than d: ``theta = start + X^T a``. With the Gram matrix ``G = X X^T`` logits are
  ``G a`` and inner products ``a.(G a')``: an iteration costs two products with G, whatever d is;
* otherwise the coefficients are theta itself.

Two conventions stand for the fixed budget of AdamW. The start is shrunk by ``(1 - lr wd)^epochs``,
which is all that weight decay does outside the span. AdamW moves a coordinate by about lr an epoch,
so theta by at most about ``lr * epochs * sqrt(d + 1)``: the search is confined to that ball around
the start. Small activations therefore stay hard to fit, as for AdamW (B10); without the ball each
layer with 2K <= d would reach loss 0. The ball is wider than the path AdamW takes, so losses come
out lower and directions differ: compare losses of one solver only.

**It is not stable.** L-BFGS goes far on a loss with many minima, so noise decides in which one a
try ends: with noise of 1e-6 of the activations, on six groups of the demo's Table 1, losses of a
layer moved by up to a factor of three, theta to a cosine of 0.1, and the layers that the elbow
keeps changed in 6 of 30 fits (AdamW: losses by 0.2 % at most, cosines above 0.999, no layers in any
of 36). No stopping rule and no tolerance for ties mends that. Layers are therefore ranked by the
reference even where this solver finds theta (``directions.Reading.ccs``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from chameleon_lib.core.settings import EditSettings

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # torch.optim.AdamW defaults
_GRAM_PARTS = 4
_MEMORY = 6
_ITERATIONS = 100
_GOOD_ENOUGH = 1e-9  # below it a loss only says "separable"; float32 ranks no further
_RELATIVE_GAIN = 1e-6
_PATIENCE = 5
_BACKTRACKS = 12


@dataclass(frozen=True, eq=False)
class CCSObjective:
    """The CCS loss of G groups; logits 0..K-1 are neutral, K..2K-1 personalised."""

    weights: Tensor  # ``(G, 1, K)``, 1 / number of pairs of the group, 0 for padding
    squared: bool  # whether the confidence term is squared (A8)

    def loss(self, z: Tensor) -> Tensor:
        """Losses ``(G, T)`` of logits ``(G, T, 2K)``."""
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


def solve_reference(
    x: Tensor, objective: CCSObjective, settings: EditSettings, seed: int
) -> tuple[Tensor, Tensor]:
    """Runs AdamW from the fixed starting points; decay acts on weight and bias alike.

    Two products per epoch read the rows; everything else works in buffers made once.

    Args:
        x: ``(G, 2K, d)`` prepared rows, neutral first.

    Returns:
        Weights ``(G, T, d)`` and biases ``(G, T, 1)``.
    """
    groups, count, d = x.shape
    lr, tries = settings.ccs_lr, settings.ccs_tries
    # A constant coordinate makes the bias part of the weight. Both products are a little faster
    # with the rows stored as columns.
    columns = torch.cat([x.mT, x.new_ones(groups, 1, count)], dim=1)  # (G, d + 1, 2K)
    rows = columns.mT
    start = torch.cat(initial_probes(tries, d, seed), dim=1).to(x)
    parameters = start.repeat(groups, 1, 1)  # (G, T, d + 1)
    gradient, scale = torch.empty_like(parameters), torch.empty_like(parameters)
    mean, square = torch.zeros_like(parameters), torch.zeros_like(parameters)
    z = x.new_empty(groups, tries, count)
    for step in range(1, settings.ccs_epochs + 1):
        torch.bmm(parameters, columns, out=z)
        torch.bmm(objective.residual(z), rows, out=gradient)
        mean.lerp_(gradient, 1 - _BETA_1)
        square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        # Both bias corrections act on scalars: on epsilon and on the step size.
        correction = (1 - _BETA_2**step) ** 0.5
        torch.sqrt(square, out=scale).add_(_EPSILON * correction)
        parameters.mul_(1 - lr * settings.ccs_weight_decay)
        parameters.addcdiv_(mean, scale, value=-lr * correction / (1 - _BETA_1**step))
    return parameters[..., :d], parameters[..., d:]


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
    settings: EditSettings,
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
    decay = (1 - settings.ccs_lr * settings.ccs_weight_decay) ** settings.ccs_epochs
    weight, bias = (
        decay * start.to(x).expand(groups, -1, -1)
        for start in initial_probes(settings.ccs_tries, d, seed)
    )
    return minimise_in_ball(x, objective, weight, bias, budget_radius(settings, d), stop_at)


def budget_radius(settings: EditSettings, d: int) -> float:
    """How far AdamW can take ``(theta, b)`` in ``ccs_epochs`` steps of size ``ccs_lr``."""
    return settings.ccs_lr * settings.ccs_epochs * (d + 1) ** 0.5


def minimise_in_ball(
    x: Tensor,
    objective: CCSObjective,
    weight: Tensor,
    bias: Tensor,
    radius: float,
    stop_at: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimises an objective of the logits within ``radius`` of the given start.

    Shapes as in :func:`solve_span`, of the start ``weight (G, T, d)`` and ``bias (G, T, 1)``, too.
    """
    span = Span(x)
    start = torch.baddbmm(bias, weight, x.mT)  # (G, T, 2K)
    extra_weight, extra_bias = span.vector(_minimise(span, objective, start, radius, stop_at))
    return weight + extra_weight, bias + extra_bias


def _minimise(
    span: Span, objective: CCSObjective, start: Tensor, radius: float, stop_at: Tensor | None
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
    objective: CCSObjective,
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
