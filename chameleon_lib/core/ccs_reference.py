"""CCS by full-batch AdamW, as the AlignEZ paper states it (A7), all tries at once."""

from __future__ import annotations

import torch
from torch import Tensor

from chameleon_lib.core.ccs_objective import CCSObjective, initial_probes

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # torch.optim.AdamW defaults


def solve_reference(
    x: Tensor,
    objective: CCSObjective,
    *,
    lr: float,
    weight_decay: float,
    epochs: int,
    tries: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Runs AdamW from the fixed starting points; decay acts on weight and bias alike.

    Two products per epoch read the rows; everything else works in buffers made once.

    Args:
        x: ``(G, 2K, d)`` prepared rows, neutral first.

    Returns:
        Weights ``(G, T, d)`` and biases ``(G, T, 1)``.
    """
    groups, count, d = x.shape
    # A constant coordinate makes the bias part of the weight. Both products are a little faster
    # with the rows stored as columns.
    columns = torch.cat([x.mT, x.new_ones(groups, 1, count)], dim=1)  # (G, d + 1, 2K)
    rows = columns.mT
    start = torch.cat(initial_probes(tries, d, seed), dim=1).to(x)
    parameters = start.repeat(groups, 1, 1)  # (G, T, d + 1)
    gradient, scale = torch.empty_like(parameters), torch.empty_like(parameters)
    mean, square = torch.zeros_like(parameters), torch.zeros_like(parameters)
    z = x.new_empty(groups, tries, count)
    for step in range(1, epochs + 1):
        torch.bmm(parameters, columns, out=z)
        torch.bmm(objective.residual(z), rows, out=gradient)
        mean.lerp_(gradient, 1 - _BETA_1)
        square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        # Both bias corrections act on scalars: on epsilon and on the step size.
        correction = (1 - _BETA_2**step) ** 0.5
        torch.sqrt(square, out=scale).add_(_EPSILON * correction)
        parameters.mul_(1 - lr * weight_decay)
        parameters.addcdiv_(mean, scale, value=-lr * correction / (1 - _BETA_1**step))
    return parameters[..., :d], parameters[..., d:]
