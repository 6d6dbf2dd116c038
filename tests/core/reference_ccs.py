"""The plain CCS loop that the batched solvers are compared with; the benchmark times its probes."""

from __future__ import annotations

import torch
from torch import Tensor

from chameleon_lib.core.ccs_solvers import initial_probes
from workshop.bench.ccs import plain_probe


def plain_loop(
    h_n: Tensor, h_p: Tensor, *, epochs: int, tries: int, seed: int, squared: bool = True
) -> Tensor:
    """Final losses ``(G, tries)`` of every layer and try.

    Args:
        h_n: Neutral activations ``(G, K, d)``.
        h_p: Personalised activations, same shape and row order.
        epochs: Full-batch steps per probe.
        tries: Probes per layer.
        seed: Seed of the starting points, those of ``fit_ccs``.
        squared: Whether the confidence term is squared (A8).
    """
    weights, biases = initial_probes(tries, h_n.shape[-1], seed)
    losses = torch.empty(len(h_n), tries)
    for group in range(len(h_n)):
        for attempt in range(tries):
            start = weights[attempt], biases[attempt, 0]
            losses[group, attempt] = plain_probe(
                h_n[group], h_p[group], *start, epochs=epochs, squared=squared
            )
    return losses
