from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core import fitting
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, FittedDirections, fit_by_preference
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from tests.backbones.tiny import LINES, make_backbone

SETTINGS = EditSettings(fit_steps=30, fit_lr=0.05, fit_batch=8, fit_holdout=0.25, fit_patience=99)
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
    steps: list[int] = []
    # No two held-out looks differ: the second look is already one without gain.
    monkeypatch.setattr(fitting._Chunk, "loss", _constant_loss)
    fit_by_preference(
        backbone,
        planted(),
        LAYERS,
        SETTINGS.with_(fit_steps=200, fit_patience=2),
        on_step=lambda step, _: steps.append(step),
    )
    assert steps == list(range(1, 16))  # looks at 5 (best), 10 and 15


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
        train, held = fitting._split(contrasts, SETTINGS, generator)
        ours, theirs = ({c.user_id for c in part} for part in (train, held))
        assert not ours & theirs and len(theirs) == 3 and len(ours) == 9
        assert len(train) + len(held) == len(contrasts)
        sizes.add(frozenset(theirs))
    assert len(sizes) > 1


def test_one_user_is_fitted_without_hold_out(backbone: HFBackbone) -> None:
    own = [Contrast(prompt(u), "comedy", "action", "only") for u in range(4)]
    done = fit(backbone, own, fit_steps=4)
    assert (done.n_pairs, done.n_held_out, done.best_step, done.held_out) == (4, 0, 4, [])


@pytest.mark.parametrize("contrasts", [[], agreed(3)])
def test_a_fit_without_a_single_contrast_is_refused(
    backbone: HFBackbone, contrasts: list[Contrast]
) -> None:
    with pytest.raises(UserError, match="at least one pair with two different answers"):
        fit(backbone, contrasts)


class Shifting:
    """A backbone whose scores move by the first number of theta_p: the leash becomes arithmetic."""

    def prepare(self, prompts: list[str]) -> list[str]:
        return prompts

    def rows(self, prepared: list[str], rows: list[int]) -> list[str]:
        return [prepared[row] for row in rows]

    def score(self, prepared: list[str], answers: list[str], *, edit: Edit | None = None) -> Tensor:
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
    [chunk] = fitting._chunks(prompts, agreed(4), 8)
    for leash in (1.0, 3.0):
        loss = chunk.loss(Shifting(), edit, leash)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(leash * penalty)
    [contrast] = fitting._chunks(prompts, planted(4), 8)
    # Both answers move alike: the preference stays at log 2, and the chosen one is on the leash.
    total = float(contrast.loss(Shifting(), edit, 9.0))  # type: ignore[arg-type]
    assert total == pytest.approx(math.log(2) + 9 * penalty, abs=1e-4)


def test_the_leash_keeps_the_agreed_answers_likely(backbone: HFBackbone) -> None:
    both = planted() + agreed()
    said = agreed()

    def drop(edit: Edit) -> float:
        with torch.no_grad():
            prepared = backbone.prepare([c.prompt for c in said])
            answers = [c.chosen for c in said]
            before = backbone.score(prepared, answers)
            after = backbone.score(prepared, answers, edit=edit)
        return float((before - after).clamp_min(0).mean())

    loose, tight = (fit(backbone, both, fit_leash=weight) for weight in (0.0, 5.0))
    assert (loose.n_agreed, tight.n_agreed) == (0, 9)
    assert drop(loose.edit) > drop(tight.edit)


def test_a_fit_stops_when_time_is_up_and_looks_at_the_held_out_users_once_more(
    backbone: HFBackbone,
) -> None:
    whole = fit(backbone, planted() + agreed(), fit_steps=12)
    for steps in (1, 7):
        asked = iter(range(1, 99))
        cut = fit_by_preference(
            backbone,
            planted() + agreed(),
            LAYERS,
            SETTINGS.with_(fit_steps=12),
            stop=lambda asked=asked, steps=steps: next(asked) >= steps,  # type: ignore[misc]
        )
        assert cut.loss == whole.loss[:steps]
        assert [step for step, _ in cut.held_out] == [*range(5, steps, 5), steps]
        assert 1 <= cut.best_step <= steps
    never = fit_by_preference(
        backbone, planted() + agreed(), LAYERS, SETTINGS.with_(fit_steps=12), stop=lambda: False
    )
    assert never.loss == whole.loss and never.held_out == whole.held_out
    alone = [Contrast(prompt(u), "comedy", "action", "only") for u in range(4)]
    short = fit_by_preference(backbone, alone, LAYERS, SETTINGS, stop=lambda: True)
    assert len(short.loss) == short.best_step == 1
