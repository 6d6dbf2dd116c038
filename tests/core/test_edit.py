"""The edit: its numerical invariants, what it refuses, and the hook that runs it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from chameleon_lib.core.edit import Edit, EditHook, apply_edit, edit_factors
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


D = 8


class _Tuple(nn.Module):
    """A block that returns a tuple, as decoder blocks do."""

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x * 1.0, "cache"


def _sites() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(D, D) for _ in range(3)])


def _run(sites: nn.ModuleList, x: Tensor) -> Tensor:
    for site in sites:
        x = torch.tanh(site(x))
    return x


def _hooked(seed: int = 1, **changes: object) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    p, n = torch.randn(2, 2, D, generator=generator).unbind(0)
    return Edit(**({"layers": (0, 2), "theta_p": p, "theta_n": n} | changes))  # type: ignore[arg-type]


X = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("order", ["p_then_n", "n_then_p"])
def test_hook_equals_the_definition_at_its_layers_only(order: str) -> None:
    sites, edit = _sites(), _hooked(order=order, alpha_p=0.7)
    with EditHook(sites, edit):
        outputs = [site(X) for site in sites]
    plain = [site(X) for site in sites]
    for row, layer in enumerate(edit.layers):
        wanted = apply_edit(
            plain[layer], edit.theta_p[row], edit.theta_n[row], alpha_p=0.7, order=order
        )
        torch.testing.assert_close(outputs[layer], wanted, atol=2e-6, rtol=0)
        assert (wanted - plain[layer]).abs().max() > 0.05
    assert torch.equal(outputs[1], plain[1])


def test_leaving_the_hook_restores_bit_identical_outputs() -> None:
    sites = _sites()
    before = _run(sites, X)
    with EditHook(sites, _hooked()):
        inside = _run(sites, X)
    assert not torch.equal(inside, before)
    assert torch.equal(_run(sites, X), before)


def test_hook_is_removed_when_the_block_fails() -> None:
    sites = _sites()
    before = _run(sites, X)
    with pytest.raises(RuntimeError, match="inside"), EditHook(sites, _hooked()):
        raise RuntimeError("inside")
    assert torch.equal(_run(sites, X), before)


def test_per_row_edits_equal_the_rows_one_by_one() -> None:
    sites, edits = _sites(), [_hooked(seed) for seed in range(3)]
    with EditHook(sites, Edit.stack(edits)):
        together = _run(sites, X)
    for row, edit in enumerate(edits):
        with EditHook(sites, edit):
            alone = _run(sites, X[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=0)


def test_unedited_row_of_a_mixed_batch_is_bit_identical() -> None:
    sites = _sites()
    with EditHook(sites, Edit.stack([_hooked(), None, _hooked(2)]), strict=False):
        output = sites[0](X)
    assert torch.equal(output[1], sites[0](X)[1])
    assert not torch.equal(output[0], sites[0](X)[0])


def test_beams_need_repeated_rows() -> None:
    sites, stacked = _sites(), Edit.stack([_hooked(1), _hooked(2)])
    beams = X[:1].repeat(4, 1, 1)
    with pytest.raises(UserError, match="repeat_rows"), EditHook(sites, stacked):
        _run(sites, beams)
    with EditHook(sites, stacked.repeat_rows(2)):
        output = _run(sites, beams)
    torch.testing.assert_close(output[0], output[1])
    assert not torch.allclose(output[1], output[2])


def test_two_axis_outputs_take_shared_and_per_row_edits() -> None:
    sites, edit = _sites(), _hooked()
    with EditHook(sites, edit, strict=False):
        shared = sites[0](X[:, 0])
    with EditHook(sites, Edit.stack([edit] * 3), strict=False):
        per_row = sites[0](X[:, 0])
    torch.testing.assert_close(shared, per_row)


def test_zero_strengths_leave_the_model_bit_identical_but_count_calls() -> None:
    sites = _sites()
    with EditHook(sites, _hooked(alpha_p=0.0, alpha_n=0.0)) as hook:
        inside = _run(sites, X)
    assert torch.equal(inside, _run(sites, X))
    assert hook.calls == {0: 1, 2: 1}


def test_counts_are_prefill_plus_steps() -> None:
    sites = _sites()
    with EditHook(sites, _hooked()) as hook:
        for _ in range(4):  # one edited position per call, as with a cache and positions "last"
            _run(sites, X[:1, :1])
    assert hook.calls == {0: 4, 2: 4}
    assert hook.tokens == {0: 4, 2: 4}


def test_no_call_raises_when_strict_and_is_allowed_otherwise() -> None:
    sites = _sites()
    with pytest.raises(UserError, match="never applied"), EditHook(sites, _hooked()):
        sites[0](X)  # layer 2 is not reached
    with EditHook(sites, _hooked(), strict=False) as hook:
        sites[0](X)
    assert hook.calls == {0: 1, 2: 0}


def test_layer_beyond_the_model_raises_at_attach_time() -> None:
    with pytest.raises(UserError, match="layers 0 to 1"):
        EditHook(_sites()[:2], _hooked())


def test_wrong_length_raises_with_both_lengths() -> None:
    edit = _hooked(theta_p=torch.randn(2, D + 1), theta_n=torch.randn(2, D + 1))
    sites = _sites()
    with pytest.raises(UserError, match="length 8.*9"), EditHook(sites, edit):
        _run(sites, X)


def test_entering_twice_raises() -> None:
    hook = EditHook(_sites(), _hooked(), strict=False)
    with hook, pytest.raises(RuntimeError, match="twice"):
        hook.__enter__()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_output_keeps_its_dtype_and_is_rounded_once(dtype: torch.dtype) -> None:
    site, edit = nn.ModuleList([nn.Identity()] * 3), _hooked()
    x = X.to(dtype)
    with EditHook(site, edit, strict=False):
        output = site[0](x)
    assert output.dtype == dtype
    # The identity site is shared by layers 0 and 2, so both edits ran in turn.
    wanted = x
    for row in range(2):
        wide = wanted.to(torch.float64)
        wanted = apply_edit(wide, edit.theta_p[row].double(), edit.theta_n[row].double()).to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps * 8
    torch.testing.assert_close(output, wanted, atol=tolerance, rtol=tolerance)


def test_arithmetic_stays_float32_under_autocast() -> None:
    sites, edit = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Identity()]), _hooked()
    with EditHook(sites, edit, strict=False), torch.autocast("cpu", dtype=torch.bfloat16):
        output = sites[0](X)
    torch.testing.assert_close(
        output, apply_edit(X, edit.theta_p[0], edit.theta_n[0]), atol=2e-6, rtol=0
    )


def test_one_hook_follows_outputs_that_change_in_shape_and_dtype() -> None:
    sites = nn.ModuleList([nn.Identity()] * 3)
    edit = Edit.stack([_hooked(seed) for seed in range(3)])
    outputs = [X, X[:, :1], X[:, 0], X[:, :1].double(), X]
    with EditHook(sites[:1], Edit((0,), edit.theta_p[:1], edit.theta_n[:1])) as hook:
        edited = [sites[0](x) for x in outputs]
    for x, output in zip(outputs, edited, strict=True):
        p, n = edit.theta_p[0], edit.theta_n[0]
        rows = (p[:, None], n[:, None]) if x.dim() == 3 else (p, n)
        assert output.dtype == x.dtype
        torch.testing.assert_close(output, apply_edit(x, *rows), atol=2e-6, rtol=0)
    assert hook.tokens == {0: 3 * (5 + 1 + 1 + 1 + 5)}


def test_tuple_outputs_keep_their_other_members() -> None:
    sites, edit = nn.ModuleList([_Tuple(), _Tuple(), _Tuple()]), _hooked(site="block_out")
    with EditHook(sites, edit, strict=False):
        output = sites[0](X)
    assert isinstance(output, tuple) and output[1] == "cache"
    assert not torch.equal(output[0], X)


def test_hooked_output_is_not_written_in_place() -> None:
    sites, x = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Identity()]), X.clone()
    with EditHook(sites, _hooked(), strict=False):
        sites[0](x)
    assert torch.equal(x, X)


def test_gradients_reach_both_directions_of_every_layer_twice() -> None:
    sites = _sites()
    p, n = (theta.clone().requires_grad_() for theta in (_hooked().theta_p, _hooked().theta_n))
    with EditHook(sites, _hooked(theta_p=p, theta_n=n)):
        for _ in range(2):  # a second backward pass must not meet a freed graph
            _run(sites, X).sum().backward()
    for theta in (p, n):
        assert theta.grad is not None
        assert bool((theta.grad.abs().sum(-1) > 1e-6).all())


def test_gradient_of_a_mixed_batch_is_finite() -> None:
    sites, stacked = _sites(), Edit.stack([_hooked(), None, _hooked(2)])
    p = stacked.theta_p.clone().requires_grad_()
    edit = Edit(stacked.layers, p, stacked.theta_n, identity=stacked.identity)
    with EditHook(sites, edit):
        _run(sites, X).sum().backward()
    assert p.grad is not None and bool(torch.isfinite(p.grad).all())
    assert torch.equal(p.grad[:, 1], torch.zeros(2, D))


def test_gate_leaves_the_removal_of_its_layer_out() -> None:
    sites, edit = _sites(), _hooked(gate_n=torch.tensor([False, True]))
    with EditHook(sites, edit, strict=False):
        output = sites[0](X)
    wanted = apply_edit(sites[0](X), edit.theta_p[0], edit.theta_n[0], alpha_n=0)
    torch.testing.assert_close(output, wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("order", ["p_then_n", "n_then_p"])
def test_edit_ratios_name_boost_and_removal(order: str) -> None:
    sites = nn.ModuleList([nn.Identity()])
    p, n = torch.eye(D)[:1], torch.eye(D)[1:2]
    x = torch.zeros(1, 1, D)
    x[..., 0], x[..., 1] = 3.0, 4.0
    edit = Edit((0,), p, n, alpha_p=2.0, order=order)
    with EditHook(sites, edit, diagnostics=True) as hook:
        sites[0](x)
    (row,) = hook.ratios()
    assert row["boost"] == pytest.approx(2 * 3 / 5)
    assert row["removal"] == pytest.approx(4 / 5)
    assert row["edit"] == pytest.approx((36 + 16) ** 0.5 / 5)


def test_an_edit_that_changes_nothing_raises() -> None:
    sites = nn.ModuleList([nn.Identity()])
    edit = Edit((0,), torch.eye(D)[:1], torch.eye(D)[1:2])
    with pytest.raises(UserError, match="ratio is 0"), EditHook(sites, edit, diagnostics=True):
        sites[0](torch.eye(D)[2:3])
