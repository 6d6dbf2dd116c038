"""Two edits in sequence are one exact edit of rank 4; added vectors; rows, strengths, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.edit import AnyEdit, Edit, EditHook
from chameleon_lib.errors import UserError

D = 12


def edit_of(layers: tuple[int, ...], seed: int, rows: int = 0, **changes: object) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, len(layers), rows, D) if rows else (2, len(layers), D)
    theta = torch.randn(shape, generator=generator)
    made = Edit(layers, theta[0], theta[1], alpha_p=2.5, alpha_n=0.7, compute_dtype="float64")
    return replace(made, **changes)  # type: ignore[arg-type]


def outputs(edits: tuple[AnyEdit, ...], x: Tensor, n: int = 3) -> list[Tensor]:
    """What three sites return for ``x`` under these edits, one hook after the other."""
    sites = [nn.Identity() for _ in range(n)]
    hooks = [EditHook(sites, edit, strict=False) for edit in edits]
    for hook in hooks:
        hook.__enter__()
    try:
        return [site(x) for site in sites]
    finally:
        for hook in hooks:
            hook.remove()


PAIRS = {
    "the same layers": ((0, 2), (0, 2)),
    "other layers": ((0, 1), (1, 2)),
    "no layer in common": ((0,), (2,)),
}


@pytest.mark.parametrize("rows", [(0, 0), (0, 5), (5, 0), (5, 5)], ids=str)
@pytest.mark.parametrize("layers", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_two_edits_in_sequence_are_one(
    layers: tuple[tuple[int, ...], tuple[int, ...]], rows: tuple[int, int], dtype: torch.dtype
) -> None:
    name = str(dtype).removeprefix("torch.")
    first, second = (
        edit_of(at, seed, count, compute_dtype=name)
        for at, seed, count in zip(layers, (1, 2), rows, strict=True)
    )
    both = AffineEdit.sequence(first, second)
    assert both.layers == tuple(sorted({*layers[0], *layers[1]})) and both.rank == 4
    bound = 1e-12 if dtype == torch.float64 else 2e-5
    for shape in ((5, 4, D), (5, D)):
        x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
        wanted, found = outputs((first, second), x), outputs((both,), x)
        for one, other in zip(wanted, found, strict=True):
            assert float((one - other).abs().max()) <= bound
        assert max(float((one - x).abs().max()) for one in found) > 1
    if set(layers[0]) & set(layers[1]):  # the two do not commute
        turned = outputs((AffineEdit.sequence(second, first),), x)
        assert max(float((a - b).abs().max()) for a, b in zip(turned, found, strict=True)) > 0.1


def test_a_sequence_of_three_and_of_vectors_is_exact_too() -> None:
    generator = torch.Generator().manual_seed(4)
    how = {"compute_dtype": "float64"}
    v = torch.randn(2, D, generator=generator, dtype=torch.float64)
    adding = AffineEdit.adding((0, 1), v, **how)
    one, two = edit_of((0, 1), 5), edit_of((1, 2), 6)
    x = torch.randn(3, 4, D, generator=generator, dtype=torch.float64)
    for parts in ((one, adding, two), (adding, one, two), (one, two, adding)):
        both = AffineEdit.sequence(AffineEdit.sequence(*parts[:2]), parts[2])
        for wanted, found in zip(outputs(parts, x), outputs((both,), x), strict=True):
            assert float((wanted - found).abs().max()) <= 1e-12


def test_rows_of_any_rank_are_stacked_and_answered_as_each_alone() -> None:
    paper, other = edit_of((0, 2), 7), edit_of((1, 2), 8)
    four = AffineEdit.sequence(paper, other)
    vector = torch.randn(1, D, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    added = AffineEdit.adding((1,), vector, compute_dtype="float64")
    mixed = AffineEdit.stack([paper, None, four, added])
    assert (mixed.n_rows, mixed.rank, mixed.layers) == (4, 4, (0, 1, 2))
    x = torch.randn(4, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    found = outputs((mixed,), x)
    for row, alone in enumerate(((paper,), (), (four,), (added,))):
        for all_rows, one in zip(found, outputs(alone, x[row : row + 1]), strict=True):
            assert float((all_rows[row] - one[0]).abs().max()) <= 1e-12
    assert all(torch.equal(values[1], x[1]) for values in found)  # None is no edit, bit for bit
    part = outputs((mixed.rows([2, 0]),), x[[2, 0]])
    twice = outputs((mixed.repeat_rows(2),), x.repeat_interleave(2, dim=0))
    for whole, some, more in zip(found, part, twice, strict=True):
        assert torch.allclose(some, whole[[2, 0]], atol=1e-12, rtol=0)
        assert torch.allclose(more[::2], whole, atol=1e-12, rtol=0)


def test_strength_scales_the_change_and_zero_takes_it_away() -> None:
    both = AffineEdit.sequence(edit_of((0,), 1), AffineEdit.adding((0,), torch.ones(1, D).double()
                               * 3, compute_dtype="float64"))  # fmt: skip
    x = torch.randn(2, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole, half = outputs((both,), x)[0] - x, outputs((both.scaled(0.5),), x)[0] - x
    assert torch.allclose(half, whole / 2, atol=1e-12, rtol=0) and float(whole.abs().max()) > 1
    none = both.scaled(0.0)
    assert not none.changes_anything and none.idle and both.changes_anything and not both.idle
    assert torch.equal(outputs((none,), x)[0], x)


def test_gradients_reach_a_vector_that_starts_at_zero() -> None:
    v = torch.zeros(1, 2, D, requires_grad=True)
    x = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(2))
    for _ in range(2):  # no graph is kept from the first
        outputs((AffineEdit.adding((0,), v),), x)[0].sum().backward()
    assert v.grad is not None and torch.allclose(v.grad, torch.full((1, 2, D), 6.0))


def test_ratios_tell_the_whole_change_alone() -> None:
    site, x = nn.Identity(), torch.ones(2, 3, D)
    edit = AffineEdit.adding((0,), torch.full((1, D), 0.5))
    with EditHook([site], edit, diagnostics=True) as hook:
        site(x)
    assert hook.ratios() == [{"layer": 0, "calls": 1, "tokens": 6, "edit": pytest.approx(0.5)}]


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    u, z = torch.zeros(1, D, 2), torch.zeros(1, 2, D)
    one = edit_of((0,), 1)
    for make, sentence in (
        (lambda: AffineEdit((0, 1), u, z), "must be"),
        (lambda: AffineEdit((0,), u, z.mT), "must be"),
        (lambda: AffineEdit((0,), u, z, torch.zeros(2, D)), "must have shape"),
        (lambda: AffineEdit((0,), u + torch.nan, z), "not finite"),
        (lambda: AffineEdit((), u, z), "distinct layer numbers"),
        (lambda: AffineEdit((0,), u, z, site="attn"), "choose one of"),
        (lambda: AffineEdit.sequence(one, replace(one, positions="all")), "agree in positions"),
        (lambda: AffineEdit.sequence(edit_of((0,), 1, 3), edit_of((0,), 2, 4)), "3 rows"),
        (lambda: AffineEdit.stack([None]), "at least one"),
        (lambda: AffineEdit.stack([edit_of((0,), 1, 3)]), "shared edits"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            make()
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
