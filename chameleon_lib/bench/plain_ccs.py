"""The plain CCS probe: one layer, one try at a time, autograd and torch.optim.AdamW.

It is how the published code trains its probes, and the named reference of the batched solvers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plain_probe(
    h_n: Tensor,
    h_p: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    epochs: int,
    squared: bool = True,
) -> float:
    """Final loss of one probe.

    Args:
        h_n: ``(K, d)``.
        h_p: ``(K, d)``.
        weight: Start ``(d,)``.
        bias: Start, a scalar.
        epochs: Full-batch steps.
        squared: Whether the confidence term is squared (A8).
    """
    probe = torch.nn.Linear(h_n.shape[-1], 1)
    with torch.no_grad():
        probe.weight.copy_(weight)
        probe.bias.copy_(bias)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        _loss(probe, h_n, h_p, squared).backward()
        optimizer.step()
    with torch.no_grad():
        return float(_loss(probe, h_n, h_p, squared))


def _loss(probe: torch.nn.Module, h_n: Tensor, h_p: Tensor, squared: bool) -> Tensor:
    g_n, g_p = torch.sigmoid(probe(h_n))[:, 0], torch.sigmoid(probe(h_p))[:, 0]
    confidence = torch.minimum(g_n, g_p)
    return ((g_n - (1 - g_p)) ** 2 + (confidence**2 if squared else confidence)).mean()
