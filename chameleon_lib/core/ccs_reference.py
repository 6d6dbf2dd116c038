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

    Args:
        x: ``(G, 2K, d)`` prepared rows, neutral first.

    Returns:
        Weights ``(G, d, T)`` and biases ``(G, 1, T)``.
    """
    groups, _, d = x.shape
    weight, bias = (start.to(x).expand(groups, -1, -1) for start in initial_probes(tries, d, seed))
    parameters = torch.cat([weight, bias], dim=1)  # (G, d + 1, T)
    mean, square = torch.zeros_like(parameters), torch.zeros_like(parameters)
    gradient = torch.empty_like(parameters)
    x_t = x.mT
    for step in range(1, epochs + 1):
        z = torch.baddbmm(parameters[:, d:], x, parameters[:, :d])  # (G, 2K, T)
        residual = objective.residual(z)[1]
        gradient[:, :d] = x_t @ residual
        gradient[:, d:] = residual.sum(1, keepdim=True)
        parameters.mul_(1 - lr * weight_decay)
        mean.lerp_(gradient, 1 - _BETA_1)
        square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        scale = square.sqrt().div_((1 - _BETA_2**step) ** 0.5).add_(_EPSILON)
        parameters.addcdiv_(mean, scale, value=-lr / (1 - _BETA_1**step))
    return parameters[:, :d].contiguous(), parameters[:, d:].contiguous()
