"""Guards against poisoned histories: what each must do, and that it does nothing to clean data."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core import fitting
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.checks import FitCheck, guarded
from chameleon_lib.core.directions import find_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import (
    Contrast,
    change_ratio,
    fit_by_preference,
    fit_each,
    influences,
    leashed,
)
from chameleon_lib.core.pairs import PreferencePair
from chameleon_lib.core.robust import (
    by_owner,
    capped,
    clipped,
    far_users,
    outliers,
    pooled_gradient,
    robust_z,
    trimmed_mean,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from tests.backbones.tiny import make_backbone
from tests.core.method import SETTINGS as QUICK
from tests.core.method import train_users
from tests.core.test_fitting import margins, planted
from tests.demo.small import HashEmbedder, small_backbone

FIT = EditSettings(
    fit_loss="preference", fit_steps=6, fit_batch=16, fit_holdout=0.0, fit_leash=0.0
)
LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def backbone() -> HFBackbone:
    return make_backbone("mistral")


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- arithmetic -----------------------------------------------------------------------------------


def test_robust_z_counts_spreads_of_the_middle_half() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])
    torch.testing.assert_close(
        robust_z(values), 0.6745 * torch.tensor([-2.0, -1.0, 0.0, 1.0, 97.0], dtype=torch.float64)
    )
    assert robust_z(torch.tensor([5.0, 5.0, 5.0, 7.0])).tolist() == [0, 0, 0, torch.inf]


def test_outliers_are_long_or_point_away_and_clean_pairs_are_none() -> None:
    common = torch.ones(20)
    clean = common + 0.1 * rows(12, 20).float()
    assert not outliers(clean, 6.0).any()
    assert not outliers(clean[:3] * torch.tensor([[1.0], [1.0], [99.0]]), 6.0).any()  # too few
    long, away = clean.clone(), clean.clone()
    long[4] *= 50
    away[7] *= -1
    assert outliers(long, 6.0).nonzero().flatten().tolist() == [4]
    assert outliers(away, 6.0).nonzero().flatten().tolist() == [7]
    with pytest.raises(UserError, match="finite"):
        outliers(torch.full((5, 2), torch.nan), 6.0)


def test_no_user_gives_more_pairs_than_the_cap_and_equal_users_lose_none() -> None:
    equal = ["a", "b", "c"] * 3
    assert capped(equal, 1.0) == [True] * 9
    flood = [*equal, *["d"] * 40]
    assert capped(flood, 1.0) == [True] * 9 + [True] * 3 + [False] * 37
    assert sum(capped(flood, 2.0)) == 15
    assert capped(["a", "b", "b"], 0.1) == [True, True, False]  # one at least
    assert capped([], 1.0) == []


def test_clipping_leaves_short_gradients_as_they_are_bit_by_bit() -> None:
    alike = torch.eye(5)
    assert torch.equal(clipped(alike, 1.0)[0], alike)
    assert torch.equal(pooled_gradient(alike, 1.0, 0.0), alike.mean(0))
    assert torch.equal(pooled_gradient(alike, None, 0.1), alike.mean(0))  # a tenth of 5 is nobody
    assert torch.equal(clipped(torch.zeros(3, 2), 1.0)[0], torch.zeros(3, 2))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e9])
@pytest.mark.parametrize("cap", [0.5, 1.0, 3.0])
def test_one_user_moves_the_pooled_gradient_no_farther_than_the_cap_says(
    size: float, cap: float
) -> None:
    for seed in range(20):
        honest = rows(11, 6, seed)
        sent = honest.clone()
        sent[3] = size * rows(1, 6, 100 + seed)[0]
        before, after = clipped(honest, cap)[1], clipped(sent, cap)[1]
        moved = pooled_gradient(sent, cap, 0.0) - pooled_gradient(honest, cap, 0.0)
        assert float(moved.norm()) <= (before + after) / 11 + abs(before - after) + 1e-12
        # The bound itself stays among the lengths of the others.
        others = honest[[at for at in range(11) if at != 3]].norm(dim=1)
        assert cap * float(others.min()) <= after <= cap * float(others.max())
    # Without the cap the same user moves it as far as it likes.
    free = pooled_gradient(sent, None, 0.0) - pooled_gradient(honest, None, 0.0)
    assert size < 1e3 or float(free.norm()) > (before + after) / 11 + abs(before - after)


def test_a_trimmed_mean_stays_within_the_honest_users_whatever_fewer_than_the_share_send() -> None:
    honest = rows(9, 4)
    for size in (1.0, 1e6):
        sent = torch.cat([honest, size * torch.ones(1, 4, dtype=torch.float64)])
        mean = trimmed_mean(sent, 0.1)
        assert bool((mean <= honest.max(0).values).all() and (mean >= honest.min(0).values).all())
    assert float(trimmed_mean(sent, 0.0).max()) > 1e4
    alike = torch.full((10, 4), 0.25)
    assert torch.equal(trimmed_mean(alike, 0.2), alike.mean(0))


def test_users_far_from_the_median_offset_are_named_and_few_users_never_are() -> None:
    owners = [f"u{at % 10}" for at in range(30)]
    offsets = torch.ones(30, 8) + 0.05 * rows(30, 8).float()
    assert far_users(offsets[:12], owners[:12], 0.05) == set()
    for at in range(3, 30, 10):
        offsets[at] = -5.0
    assert far_users(offsets, owners, 0.1) == {"u3"}
    torch.testing.assert_close(by_owner(offsets, owners)[3], torch.full((8,), -5.0))


# --- fits -----------------------------------------------------------------------------------------


def poisoned(contrasts: list[Contrast], *users: int) -> list[Contrast]:
    """Some users prefer a text that nobody else does."""
    names = {f"user{user:02}" for user in users}
    return [
        replace(c, chosen="a lonely robot", rejected="comedy") if c.user_id in names else c
        for c in contrasts
    ]


def test_influences_are_the_gradients_of_the_loss_at_an_offset(backbone: HFBackbone) -> None:
    some = [*planted(5), replace(planted(1)[0], rejected=None)]
    found = influences(backbone, some, FIT)
    assert found.shape == (6, backbone.n_layers * backbone.d)
    assert not found[5].any() and bool(found[:5].any(dim=1).all())
    one = influences(backbone, some[2:3], FIT)[0]
    torch.testing.assert_close(found[2], one, atol=1e-5, rtol=1e-3)
    # A small step along the gradient changes the loss by its squared length.
    offset = 1e-2 * one.view(backbone.n_layers, 1, 1, backbone.d)
    prepared = backbone.prepare([some[2].prompt])

    def loss() -> float:
        with torch.no_grad():
            p, n = (backbone.score(prepared, [text or ""]) for text in
                    (some[2].chosen, some[2].rejected))  # fmt: skip
            return float(-torch.nn.functional.logsigmoid(p - n))

    before = loss()
    with fitting._Offsets(backbone.sites("mlp_out"), offset):
        after = loss()
    assert (after - before) / 1e-2 == pytest.approx(float(one.square().sum()), rel=0.1)


@pytest.mark.parametrize("family", ["t5", "opt"])
def test_influences_are_read_in_every_family(family: str) -> None:
    own = make_backbone(family)
    found = influences(own, planted(4), FIT)
    assert found.shape == (4, own.n_layers * own.d) and bool(found.any(dim=1).all())
    torch.testing.assert_close(
        found[1], influences(own, planted(4)[1:2], FIT)[0], atol=1e-5, rtol=1e-3
    )


def test_a_poisoned_user_cannot_move_another_users_own_edit_by_a_bit(backbone: HFBackbone) -> None:
    clean = [planted(1), [replace(c, user_id="other") for c in planted(3)[1:]]]
    attacked = [poisoned(clean[0], 0), clean[1]]
    alone = fit_by_preference(backbone, clean[1], LAYERS, FIT).edit
    fit_by_preference(backbone, attacked[0], LAYERS, FIT)
    again = fit_by_preference(backbone, attacked[1], LAYERS, FIT).edit
    assert torch.equal(alone.theta_p, again.theta_p) and torch.equal(alone.theta_n, again.theta_n)
    # Fitted in one batch: the poison is as long as what it replaces, so that the batch is as wide.
    same_length = [[replace(clean[0][0], chosen="action", rejected="comedy")], clean[1]]
    one, other = (fit_each(backbone, own, LAYERS, FIT)[1] for own in (clean, same_length))
    assert torch.equal(one.theta_p, other.theta_p) and torch.equal(one.theta_n, other.theta_n)
    moved = [fit_each(backbone, own, LAYERS, FIT)[0].theta_p for own in (clean, same_length)]
    assert not torch.equal(*moved)
    # Another width moves last digits alone.
    wide = fit_each(backbone, attacked, LAYERS, FIT)[1]
    torch.testing.assert_close(wide.theta_p, one.theta_p, atol=2e-3, rtol=0)


def test_directions_of_many_users_at_once_are_each_users_own_by_the_bit() -> None:
    settings = EditSettings(ccs_epochs=20, ccs_tries=2)
    p, n = rows(3 * 2 * 6, 8).view(3, 2, 6, 8).float(), rows(3 * 2 * 6, 8, 1).view(3, 2, 6, 8)
    clean = find_directions("paper", p, n.float(), settings)
    sent = p.clone()
    sent[0] = 1e3 * sent[0].flip(-1)
    attacked = find_directions("paper", sent, n.float(), settings)
    for name in ("theta_p", "theta_n"):
        before, after = getattr(clean, name), getattr(attacked, name)
        assert torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0])


def test_own_edits_learn_what_their_user_prefers(backbone: HFBackbone) -> None:
    likes = [Contrast(c.prompt, "comedy", "action", "a") for c in planted(4)]
    other = [Contrast(c.prompt, "action", "comedy", "b") for c in planted(4)]
    settings = FIT.with_(fit_steps=20, fit_lr=0.1)
    edits = fit_each(backbone, [likes, other, []], LAYERS, settings)
    assert not edits[2].changes_anything
    gained = [margins(backbone, likes, edit) - margins(backbone, likes, None) for edit in edits[:2]]
    assert float(gained[0].mean()) > 0 > float(gained[1].mean())


def test_without_a_guard_a_fit_is_as_it_was_and_a_cap_bounds_a_step(backbone: HFBackbone) -> None:
    settings = FIT.with_(fit_steps=1)
    moves = {}
    for cap in (None, 1.0):
        own = settings.with_(guard_cap=cap)
        found = [
            fit_by_preference(backbone, some, LAYERS, own).edit.theta_p
            for some in (planted(), poisoned(planted(), 0))
        ]
        moves[cap] = float((found[0] - found[1]).norm())
    assert 0 < moves[1.0] < moves[None]
    plain = fit_by_preference(backbone, planted(), LAYERS, FIT)
    assert plain.log() == fit_by_preference(
        backbone, planted(), LAYERS, FIT.with_(guard_items=3.0, guard_change=0.5)
    ).log()  # these two act outside the steps


def test_the_movement_of_a_pooled_fit_by_one_user_is_bounded_by_the_cap(
    backbone: HFBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps as long as the gradient, so that the bound of the gradient is that of the movement."""
    settings = FIT.with_(fit_steps=1, guard_cap=1.0)
    rate, seen = 1e-2, list[tuple[Tensor, float, int]]()
    pooled = fitting.pooled_gradient

    def watched(gradients: Tensor, cap: float | None, trim: float) -> Tensor:
        seen.append((gradients, clipped(gradients, cap or 0)[1], len(gradients)))
        return pooled(gradients, cap, trim)

    def linear(self: Any, step: int) -> None:
        del step
        with torch.no_grad():
            self.thetas -= rate * self.thetas.grad

    monkeypatch.setattr(fitting, "pooled_gradient", watched)
    monkeypatch.setattr(fitting._Steps, "moved", linear)
    monkeypatch.setattr(fitting, "_unit_rows", lambda thetas: thetas)
    found = []
    for some in (planted(), poisoned(planted(), 0)):
        edit = fit_by_preference(backbone, some, LAYERS, settings).edit
        found.append(torch.stack([edit.theta_p, edit.theta_n]))
    (before, c, users), (after, c2, _) = seen
    assert users == 12 and not torch.equal(before, after)
    moved = float((found[0] - found[1]).norm())
    assert 0 < moved <= rate * ((c + c2) / users + abs(c - c2)) + 1e-6


def test_a_pooled_fit_with_guards_learns_and_forgets_a_few_poisoned_users(
    backbone: HFBackbone,
) -> None:
    settings = FIT.with_(fit_steps=20)
    asked = [Contrast(c.prompt + "!", "a lonely robot", "comedy", "new") for c in planted(6)]

    def pull(**guards: Any) -> float:
        own, pool = settings.with_(**guards), poisoned(planted(), 0, 1)
        edit = fit_by_preference(backbone, pool, LAYERS, own).edit
        return float((margins(backbone, asked, edit) - margins(backbone, asked, None)).mean())

    clean = fit_by_preference(backbone, planted(), LAYERS, settings.with_(guard_trim=0.25)).edit
    others = [Contrast(c.prompt + "!", "comedy", "action", "new") for c in planted(6)]
    gained = margins(backbone, others, clean) - margins(backbone, others, None)
    assert float(gained.mean()) > 0
    assert pull(guard_cap=1.0, guard_trim=0.25) < pull()


# --- the leash, the check, and the pairs of a fit -------------------------------------------------


def test_the_leash_weakens_a_strong_edit_to_its_limit_and_leaves_others_alone() -> None:
    x = rows(2 * 30, 8).view(2, 30, 8).float()
    edit = Edit((0, 1), rows(2, 8, 1).float(), rows(2, 8, 2).float())
    assert leashed(edit, x, 10.0) is edit
    weaker = leashed(edit, x, 0.05)
    assert change_ratio(x, weaker) == pytest.approx(0.05, rel=1e-3)
    assert weaker.alpha_p == weaker.alpha_n < 1
    assert leashed(edit.without_strength(), x, 0.05).alpha_p == 0


def test_an_edit_that_harms_too_many_is_not_better(caplog: pytest.LogCaptureFixture) -> None:
    fine = dict.fromkeys(("valid", "empty", "refusal", "preamble"), 0.0)
    check = FitCheck(10, 30, 0.2, 0.1, 0.3, fine, fine, 0.1, 0.1, 0.1, harmed=0.4)
    edit = Edit((0,), rows(1, 4).float(), rows(1, 4, 1).float())
    assert guarded(edit, check, EditSettings()) == (edit, check)
    assert guarded(edit, check, EditSettings(guard_harmed=0.4)) == (edit, check)
    with caplog.at_level(logging.WARNING):
        stopped, told = guarded(edit, check, EditSettings(guard_harmed=0.3))
    assert not stopped.changes_anything and told.action == "zero"
    assert "40 % of the held-out users less likely; guard_harmed allows 30 %" in caplog.text
    with pytest.raises(UserError, match="40% of the held-out users .* allows 30%"):
        guarded(edit, check, EditSettings(guard_harmed=0.3, check_edit="refuse"))


def method(backbone: HFBackbone, **changes: Any) -> Chameleon:
    own = QUICK.with_(pairs_source="history", **changes)
    return Chameleon(backbone, HashEmbedder(), own)


def test_a_few_flooding_or_contrary_users_are_left_out_of_a_fit_and_clean_pairs_stay() -> None:
    own = small_backbone()
    plain = method(own)
    pairs = [p for p in plain.source_pairs(train_users("LaMP_3", 8)) if p.answer_p != p.answer_n]
    assert plain.screened(pairs) == pairs
    for guard in ({"guard_items": 1e6}, {"guard_cap": 9.0}, {"guard_trim": 0.01}):
        assert method(own, **guard).screened(pairs) == pairs
    first = pairs[0]
    flood = [*pairs, *[replace(first, query_id=f"{at}") for at in range(30)]]
    counts = [p.user_id for p in method(own, guard_cap=1.0).screened(flood)]
    assert counts.count(first.user_id) <= 3
    # All but one pair say the same of the same: what the one says points away from them.
    alike = [replace(first, answer_p="1", answer_n="5", query_id=f"{at}") for at in range(9)]
    loud = replace(first, answer_p="5", answer_n="1")
    stays = method(own, guard_items=6.0).screened([*alike, loud])
    assert stays == alike
    trimmed = method(own, guard_trim=0.13).screened(pairs)  # one of eight users
    left = {p.user_id for p in pairs} - {p.user_id for p in trimmed}
    assert len(left) == 1


def test_a_leash_and_a_cap_reach_the_profile_of_a_fit() -> None:
    own, users = small_backbone(), train_users("LaMP_3", 6)
    free = method(own).fit(users).edit
    weak = method(own, guard_change=0.01).fit(users).edit
    assert torch.equal(free.theta_p, weak.theta_p) and 0 < weak.alpha_p < free.alpha_p == 1
    same = method(own, guard_change=99.0, guard_cap=99.0, guard_items=1e6).fit(users).edit
    assert torch.equal(free.theta_p, same.theta_p) and torch.equal(free.theta_n, same.theta_n)


def test_settings_of_guards_are_checked() -> None:
    for bad in (
        {"guard_trim": 0.5}, {"guard_cap": 0.0}, {"guard_items": -1.0}, {"guard_change": 0.0},
        {"guard_cap": 1.0, "theta_method": "fitted", "fit_rule": "plain"},
        {"guard_harmed": 0.1, "check_edit": "off"},
    ):  # fmt: skip
        with pytest.raises(UserError):
            EditSettings().with_(**bad)
    assert EditSettings().starting("guard_") == {
        "guard_items": None, "guard_cap": None, "guard_trim": 0.0, "guard_harmed": None,
        "guard_change": None,
    }  # fmt: skip


def test_pairs_keep_their_order(backbone: HFBackbone) -> None:
    del backbone
    pairs = [PreferencePair(f"u{at % 3}", f"{at}", "q", (), "a", "b", "LaMP_3") for at in range(9)]
    own = method(small_backbone(), guard_cap=0.4)
    assert [pair.query_id for pair in own.screened(pairs)] == ["0", "1", "2"]
