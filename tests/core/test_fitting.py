"""Preference fits: contrasts, prompts that are read together, and the fit itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core import fitting
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import (
    Contrast,
    FittedDirections,
    PlainPrompts,
    contrasts_from_pairs,
    fit_by_preference,
    gold_contrasts,
    swap_contrasts,
)
from chameleon_lib.core.pairs import PreferencePair, PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User, answer_prompt
from chameleon_lib.demo.world import WorldSettings, build_world
from chameleon_lib.errors import UserError
from tests.backbones.tiny import ANSWERS, LINES, PROMPTS, make_backbone

SETTINGS = EditSettings(
    fit_rule="plain", fit_loss="preference", fit_steps=30, fit_lr=0.05, fit_batch=8,
    fit_holdout=0.25, fit_patience=99,
)  # fmt: skip
LAYERS = (0, 1, 2)


def prompt(user: int) -> str:
    return f"{LINES[1 + user % 3]} {user}\nYour answer:"


def planted(users: int = 12) -> list[Contrast]:
    """Every user prefers the same answer: a shared edit can learn that."""
    return [Contrast(prompt(u), "comedy", "action", f"user{u:02}") for u in range(users)]


def agreed(users: int = 12) -> list[Contrast]:
    """Queries of the same users whose common answer is the one that the contrasts push down."""
    return [Contrast(f"{LINES[4]} {u}", "action", None, f"user{u:02}") for u in range(users)]


@pytest.fixture(scope="module")
def backbone() -> HFBackbone:
    return make_backbone("mistral")


def fit(backbone: HFBackbone, contrasts: list[Contrast], **changes: Any) -> FittedDirections:
    seed = changes.pop("seed", 0)
    return fit_by_preference(backbone, contrasts, LAYERS, SETTINGS.with_(**changes), seed=seed)


def margins(backbone: HFBackbone, contrasts: list[Contrast], edit: Edit | None) -> Tensor:
    with torch.no_grad():
        prepared = backbone.prepare([c.prompt for c in contrasts])
        chosen = backbone.score(prepared, [c.chosen for c in contrasts], edit=edit)
        return chosen - backbone.score(prepared, [str(c.rejected) for c in contrasts], edit=edit)


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_planted_contrasts_are_learned_by_users_the_gradient_never_saw(family: str) -> None:
    backbone = make_backbone(family)
    done = fit(backbone, planted())
    first, last = done.held_out[0][1], done.held_out[-1][1]
    assert last < first
    assert len(done.loss) == 30 and done.loss[-1] < done.loss[0]
    assert (done.n_pairs, done.n_held_out, done.n_agreed) == (9, 3, 0)
    others = [Contrast(prompt(u), "comedy", "action", f"new{u}") for u in range(20, 28)]
    before, after = margins(backbone, others, None), margins(backbone, others, done.edit)
    assert float(after.mean()) > float(before.mean())
    swapped = [Contrast(c.prompt, "action", "comedy", c.user_id) for c in planted()]
    other = margins(backbone, others, fit(backbone, swapped).edit)
    assert float(other.mean()) < float(after.mean())


def test_a_fit_repeats_with_its_seed_and_only_with_its_seed(backbone: HFBackbone) -> None:
    one, same, other = (
        fit(backbone, planted() + agreed(), fit_steps=6, seed=seed) for seed in (3, 3, 4)
    )
    assert one.loss == same.loss and one.held_out == same.held_out
    assert torch.equal(one.edit.theta_p, same.edit.theta_p)
    assert torch.equal(one.edit.theta_n, same.edit.theta_n)
    assert not torch.equal(one.edit.theta_p, other.edit.theta_p)


def test_the_weights_of_the_backbone_stay_as_they_are(backbone: HFBackbone) -> None:
    before = {name: w.clone() for name, w in backbone.model.state_dict().items()}
    fit(backbone, planted(), fit_steps=3)
    assert all(torch.equal(w, before[name]) for name, w in backbone.model.state_dict().items())
    assert all(w.grad is None for w in backbone.model.parameters())


def test_the_fitted_edit_has_unit_directions_and_the_form_of_the_settings(
    backbone: HFBackbone,
) -> None:
    done = fit_by_preference(
        backbone,
        planted(),
        (0, 2),
        SETTINGS.with_(fit_steps=2, edit_alpha_p=2.0, edit_positions="all", edit_order="n_then_p"),
    )
    for theta in (done.edit.theta_p, done.edit.theta_n):
        assert theta.shape == (2, backbone.d) and not theta.requires_grad
        torch.testing.assert_close(theta.norm(dim=-1), torch.ones(2))
    assert (done.edit.layers, done.edit.alpha_p, done.edit.alpha_n) == ((0, 2), 2.0, 1.0)
    assert (done.edit.positions, done.edit.order) == ("all", "n_then_p")


def test_the_step_with_the_best_held_out_loss_is_returned(backbone: HFBackbone) -> None:
    done = fit(backbone, planted(), fit_steps=12, fit_lr=0.8)  # too large a step: the curve jumps
    losses = dict(done.held_out)
    assert list(losses) == [5, 10, 12]
    assert losses[done.best_step] == min(losses.values())
    short = fit(backbone, planted(), fit_steps=done.best_step, fit_lr=0.8)
    torch.testing.assert_close(short.edit.theta_p, done.edit.theta_p)


def test_a_fit_stops_when_the_held_out_users_gain_nothing_more(
    backbone: HFBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No two held-out looks differ: the second look is already one without gain.
    monkeypatch.setattr(fitting._Chunk, "loss", _constant_loss)
    settings = SETTINGS.with_(fit_steps=200, fit_patience=2)
    done = fit_by_preference(backbone, planted(), LAYERS, settings)
    assert len(done.loss) == 15  # looks at 5 (best), 10 and 15


@pytest.mark.parametrize(("users", "held"), [(3, 0), (4, 1)])
def test_below_one_over_the_share_users_nobody_is_held_out_and_all_steps_are_run(
    users: int, held: int, backbone: HFBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each user has many pairs, so a share of the pairs would hold some out."""
    monkeypatch.setattr(fitting._Chunk, "loss", _constant_loss)
    contrasts = [c for c in planted(users) for _ in range(8)]
    done = fit(backbone, contrasts, fit_steps=20, fit_patience=1)
    assert (done.n_held_out, done.n_pairs) == (8 * held, 8 * (users - held))
    assert bool(done.held_out) == bool(held)
    assert len(done.loss) == (10 if held else 20)
    assert done.best_step == (5 if held else 20)


def _constant_loss(_self: object, _backbone: object, edit: Edit, _leash: float) -> Tensor:
    return edit.theta_p.sum() * 0 + 1.0


def test_whole_users_are_held_out() -> None:
    contrasts = planted() + agreed() + planted()
    sizes = set()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        train, held = fitting._split(contrasts, SETTINGS.fit_holdout, generator)
        ours, theirs = ({c.user_id for c in part} for part in (train, held))
        assert not ours & theirs and len(theirs) == 3 and len(ours) == 9
        assert len(train) + len(held) == len(contrasts)
        sizes.add(frozenset(theirs))
    assert len(sizes) > 1


@pytest.mark.parametrize("contrasts", [[], agreed(3)])
def test_a_fit_without_a_single_contrast_is_refused(
    backbone: HFBackbone, contrasts: list[Contrast]
) -> None:
    with pytest.raises(UserError, match="at least one pair with two different answers"):
        fit(backbone, contrasts)


class Shifting:
    """A backbone whose scores move by the first number of theta_p: the leash becomes arithmetic."""

    def prepare(self, prompts: list[str], **_: Any) -> list[str]:
        return prompts

    def rows(self, prepared: list[str], rows: list[int]) -> list[str]:
        return [prepared[row] for row in rows]

    def score(
        self, prepared: list[str], answers: list[str], *, edit: Edit | None = None, **_: Any
    ) -> Tensor:
        assert len(prepared) == len(answers)
        base = torch.tensor([-1.0 - len(answer) for answer in answers])
        return base if edit is None else base + edit.theta_p[0, 0]


@pytest.mark.parametrize(("shift", "penalty"), [(-0.5, 0.5), (0.5, 0.0), (0.0, 0.0), (-2.0, 2.0)])
def test_the_leash_pulls_only_when_an_answer_to_keep_gets_less_likely(
    shift: float, penalty: float
) -> None:
    theta = torch.tensor([[shift, 1.0]])
    edit = Edit(layers=(0,), theta_p=theta, theta_n=theta)
    prompts = PlainPrompts(Shifting(), [c.prompt for c in agreed(4) + planted(4)])  # type: ignore[arg-type]
    [chunk] = fitting._chunks(prompts, agreed(4), SETTINGS)
    for leash in (1.0, 3.0):
        loss = chunk.loss(Shifting(), edit, leash)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(leash * penalty)
    [contrast] = fitting._chunks(prompts, planted(4), SETTINGS)
    # Both answers move alike: the preference stays at log 2, and the chosen one is on the leash.
    total = float(contrast.loss(Shifting(), edit, 9.0))  # type: ignore[arg-type]
    assert total == pytest.approx(math.log(2) + 9 * penalty, abs=1e-4)


DEFAULTS = EditSettings()


@pytest.fixture(scope="module")
def users() -> list[User]:
    settings = WorldSettings(users=(6, 0, 0), queries=2, history=(5, 7))
    return build_world("LaMP_3", settings).users["train"]


def pair_of(user: User, number: int, p: str, n: str) -> PreferencePair:
    query = user.queries[number]
    return PreferencePair(user.id, query.id, query.text, user.history[:3], p, n, user.task)


def test_contrasts_use_the_plain_prompt_and_put_agreed_queries_on_the_leash(
    users: list[User],
) -> None:
    user = users[0]
    kept = [pair_of(user, 0, "5", "3")]
    identical = [pair_of(user, 1, "4", "4"), pair_of(user, 1, "", "4"), pair_of(user, 1, "4", " ")]
    contrasts = contrasts_from_pairs("LaMP_3", kept, identical, DEFAULTS)
    prompts = [
        answer_prompt("LaMP_3", user.history[:3], query.text, role="P", insight=None)
        for query in user.queries
    ]
    assert contrasts == [
        Contrast(prompts[0], "5", "3", user.id),
        Contrast(prompts[1], "4", None, user.id),
    ]
    short = contrasts_from_pairs(
        "LaMP_3", kept, [], DEFAULTS.with_(prompts_baseline="drop_agent_block")
    )
    assert "helpfully personalized" in prompts[0]
    assert "helpfully personalized" not in short[0].prompt


def test_gold_contrasts_prefer_the_gold_to_the_neutral_output(users: list[User]) -> None:
    golds = iter(["5", "3", "2", "2"])
    some = [
        replace(u, queries=tuple(replace(q, gold=next(golds)) for q in u.queries))
        for u in users[:2]
    ]
    prepared = [PreparedUser(user, user.history, "p", "n") for user in some]
    pairs = [pair_of(user, number, "1", "3") for user in some for number in (0, 1)]
    contrasts = gold_contrasts("LaMP_3", prepared, pairs, DEFAULTS)
    assert [(c.chosen, c.rejected) for c in contrasts] == [
        ("5", "3"), ("2", "3"), ("2", "3"), ("3", None),
    ]  # fmt: skip
    assert {c.user_id for c in contrasts} == {user.id for user in some}


def test_gold_contrasts_need_every_gold(users: list[User]) -> None:
    user = users[0]
    blind = replace(user, queries=tuple(replace(q, gold=None) for q in user.queries))
    prepared = [PreparedUser(blind, blind.history, "p", "n")]
    with pytest.raises(UserError, match=f"Query {blind.queries[0].id} has no gold"):
        gold_contrasts("LaMP_3", prepared, [pair_of(blind, 0, "1", "3")], DEFAULTS)


def test_swapping_turns_about_half_of_the_contrasts_and_no_agreed_one() -> None:
    contrasts = [Contrast(f"p{i}", "yes", "no", f"u{i}") for i in range(400)]
    same = [Contrast(f"a{i}", "yes", None, f"u{i}") for i in range(50)]
    swapped = swap_contrasts([*contrasts, *same], seed=0)
    assert swapped[400:] == same
    assert [c.prompt for c in swapped[:400]] == [c.prompt for c in contrasts]
    counts = Counter((c.chosen, c.rejected) for c in swapped[:400])
    assert set(counts) == {("yes", "no"), ("no", "yes")} and 160 < counts["no", "yes"] < 240
    assert swap_contrasts(contrasts, 0) == swapped[:400] != swap_contrasts(contrasts, 1)


QUICK = EditSettings(
    fit_rule="plain", fit_loss="preference", fit_steps=4, fit_batch=4, fit_holdout=0.25
)


class Counting:
    """A backbone that remembers what it was told to prepare."""

    def __init__(self, backbone: HFBackbone) -> None:
        self.backbone = backbone
        self.read: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def prepare(self, prompts: Sequence[str], **rest: Any) -> Any:
        self.read.append(list(prompts))
        return self.backbone.prepare(prompts, **rest)


@pytest.fixture
def counting() -> Any:
    return Counting(make_backbone("mistral"))


def test_prompts_are_read_at_the_first_chunk_together_and_once(counting: Any) -> None:
    prompts = PlainPrompts(counting, [*PROMPTS, PROMPTS[0]])
    assert prompts.texts == PROMPTS and counting.read == []
    for rows in ([3], [5, 1], [0, 0, 2]):
        asked = [PROMPTS[row] for row in rows]
        answers = [ANSWERS[row] for row in rows]
        found = counting.score(prompts.chunk(asked), answers)
        alone = counting.score(counting.backbone.prepare(asked), answers)
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-4)
    assert counting.read == [PROMPTS]


def test_a_fit_is_the_same_whether_another_read_the_prompts_before_it(counting: Any) -> None:
    def contrasts(chosen: str, rejected: str) -> list[Contrast]:
        texts = [f"{PROMPTS[row % 6]} {row}" for row in range(9)]
        return [Contrast(text, chosen, rejected, f"u{at}") for at, text in enumerate(texts)]

    own, other = contrasts("comedy", "action"), contrasts("action", "comedy")
    every = [contrast.prompt for contrast in own]

    def fit(some: list[Contrast], prompts: PlainPrompts) -> torch.Tensor:
        done = fit_by_preference(counting, some, (0, 1, 2), QUICK, prompts=prompts)
        return done.edit.theta_p

    shared = PlainPrompts(counting, every)
    first, second = fit(own, shared), fit(other, shared)
    assert counting.read == [every]
    assert torch.equal(second, fit(other, PlainPrompts(counting, every)))
    assert not torch.equal(first, second)
    alone = fit_by_preference(counting, own, (0, 1, 2), QUICK)
    assert torch.equal(alone.edit.theta_p, first) and counting.read == [every] * 3
