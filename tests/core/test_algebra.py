"""The numerical invariants of the edit (method reference, section 14)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chameleon_lib.core.algebra import apply_edit, edit_factors, elementwise_boost
from chameleon_lib.errors import UserError


def _case(seed: int = 0, d: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(7, d, generator=generator, dtype=torch.float64)
    n = draw[1] + 0.8 * draw[0]  # c = <p, n> is far from 0
    return draw[2:], draw[0] / draw[0].norm(), n / n.norm()


def test_edit_ignores_sign_and_length_of_both_directions() -> None:
    x, p, n = (value.float() for value in _case())
    torch.testing.assert_close(
        apply_edit(x, p, n), apply_edit(x, -3 * p, -2 * n), atol=1e-6, rtol=0
    )


def test_component_along_n_is_zero_after_the_edit() -> None:
    x, p, n = _case()
    assert (apply_edit(x, p, n) @ n).abs().max() < 1e-12


def test_removal_applied_twice_equals_once() -> None:
    x, p, n = _case()
    once = apply_edit(x, p, n, alpha_p=0)
    torch.testing.assert_close(apply_edit(once, p, n, alpha_p=0), once)
    assert (once - x).abs().max() > 0.1


def test_boost_alone_doubles_p_and_leaves_the_rest() -> None:
    x, p, n = _case()
    boosted = apply_edit(x, p, n, alpha_n=0)
    torch.testing.assert_close(boosted @ p, 2 * (x @ p))
    rest = torch.eye(16, dtype=torch.float64) - torch.outer(p, p)
    torch.testing.assert_close(boosted @ rest, x @ rest)


def test_equal_directions_leave_removal_only() -> None:
    x, p, _ = _case()
    torch.testing.assert_close(apply_edit(x, p, p), x - torch.outer(x @ p, p))


def test_component_along_p_follows_the_closed_form() -> None:
    x, p, n = _case()
    a, b, c = x @ p, x @ n, p @ n
    assert c.abs() > 0.1
    torch.testing.assert_close(apply_edit(x, p, n) @ p, 2 * a - c * (b + c * a))


def test_zero_strengths_return_bit_identical_values() -> None:
    x, p, n = _case()
    assert torch.equal(apply_edit(x, p, n, alpha_p=0, alpha_n=0), x)


def test_order_matters_when_directions_are_not_orthogonal() -> None:
    x, p, n = _case()
    difference = apply_edit(x, p, n) - apply_edit(x, p, n, order="n_then_p")
    assert difference.abs().max() > 0.05


def test_edit_is_not_idempotent() -> None:
    x, p, n = _case()
    once = apply_edit(x, p, n)
    assert (apply_edit(once, p, n) - once).abs().max() > 0.05


@pytest.mark.parametrize("order", ["p_then_n", "n_then_p"])
@pytest.mark.parametrize("alphas", [(1.0, 1.0), (0.5, 2.0), (4.0, 0.0), (0.0, 1.5)])
def test_rank_two_form_equals_the_edit(order: str, alphas: tuple[float, float]) -> None:
    x, p, n = _case()
    u, z = edit_factors(-3 * p, 0.2 * n, *alphas, order=order)
    assert u.dtype == z.dtype == torch.float64
    edited = apply_edit(x, p, n, alpha_p=alphas[0], alpha_n=alphas[1], order=order)
    torch.testing.assert_close(x + x @ z.T @ u.T, edited, atol=1e-12, rtol=0)


def test_singular_values_and_eigenvalues_are_those_of_the_closed_form() -> None:
    _, p, n = _case()
    u, z = edit_factors(p, n)
    matrix = torch.eye(16, dtype=torch.float64) + u @ z
    c = float(p @ n)
    singular = torch.linalg.svdvals(matrix)
    assert singular[0].item() == pytest.approx((4 - 3 * c * c) ** 0.5)
    assert singular[-1].item() == pytest.approx(0, abs=1e-12)
    eigenvalues = torch.linalg.eigvals(matrix).real.sort().values
    assert eigenvalues[-1].item() == pytest.approx(2 - c * c)


def test_all_token_edit_equals_merged_weights() -> None:
    _, p, n = _case()
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(16, 9, generator=generator)
    hidden = torch.randn(4, 9, generator=generator)
    u, z = edit_factors(p, n)
    merged = (weight.double() + u @ (z @ weight.double())).float()
    edited = apply_edit(hidden @ weight.T, p, n)
    torch.testing.assert_close(hidden @ merged.T, edited, atol=1e-5, rtol=0)


def test_factors_of_a_batch_equal_factors_one_by_one() -> None:
    generator = torch.Generator().manual_seed(2)
    p, n = torch.randn(2, 3, 8, generator=generator).unbind(0)
    u, z = edit_factors(p, n, torch.tensor([1.0, 0.0, 2.0]), 0.5)
    for row, alpha in enumerate((1.0, 0.0, 2.0)):
        one_u, one_z = edit_factors(p[row], n[row], alpha, 0.5)
        torch.testing.assert_close(u[row], one_u)
        torch.testing.assert_close(z[row], one_z)


def test_per_row_directions_broadcast_over_tokens() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 5, 8, generator=generator)
    p, n = torch.randn(2, 2, 1, 8, generator=generator).unbind(0)
    both = apply_edit(x, p, n)
    torch.testing.assert_close(both[1], apply_edit(x[1], p[1, 0], n[1, 0]))


def test_unknown_order_raises() -> None:
    x, p, n = _case()
    with pytest.raises(UserError, match="edit_order"):
        apply_edit(x, p, n, order="together")


def test_elementwise_boost_is_not_the_projection() -> None:
    x, p, n = _case()
    torch.testing.assert_close(elementwise_boost(x, p), x * (1 + p))
    assert (elementwise_boost(x, p) - apply_edit(x, p, n, alpha_n=0)).abs().max() > 0.05
