"""Directions: planted subspaces, known traps, controls, diagnostics, and the choice of layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chameleon_lib.core.directions import (
    Directions,
    all_directions,
    choose_layers,
    find_directions,
)
from chameleon_lib.core.estimators import ccs_checks, neutral_direction, personal_direction
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError

SETTINGS = EditSettings().with_(ccs_tries=3)
CONTROLS = [d.name for d in all_directions("control") if d.of == "activations"]


def _unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def _planted(
    layers: int = 4, pairs: int = 30, d: int = 24, mean: float = 6.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offset = 3 * _unit(layers, 1, d, seed=seed + 1)
    base = torch.randn(layers, pairs, d, generator=generator) * 0.5
    base += mean * _unit(layers, 1, d, seed=seed + 2)
    return base + offset / 2, base - offset / 2, offset[:, 0]


def _cos(left: Tensor, right: Tensor) -> Tensor:
    return torch.cosine_similarity(left.double(), right.double(), dim=-1)


@pytest.mark.parametrize(("pairs", "d"), [(10, 40), (60, 12)])
def test_svd_equals_the_full_decomposition(pairs: int, d: int) -> None:
    h_p, h_n, _ = _planted(2, pairs, d, mean=1.0)
    theta = personal_direction("svd_p", h_p, h_n)
    for layer in range(2):
        wanted = torch.linalg.svd(h_p[layer].double()).Vh[0]
        assert _cos(theta[layer], wanted).abs() > 1 - 1e-6
        assert theta[layer].norm().item() == pytest.approx(1)
        assert float(h_p[layer].mean(0) @ theta[layer]) >= 0


def test_uncentred_svd_of_rows_with_a_large_mean_is_the_mean() -> None:
    h_p, h_n, offset = _planted(mean=40.0)
    theta = personal_direction("svd_p", h_p, h_n)
    assert _cos(theta, h_p.mean(1)).min() > 0.999
    assert _cos(theta, personal_direction("svd_n", h_p, h_n)).min() > 0.98
    centred = personal_direction("svd_p_centered", h_p, h_n)
    assert _cos(centred, h_p.mean(1)).abs().max() < 0.9
    assert _cos(personal_direction("svd_diff", h_p, h_n), offset).min() > 0.999
    assert _cos(personal_direction("mean_diff", h_p, h_n), offset).min() > 0.999


def test_random_directions_are_unit_reproducible_and_differ_between_parts() -> None:
    h_p, h_n, _ = _planted()
    first = personal_direction("random", h_p, h_n, seed=3)
    assert torch.equal(first, personal_direction("random", h_p, h_n, seed=3))
    assert not torch.equal(first, personal_direction("random", h_p, h_n, seed=4))
    other = neutral_direction("random", h_n, h_p, SETTINGS, seed=3)
    assert _cos(first, other).abs().max() < 0.9
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(4))


@pytest.mark.parametrize("name", ["ccs", "logistic", "mean_diff"])
def test_neutral_estimators_find_the_planted_offset(name: str) -> None:
    h_p, h_n, offset = _planted(pairs=200, mean=0.0)
    settings = SETTINGS.with_(direction_neutral=name)
    theta = find_directions("paper", h_p, h_n, settings).theta_n
    assert _cos(theta, offset).abs().min() > 0.7
    if name != "ccs":
        assert bool((_cos(theta, offset) < 0).all())  # they point from P to N


def test_logistic_separates_the_classes_it_was_given() -> None:
    h_p, h_n, _ = _planted(pairs=100, mean=0.0)
    theta = neutral_direction("logistic", h_n, h_p, SETTINGS).unsqueeze(-1)
    assert ((h_n @ theta) > (h_p @ theta)).float().mean() > 0.99


def test_rounding_does_not_turn_the_logistic_control() -> None:
    """Thirty pairs in sixty dimensions are separable: without a penalty there is no minimum."""
    h_p, h_n, _ = _planted(d=60)
    theta = neutral_direction("logistic", h_n, h_p, SETTINGS)
    noise = torch.Generator().manual_seed(3)
    noisy = [h * (1 + 1e-5 * torch.randn(h.shape, generator=noise)) for h in (h_n, h_p)]
    turned = neutral_direction("logistic", *noisy, SETTINGS)
    assert bool((1 - _cos(theta, turned) < 1e-8).all())


def test_masked_pairs_do_not_count() -> None:
    h_p, h_n, _ = _planted()
    mask = torch.ones(4, 30, dtype=torch.bool)
    mask[:, 20:] = False
    h_p[:, 20:] = 1e6
    for name in ("svd_p", "svd_p_centered", "svd_diff", "mean_diff", "svd_n"):
        masked = personal_direction(name, h_p, h_n, mask=mask)
        alone = personal_direction(name, h_p[:, :20], h_n[:, :20])
        torch.testing.assert_close(masked, alone, atol=1e-5, rtol=0)


def test_no_contrast_raises_instead_of_dividing_by_zero() -> None:
    h_p, _, _ = _planted()
    with pytest.raises(UserError, match="mean_diff"):
        personal_direction("mean_diff", h_p, h_p)


def test_users_in_a_batch_equal_users_alone() -> None:
    first, second = _planted(seed=0), _planted(seed=10)
    h_p, h_n = (torch.stack([a, b]) for a, b in zip(first[:2], second[:2], strict=True))
    settings = SETTINGS.with_(ccs_solver="reference", ccs_epochs=50)
    together = find_directions("paper", h_p, h_n, settings)
    alone = find_directions("paper", second[0], second[1], settings)
    torch.testing.assert_close(together.theta_p[1], alone.theta_p, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.ccs_loss[1], alone.ccs_loss, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.theta_n[1], alone.theta_n, atol=1e-2, rtol=0)


def test_diagnostics_hold_every_number_the_reference_asks_for() -> None:
    h_p, h_n, _ = _planted(mean=40.0)
    found = find_directions("paper", h_p, h_n, SETTINGS)
    found.diagnostics.update(ccs_checks(h_p, h_n, SETTINGS, 0))
    rows = found.rows()
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    wanted = {
        "cos_p_n", "cos_p_mean_h_p", "cos_p_v0_h_n", "cos_n_mean_difference", "energy_share",
        "rms", "pair_cosine", "ccs_loss", "ccs_floor", "ccs_loss_spread", "ccs_accuracy",
        "ccs_polarity", "ccs_loss_shuffled", "ccs_accuracy_held_out", "layer",
    }  # fmt: skip
    assert set(rows[0]) == wanted
    row = rows[0]
    assert row["cos_p_mean_h_p"] > 0.999 and row["energy_share"] > 0.95
    assert row["pair_cosine"] == pytest.approx(1, abs=1e-4)
    assert row["ccs_floor"] == pytest.approx(0.2)
    assert row["rms"] == pytest.approx(h_p[0].square().mean().sqrt().item(), rel=1e-5)
    assert 0.5 <= row["ccs_accuracy_held_out"] <= 1


def test_pair_cosine_is_near_zero_without_a_common_offset() -> None:
    h_p, h_n = torch.randn(2, 3, 80, 64, generator=torch.Generator().manual_seed(1)).unbind(0)
    rows = find_directions("paper", h_p, h_n, SETTINGS).rows()
    assert all(abs(row["pair_cosine"]) < 0.05 for row in rows)


def test_sign_gate_keeps_parts_that_point_to_their_class() -> None:
    h_p, h_n, offset = _planted(mean=0.0)
    gated = SETTINGS.with_(edit_sign_gate="class_mean", direction_neutral="mean_diff")
    directions = find_directions("paper", h_p, h_n, gated)
    assert bool(directions.gate_n.all())
    points = (directions.theta_p * (h_p.mean(1) - h_n.mean(1))).sum(-1) > 0
    assert torch.equal(directions.gate_p, points)
    ungated = find_directions("paper", h_p, h_n, SETTINGS)
    assert bool(ungated.gate_p.all()) and bool(ungated.gate_n.all())
    flipped = SETTINGS.with_(edit_sign_gate="class_mean", direction_personal="svd_n")
    shifted = find_directions("paper", h_p, h_n - 10 * offset.unsqueeze(1), flipped)
    assert not bool(shifted.gate_p.any())  # v0(H_N) points along N's own mean


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_gives_an_edit_at_the_layers_of_the_main_arm(name: str) -> None:
    h_p, h_n, _ = _planted()
    control = find_directions(name, h_p, h_n, SETTINGS, seed=2)
    edit = control.to_edit(SETTINGS, layers=(0, 2))
    assert edit.layers == (0, 2)
    main = find_directions("paper", h_p, h_n, SETTINGS, seed=2)
    assert (edit.alpha_p, edit.alpha_n) == {
        "p_only": (1, 0), "n_only": (0, 1), "mean_difference": (1, 0),
    }.get(name, (1, 1))  # fmt: skip
    if name not in ("p_only", "n_only"):
        same = torch.equal(control.theta_p, main.theta_p) and torch.equal(
            control.theta_n, main.theta_n
        )
        assert not same


def _same(one: Directions, other: Directions) -> None:
    """Every field, bit for bit."""
    for name in ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n"):
        left, right = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    assert (one.alpha_p, one.alpha_n) == (other.alpha_p, other.alpha_n)
    assert list(one.diagnostics) == list(other.diagnostics)
    for name, value in one.diagnostics.items():
        wanted = other.diagnostics[name]
        torch.testing.assert_close(value, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("neutral", ["ccs", "mean_diff"])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_that_keeps_what_the_main_arm_found_is_the_one_fitted_anew(
    name: str, neutral: str
) -> None:
    h_p, h_n, offset = _planted(mean=1.0)
    h_p[:2] -= 2 * offset[:2].unsqueeze(1)  # so that each gate is open and shut somewhere
    settings = SETTINGS.with_(
        edit_sign_gate="class_mean", direction_neutral=neutral, ccs_epochs=50
    )
    main = find_directions("paper", h_p, h_n, settings, seed=2)
    kept = find_directions(name, h_p, h_n, settings, seed=2, main=main)
    _same(kept, find_directions(name, h_p, h_n, settings, seed=2))


def test_a_control_with_another_boost_has_its_own_gate_strength_and_geometry() -> None:
    h_p, h_n, _ = _planted()
    settings = SETTINGS.with_(edit_sign_gate="class_mean", direction_personal="none")
    main = find_directions("paper", h_p, h_n, settings)
    control = find_directions("svd_diff", h_p, h_n, settings, main=main)
    assert main.alpha_p == 0 and not bool(main.gate_p.any())
    assert control.alpha_p == 1 and bool(control.gate_p.all())
    cosine = _cos(control.theta_p, control.theta_n).float()
    torch.testing.assert_close(control.diagnostics["cos_p_n"], cosine)
    assert torch.equal(control.theta_n, main.theta_n)


def test_the_users_of_a_batch_keep_what_was_found_for_them() -> None:
    parts = [_planted(seed=seed)[:2] for seed in (0, 10)]
    h_p, h_n = (torch.stack(both) for both in zip(*parts, strict=True))
    mask = torch.ones(2, 4, 30, dtype=torch.bool)
    mask[1, :, 25:] = False
    settings = SETTINGS.with_(edit_sign_gate="class_mean", ccs_epochs=20)
    main = find_directions("paper", h_p, h_n, settings, mask=mask)
    kept = find_directions("from_neutral", h_p, h_n, settings, mask=mask, main=main)
    _same(kept, find_directions("from_neutral", h_p, h_n, settings, mask=mask))


def test_unknown_names_raise() -> None:
    h_p, h_n, _ = _planted()
    with pytest.raises(UserError, match="no direction 'lda'; choose one of paper, random"):
        find_directions("lda", h_p, h_n, SETTINGS)
    with pytest.raises(UserError, match="direction_personal"):
        personal_direction("lda", h_p, h_n)


def test_layer_rule_runs_on_ccs_loss_even_where_theta_n_is_not_ccs() -> None:
    h_p, h_n, _ = _planted()
    settings = SETTINGS.with_(
        direction_personal="svd_diff", direction_neutral="none", layers_rule="top_k", layers_k=2
    )
    edit = find_directions("paper", h_p, h_n, settings).to_edit(settings)
    assert len(edit.layers) == 2 and edit.alpha_n == 0
    every = SETTINGS.with_(direction_neutral="logistic", layers_rule="all")
    assert bool(torch.isnan(find_directions("paper", h_p, h_n, every).ccs_loss).all())


def test_mean_of_tries_can_rank_the_layers() -> None:
    h_p, h_n, _ = _planted()
    best = find_directions("paper", h_p, h_n, SETTINGS)
    mean = find_directions("paper", h_p, h_n, SETTINGS.with_(layers_loss_stat="mean_tries"))
    assert bool((mean.ccs_loss >= best.ccs_loss).all())
    assert not torch.equal(mean.ccs_loss, best.ccs_loss)


def test_elbow_keeps_the_layers_before_the_largest_jump() -> None:
    loss = torch.tensor([0.01, 0.02, 0.015, 0.30, 0.31, 0.32])
    assert choose_layers(loss, "elbow") == (0, 1, 2)
    assert choose_layers(loss, "elbow_literal") == (0, 2)


def test_literal_elbow_on_one_good_layer_raises_instead_of_editing_nothing() -> None:
    loss = torch.tensor([0.01, 0.30, 0.31, 0.32, 0.33])
    assert choose_layers(loss, "elbow") == (0,)
    with pytest.raises(UserError, match="keeps no layer"):
        choose_layers(loss, "elbow_literal")


def test_layer_numbers_are_original_positions_not_ranks() -> None:
    loss = torch.tensor([0.31, 0.015, 0.30, 0.02, 0.32, 0.01])
    assert choose_layers(loss, "elbow") == (1, 3, 5)
    assert choose_layers(loss, "top_k", 2) == (1, 5)


def test_ties_go_to_the_earlier_layer() -> None:
    assert choose_layers(torch.tensor([0.2, 0.1, 0.1, 0.1]), "top_k", 2) == (1, 2)


def test_all_needs_no_losses_but_must_be_asked_for() -> None:
    losses = torch.full((4,), float("nan"))
    assert choose_layers(losses, "all") == (0, 1, 2, 3)
    with pytest.raises(UserError, match="finite"):
        choose_layers(losses, "elbow")


@pytest.mark.parametrize("k", [None, 0, 5])
def test_top_k_needs_a_k_the_model_has(k: int | None) -> None:
    with pytest.raises(UserError, match="between 1 and 4"):
        choose_layers(torch.rand(4), "top_k", k)


def test_an_elbow_of_two_layers_raises() -> None:
    with pytest.raises(UserError, match="3 layers"):
        choose_layers(torch.tensor([0.1, 0.2]), "elbow")


def test_the_span_solver_ranks_no_layers_alone() -> None:
    h_p, h_n, _ = _planted()
    reference, span = (
        find_directions("paper", h_p, h_n, SETTINGS.with_(ccs_solver=solver))
        for solver in ("reference", "span")
    )
    assert torch.equal(span.ccs_loss, reference.ccs_loss)
    assert not torch.equal(span.theta_n, reference.theta_n)
    everywhere = SETTINGS.with_(ccs_solver="span", layers_rule="all")
    assert torch.equal(find_directions("paper", h_p, h_n, everywhere).theta_n, span.theta_n)


def test_rounding_noise_changes_no_layer_of_the_reference() -> None:
    h_p, h_n, _ = _planted()
    settings = SETTINGS.with_(ccs_epochs=100)
    layers = find_directions("paper", h_p, h_n, settings).choose_layers(settings)
    noise = torch.Generator().manual_seed(0)
    for _ in range(3):
        near = [h * (1 + 1e-5 * torch.randn(h.shape, generator=noise)) for h in (h_p, h_n)]
        found = find_directions("paper", near[0], near[1], settings)
        assert found.choose_layers(settings) == layers
