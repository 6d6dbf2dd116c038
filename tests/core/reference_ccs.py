"""The plain CCS loop: one layer, one try at a time, autograd and torch.optim.AdamW."""

from __future__ import annotations

import torch
from torch import Tensor

from chameleon_lib.core.ccs_objective import initial_probes


def plain_loop(
    h_n: Tensor, h_p: Tensor, *, epochs: int, tries: int, seed: int, squared: bool = True
) -> Tensor:
    """Final losses (G, tries)."""
    d = h_n.shape[-1]
    weights, biases = initial_probes(tries, d, seed)
    losses = torch.empty(len(h_n), tries)
    for group in range(len(h_n)):
        for attempt in range(tries):
            probe = torch.nn.Linear(d, 1)
            with torch.no_grad():
                probe.weight.copy_(weights[:, attempt])
                probe.bias.copy_(biases[0, attempt])
            optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0.01)
            for _ in range(epochs):
                optimizer.zero_grad()
                _loss(probe, h_n[group], h_p[group], squared).backward()
                optimizer.step()
            with torch.no_grad():
                losses[group, attempt] = _loss(probe, h_n[group], h_p[group], squared)
    return losses


def _loss(probe: torch.nn.Module, h_n: Tensor, h_p: Tensor, squared: bool) -> Tensor:
    g_n, g_p = torch.sigmoid(probe(h_n))[:, 0], torch.sigmoid(probe(h_p))[:, 0]
    confidence = torch.minimum(g_n, g_p)
    return ((g_n - (1 - g_p)) ** 2 + (confidence**2 if squared else confidence)).mean()
