"""CCS: batched solvers against the plain loop, floors, ragged groups, what loss does not say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from chameleon_lib.core import ccs
from chameleon_lib.core.ccs import accuracy, fit_ccs, shuffle_pairs
from chameleon_lib.core.ccs_solvers import (
    CCSObjective,
    loss_floor,
    minimise_in_ball,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from tests.core.reference_ccs import plain_loop


def _pairs(
    groups: int = 3, pairs: int = 20, d: int = 16, offset: float = 2.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(groups, pairs, d, generator=generator)
    base += torch.randn(groups, 1, d, generator=generator)
    step = torch.nn.functional.normalize(torch.randn(groups, 1, d, generator=generator), dim=-1)
    noise = 0.3 * torch.randn(groups, pairs, d, generator=generator)
    return base - offset * step / 2, base + offset * step / 2 + noise


def _settings(**changes: object) -> EditSettings:
    return EditSettings().with_(**({"ccs_tries": 3, "ccs_epochs": 150} | changes))


@pytest.mark.parametrize("confidence", ["squared", "linear"])
def test_batched_reference_equals_the_plain_loop(confidence: str) -> None:
    h_n, h_p = _pairs()
    settings = _settings(ccs_solver="reference", ccs_confidence=confidence)
    wanted = plain_loop(h_n, h_p, epochs=150, tries=3, seed=4, squared=confidence == "squared")
    torch.testing.assert_close(fit_ccs(h_n, h_p, settings, 4).losses, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("pairs", "d"), [(4, 64), (20, 16), (60, 8)])
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("offset", [2.0, 0.0])
def test_span_is_no_worse_than_the_reference(
    pairs: int, d: int, scale: float, offset: float
) -> None:
    h_n, h_p = (scale * rows for rows in _pairs(2, pairs, d, offset))
    span = fit_ccs(h_n, h_p, _settings(ccs_solver="span"), 0)
    reference = fit_ccs(h_n, h_p, _settings(ccs_solver="reference"), 0)
    assert bool((span.loss <= reference.loss + 1e-5).all())


@pytest.mark.parametrize(("pairs", "d"), [(20, 64), (30, 48)])
def test_span_stops_as_soon_as_the_best_try_of_a_group_is_no_worse(pairs: int, d: int) -> None:
    h_n, h_p = (0.1 * rows for rows in _pairs(2, pairs, d))
    stop = fit_ccs(h_n, h_p, _settings(ccs_solver="reference"), 0).loss
    settings = _settings(ccs_solver="span")
    stopped = fit_ccs(h_n, h_p, settings, 0, stop_at=stop)
    end = fit_ccs(h_n, h_p, settings, 0)
    assert bool((stopped.loss <= stop + 1e-5).all())
    assert bool((stopped.loss > end.loss + 1e-3).all())  # it did stop before its own end
    stop[0] = 0.0  # a loss that no try reaches leaves that group alone, not the other
    mixed = fit_ccs(h_n, h_p, settings, 0, stop_at=stop)
    torch.testing.assert_close(mixed.loss[0], end.loss[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.loss[1], stopped.loss[1], atol=1e-5, rtol=0)


def test_stopping_needs_the_span_solver_and_one_loss_per_group() -> None:
    h_n, h_p = _pairs(2)
    for solver, groups in (("reference", 2), ("span", 3)):
        with pytest.raises(UserError, match="stop_at needs ccs_solver 'span'"):
            settings = _settings(ccs_solver=solver)
            fit_ccs(h_n, h_p, settings, 0, stop_at=torch.zeros(groups))


@pytest.mark.parametrize("solver", ["span", "reference"])
def test_groups_fitted_in_several_batches_keep_their_own_results(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    h_n, h_p = _pairs()
    settings = _settings(ccs_solver=solver)
    together = fit_ccs(h_n, h_p, settings, 1)
    monkeypatch.setattr(ccs, "_CHUNK", 1)
    monkeypatch.setattr(ccs, "_CHUNK_REFERENCE", 1)
    torch.testing.assert_close(
        fit_ccs(h_n, h_p, settings, 1).losses, together.losses, atol=1e-4, rtol=0
    )


def test_equal_members_of_a_pair_share_the_slope_as_autograd_does() -> None:
    z = torch.randn(1, 2, 3, dtype=torch.float64).repeat(1, 1, 2).requires_grad_()
    for squared in (True, False):
        objective = CCSObjective(torch.ones(1, 1, 3, dtype=torch.float64), squared)
        (gradient,) = torch.autograd.grad(objective.loss(z).sum(), z)
        torch.testing.assert_close(objective.residual(z.detach()), gradient)


@pytest.mark.parametrize("solver", ["span", "reference"])
def test_one_pair_of_activations_that_carry_gradients_can_be_fitted(solver: str) -> None:
    h_n, h_p = (rows.requires_grad_() for rows in _pairs(2, 1, 8))
    fit = fit_ccs(h_n, h_p, _settings(ccs_solver=solver), 0)
    assert fit.theta.shape == (2, 8) and not fit.theta.requires_grad
    assert bool((fit.loss < loss_floor(True)).all())


class _Convex(CCSObjective):
    """The logistic loss with the known classes: one minimum, whichever way one goes."""

    def loss(self, z: Tensor) -> Tensor:
        z_n, z_p = z.chunk(2, dim=2)
        return ((softplus(-z_n) + softplus(z_p)) * self.weights).sum(2)

    def residual(self, z: Tensor) -> Tensor:
        s_n, s_p = torch.sigmoid(z).chunk(2, dim=2)
        return torch.cat([(s_n - 1) * self.weights, s_p * self.weights], dim=2)


def test_span_coordinates_agree_whichever_matrix_is_smaller() -> None:
    x = torch.cat(_pairs(2, 12, 23), dim=1)  # 24 rows > 23 columns: theta itself
    padded = torch.cat([x, torch.zeros(2, 24, 9)], dim=2)  # 24 < 32: the Gram matrix
    objective = _Convex(torch.full((2, 1, 12), 1 / 12), True)
    solutions = []
    for rows in (x, padded):
        weight, bias = rows.new_zeros(2, 1, rows.shape[2]), rows.new_zeros(2, 1, 1)
        weight, bias = minimise_in_ball(rows, objective, weight, bias, radius=1.0)
        length = (weight.square().sum(2) + bias.square().sum(2)).sqrt()
        torch.testing.assert_close(length, torch.ones_like(length), atol=1e-3, rtol=0)
        solutions.append(weight[..., :23])
    torch.testing.assert_close(*solutions, atol=1e-2, rtol=0)


@pytest.mark.parametrize("solver", ["span", "reference"])
def test_fit_is_deterministic_and_a_group_does_not_see_its_batch(solver: str) -> None:
    h_n, h_p = _pairs()
    settings = _settings(ccs_solver=solver)
    together = fit_ccs(h_n, h_p, settings, 1)
    assert torch.equal(together.theta, fit_ccs(h_n, h_p, settings, 1).theta)
    for group in range(3):
        alone = fit_ccs(h_n[group : group + 1], h_p[group : group + 1], settings, 1)
        assert alone.loss.item() == pytest.approx(together.loss[group].item(), abs=1e-4)


@pytest.mark.parametrize("normalize", ["none", "per_class", "joint"])
@pytest.mark.parametrize("scale", ["none", "rms"])
def test_ragged_groups_equal_separate_fits(normalize: str, scale: str) -> None:
    h_n, h_p = _pairs(2)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 11:] = False
    h_n[1, 11:] = float("nan")  # padding must never be read
    settings = _settings(
        ccs_solver="reference", ccs_normalize=normalize, ccs_scale=scale, ccs_epochs=60
    )
    ragged = fit_ccs(h_n, h_p, settings, 0, mask)
    alone = fit_ccs(h_n[1:, :11], h_p[1:, :11], settings, 0)
    torch.testing.assert_close(ragged.losses[1:], alone.losses, atol=1e-4, rtol=0)
    torch.testing.assert_close(ragged.theta[1:], alone.theta, atol=1e-2, rtol=0)
    assert ragged.accuracy[1] == alone.accuracy[0]


@pytest.mark.parametrize("normalize", ["none", "joint"])
def test_theta_and_bias_act_on_the_activations_that_came_in(normalize: str) -> None:
    h_n, h_p = _pairs(2)
    fit = fit_ccs(h_n, h_p, _settings(ccs_normalize=normalize, ccs_scale="rms"), 0)
    z = fit.theta[:, None] @ torch.cat([h_n, h_p], dim=1).mT + fit.bias[:, None, None]
    loss = CCSObjective(torch.full((2, 1, 20), 1 / 20), True).loss(z)
    torch.testing.assert_close(loss[:, 0], fit.loss, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("squared", "p", "floor"), [(True, 0.4, 0.2), (False, 0.375, 0.4375)])
def test_floor_is_the_lowest_loss_of_a_constant_probe(
    squared: bool, p: float, floor: float
) -> None:
    grid = torch.logit(torch.linspace(0.01, 0.99, 197))
    z = grid[None, :, None].expand(1, -1, 2)
    losses = CCSObjective(torch.ones(1, 1, 1), squared).loss(z)[0]
    assert losses.min().item() == pytest.approx(floor, abs=1e-5)
    assert torch.sigmoid(grid[losses.argmin()]).item() == pytest.approx(p, abs=1e-4)
    assert loss_floor(squared) == pytest.approx(floor)


@pytest.mark.parametrize("squared", [True, False])
def test_hand_written_gradient_equals_autograd(squared: bool) -> None:
    loss = CCSObjective(torch.full((2, 1, 5), 0.2, dtype=torch.float64), squared)
    z = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    residual = loss.residual(z)
    (gradient,) = torch.autograd.grad(loss.loss(z).sum(), z)
    torch.testing.assert_close(residual, gradient)


def test_loss_depends_on_the_scale_of_activations_unless_rescaled() -> None:
    h_n, h_p = _pairs(1, 30, 16)
    for solver in ("span", "reference"):
        losses = [
            fit_ccs(s * h_n, s * h_p, _settings(ccs_solver=solver, ccs_epochs=1000), 0).loss.item()
            for s in (1.0, 0.01)
        ]
        assert losses[1] > losses[0] + 0.02
        rescaled = [
            fit_ccs(s * h_n, s * h_p, _settings(ccs_solver=solver, ccs_scale="rms"), 0).loss.item()
            for s in (1.0, 0.01)
        ]
        assert rescaled[0] == pytest.approx(rescaled[1], abs=1e-3)


def test_few_pairs_reach_low_loss_without_any_offset() -> None:
    h_n, h_p = _pairs(1, 5, 128, offset=0.0)
    assert fit_ccs(h_n, h_p, _settings(ccs_epochs=1000), 0).loss.item() < 0.01


def test_per_class_centring_deletes_the_offset() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(1, 400, 16, generator=generator)
    step = torch.zeros(16)
    step[0] = 4.0
    raw = fit_ccs(base - step / 2, base + step / 2, _settings(ccs_tries=10), 0)
    centred = fit_ccs(
        base - step / 2, base + step / 2, _settings(ccs_tries=10, ccs_normalize="per_class"), 0
    )
    cosines = [torch.cosine_similarity(fit.theta[0], step, dim=0).abs() for fit in (raw, centred)]
    assert cosines[0] > 0.7
    assert cosines[1] < 0.5
    assert raw.accuracy.item() == 1.0 and raw.loss < centred.loss - 0.05


def test_accuracy_refuses_shapes_that_broadcast() -> None:
    labels = torch.tensor([True, False, True, False])
    assert accuracy(labels, labels) == 1
    with pytest.raises(UserError, match="same shape"):
        accuracy(labels.unsqueeze(1), labels)


def test_shuffling_swaps_whole_pairs_in_every_group_alike() -> None:
    h_n, h_p = _pairs()
    new_n, new_p = shuffle_pairs(h_n, h_p, 0)
    swapped = (new_n == h_p).all(-1)
    assert torch.equal(swapped[0], swapped[2])
    assert 0 < int(swapped[0].sum()) < 20
    torch.testing.assert_close(new_n + new_p, h_n + h_p)


def test_bad_pairs_raise() -> None:
    h_n, h_p = _pairs(2, 4)
    with pytest.raises(UserError, match="G, K, d"):
        fit_ccs(h_n, h_p[:, :3], _settings(), 0)
    with pytest.raises(UserError, match="no preference pair"):
        fit_ccs(h_n, h_p, _settings(), 0, torch.zeros(2, 4, dtype=torch.bool))
    h_n[0, 0, 0] = float("inf")
    with pytest.raises(UserError, match="NaN or infinity"):
        fit_ccs(h_n, h_p, _settings(), 0)
