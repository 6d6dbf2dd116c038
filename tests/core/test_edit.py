"""Edit refuses bad directions (R1, R4); stacking and slicing keep rows apart."""

from __future__ import annotations

import pytest
import torch

from chameleon_lib.core.edit import Edit
from chameleon_lib.errors import UserError


def _edit(layers: tuple[int, ...] = (0, 2), seed: int = 0, **changes: object) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    p, n = torch.randn(2, len(layers), 6, generator=generator).unbind(0)
    return Edit(**({"layers": layers, "theta_p": p, "theta_n": n} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, 0.1, -0.05, float("nan"), float("inf")])
def test_constant_or_non_finite_directions_raise(value: float) -> None:
    theta = torch.randn(2, 6)
    theta[1] = value
    with pytest.raises(UserError, match="layer 2"):
        _edit(theta_n=theta)


@pytest.mark.parametrize("layers", [(), (1, 1), (-1, 0)])
def test_layers_must_be_distinct_and_not_negative(layers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="layer"):
        _edit(layers, theta_p=torch.randn(2, 6), theta_n=torch.randn(2, 6))


def test_wrong_number_of_directions_raises() -> None:
    with pytest.raises(UserError, match="2 layers but 3 directions"):
        _edit(theta_p=torch.randn(3, 6), theta_n=torch.randn(3, 6))


def test_differing_shapes_raise() -> None:
    with pytest.raises(UserError, match="theta_n"):
        _edit(theta_n=torch.randn(2, 5))


def test_unused_direction_may_be_zero() -> None:
    assert _edit(theta_n=torch.zeros(2, 6), alpha_n=0.0).alpha_n == 0


@pytest.mark.parametrize(
    "change",
    [{"positions": "first"}, {"site": "attention"}, {"order": "x"}, {"alpha_p": float("nan")}],
)
def test_unknown_options_raise(change: dict[str, object]) -> None:
    with pytest.raises(UserError):
        _edit(**change)


def test_stack_then_rows_gives_each_row_its_own_directions() -> None:
    edits = [_edit(seed=seed) for seed in range(3)]
    stacked = Edit.stack(edits)
    assert stacked.per_row and stacked.theta_p.shape == (2, 3, 6)
    picked = stacked.rows([2, 0])
    assert torch.equal(picked.theta_p[:, 0], edits[2].theta_p)
    assert torch.equal(picked.theta_n[:, 1], edits[0].theta_n)


def test_repeat_rows_repeats_each_row_for_its_beams() -> None:
    stacked = Edit.stack([_edit(seed=0), _edit(seed=1)]).repeat_rows(2)
    assert torch.equal(stacked.theta_p[:, 0], stacked.theta_p[:, 1])
    assert not torch.equal(stacked.theta_p[:, 1], stacked.theta_p[:, 2])


def test_stack_refuses_differing_layers_unless_asked() -> None:
    edits = [_edit((0, 2)), _edit((1, 2))]
    with pytest.raises(UserError, match="allow_missing"):
        Edit.stack(edits)
    mixed = Edit.stack(edits, allow_missing=True)
    assert mixed.layers == (0, 1, 2)
    assert mixed.identity is not None
    assert mixed.identity.tolist() == [[False, True], [True, False], [False, False]]


def test_stack_refuses_edits_that_differ_in_strength() -> None:
    with pytest.raises(UserError, match="alpha_p"):
        Edit.stack([_edit(), _edit(alpha_p=2.0)])


def test_gates_survive_stacking() -> None:
    gated = _edit(gate_n=torch.tensor([True, False]))
    stacked = Edit.stack([gated, None, _edit(seed=1)])
    assert stacked.gate_n is not None
    assert stacked.gate_n.tolist() == [[True, True, True], [False, True, True]]
    assert stacked.strengths(1)[1].tolist() == [0.0, 0.0, 1.0]
