"""The noise of ``tests/noise.py``: of its size, even, the same for the same number, and cheap."""

from __future__ import annotations

import torch

from tests.noise import make_noisy, noisy


def test_noise_is_even_within_its_size_and_a_function_of_the_number() -> None:
    x = torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = noisy(x, 1e-3)
    e = ((found - x) / x / 1e-3).detach()
    assert float(e.abs().max()) < 1.01 and abs(float(e.mean())) < 0.01
    assert abs(float(e.std()) - 3**-0.5) < 0.01  # of a uniform one
    assert torch.equal(noisy(x.T, 1e-3).T, found)
    found.sum().backward()
    assert x.grad is not None and float((x.grad - 1).abs().max()) < 1.01e-3


def test_a_module_is_made_noisy_once_whatever_is_built_around_it() -> None:
    layer = torch.nn.Linear(3, 3)
    for _ in range(2):
        make_noisy(_Model(layer), [layer], 1e-3)
    assert len(layer._forward_hooks) == 1


class _Model:
    def __init__(self, head: torch.nn.Module) -> None:
        self._head = head

    def get_output_embeddings(self) -> torch.nn.Module:
        return self._head
