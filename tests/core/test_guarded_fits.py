"""Guarded fits: steps as large as the edit changes, no edit as a candidate, unrelated prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core import fitting
from chameleon_lib.core.edit import Edit, apply_edit
from chameleon_lib.core.fitting import Contrast, change_ratio, fit_by_preference
from chameleon_lib.core.settings import EditSettings
from tests.backbones.tiny import make_backbone
from tests.core.test_fitting import Counting, agreed, margins, planted

GUARDED = EditSettings(
    fit_loss="preference", fit_steps=10, fit_batch=8, fit_holdout=0.25, fit_patience=99
)
LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def backbone() -> HFBackbone:
    return make_backbone("mistral")


def edit_of(*thetas: torch.Tensor, **parts: float) -> Edit:
    return Edit(layers=LAYERS, theta_p=thetas[0], theta_n=thetas[1], **parts)  # type: ignore[arg-type]


def test_the_ratio_is_that_of_the_definition_whatever_the_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 24, generator=generator)
    old, new = (torch.randn(2, 3, 24, generator=generator) for _ in range(2))

    def edited(thetas: torch.Tensor) -> torch.Tensor:
        rows = [apply_edit(x[at], thetas[0, at], thetas[1, at]) for at in range(3)]
        return torch.stack(rows)

    length = x.norm(dim=-1)
    alone = ((edited(new) - x).norm(dim=-1) / length).mean()
    between = ((edited(new) - edited(old)).norm(dim=-1) / length).mean()
    for scale in (1.0, 1e-3, 1e3):
        assert change_ratio(scale * x, edit_of(*new)) == pytest.approx(float(alone), rel=1e-4)
        both = change_ratio(scale * x, edit_of(*new), edit_of(*old))
        assert both == pytest.approx(float(between), rel=1e-4)
    assert change_ratio(x, edit_of(*new).without_strength()) == 0


@pytest.mark.parametrize("width", [16, 96])
@pytest.mark.parametrize("scale", [1e-2, 1e2])
def test_a_step_changes_the_outputs_by_the_same_share_at_any_width_and_scale(
    width: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = scale * torch.randn(3, 40, width, generator=generator)
    goal = torch.randn(2, 3, width, generator=generator)
    thetas = fitting._unit_rows(torch.randn(2, 3, width, generator=generator)).requires_grad_()
    settings = GUARDED.with_(fit_ratio=0.02, fit_steps=4)
    steps = fitting._Steps(thetas, LAYERS, settings, x)
    for step, share in enumerate((0.02, 0.015, 0.01, 0.005), start=1):
        before = edit_of(*thetas.detach().clone())
        # The loss, too, has a scale, and it does not matter either.
        steps.take(scale * (goal * thetas).sum(), step)
        after = edit_of(*thetas.detach().clone())
        assert change_ratio(x, after, before) == pytest.approx(share, rel=0.02)
        torch.testing.assert_close(after.theta_p.norm(dim=-1), torch.ones(3))


def test_the_steps_of_a_fit_are_measured_at_what_the_model_puts_out(backbone: HFBackbone) -> None:
    settings = GUARDED.with_(fit_steps=1, fit_ratio=0.03, fit_holdout=0.0)
    done = fit_by_preference(backbone, planted(), LAYERS, settings)
    generator = torch.Generator().manual_seed(0)
    fitting._split(planted(), 0.0, generator)
    torch.randperm(12, generator=generator)
    start = fitting._unit_rows(torch.randn(2, 3, backbone.d, generator=generator))
    prompts = fitting.PlainPrompts(backbone, [c.prompt for c in planted()])
    [chunk] = fitting._chunks(prompts, planted(), GUARDED.with_(fit_batch=12))
    x = fitting._sample_outputs(backbone, chunk, "mlp_out")
    # The sample is another one, of the same outputs.
    assert x.shape == (3, 12 * 2, backbone.d)  # "comedy" and the token before it
    assert change_ratio(x, done.edit, edit_of(*start)) == pytest.approx(0.03, rel=0.25)


@pytest.mark.parametrize("family", ["mistral", "t5", "opt"])
def test_sampled_outputs_are_those_of_the_unedited_model(family: str) -> None:
    own = make_backbone(family)
    contrasts = [Contrast("x", "comedy", "action", "u")]
    [chunk] = fitting._chunks(fitting.PlainPrompts(own, ["x"]), contrasts, GUARDED)
    x = fitting._sample_outputs(own, chunk, "mlp_out")
    whole = own.activations(["x"], ["comedy"])[:, 0]  # (L, d), at the answer's last token
    nearest = (x - whole[:, None]).norm(dim=-1).min(dim=1).values
    assert x.shape[0] == own.n_layers and float(nearest.max()) < 1e-4


def test_a_guarded_fit_learns_for_users_it_never_saw(backbone: HFBackbone) -> None:
    done = fit_by_preference(backbone, planted(), LAYERS, GUARDED.with_(fit_steps=30))
    steps = [step for step, _ in done.held_out]
    assert steps[0] == 0 and done.best_step > 0 and done.edit.changes_anything
    others = [Contrast(c.prompt + "!", c.chosen, c.rejected, "new") for c in planted(6)]
    gained = margins(backbone, others, done.edit) - margins(backbone, others, None)
    assert float(gained.mean()) > 0


def test_no_edit_is_a_candidate_and_wins_where_the_held_out_users_lose(
    backbone: HFBackbone,
) -> None:
    generator = torch.Generator().manual_seed(0)
    _, held = fitting._split(planted(), GUARDED.fit_holdout, generator)
    against = {contrast.user_id for contrast in held}
    # Those held out prefer the opposite of what the fit learns.
    contrasts = [
        replace(c, chosen=c.rejected or "", rejected=c.chosen) if c.user_id in against else c
        for c in planted()
    ]
    done = fit_by_preference(backbone, contrasts, LAYERS, GUARDED)
    assert done.best_step == 0 and not done.edit.changes_anything
    assert done.held_out[0][1] == min(loss for _, loss in done.held_out)
    prompts = [c.prompt for c in contrasts]
    assert backbone.generate(prompts, max_new_tokens=4, edit=done.edit) == backbone.generate(
        prompts, max_new_tokens=4
    )
    plain = fit_by_preference(backbone, contrasts, LAYERS, GUARDED.with_(fit_rule="plain"))
    assert plain.best_step > 0 and plain.edit.changes_anything


@pytest.mark.parametrize(
    ("changes", "read"), [({}, True), ({"fit_leash": 0.0}, False), ({"fit_rule": "plain"}, False)]
)
def test_unrelated_prompts_are_on_the_leash_of_a_guarded_fit(
    changes: dict[str, object], read: bool
) -> None:
    counting: HFBackbone = Counting(make_backbone("mistral"))  # type: ignore[assignment]
    settings = GUARDED.with_(fit_steps=2, **changes)
    fit_by_preference(counting, planted() + agreed(), LAYERS, settings)
    assert (list(fitting.UNRELATED) in counting.read) == read  # type: ignore[attr-defined]


def test_the_leash_holds_what_the_model_says_to_unrelated_prompts(backbone: HFBackbone) -> None:
    chunks = fitting._unrelated(backbone, GUARDED)
    said = backbone.generate(fitting.UNRELATED, max_new_tokens=32)
    assert [text for chunk in chunks for text in chunk.chosen] == [text for text in said if text]
    assert all(chunk.rejected is None for chunk in chunks)
    theta = torch.randn(2, 3, backbone.d, generator=torch.Generator().manual_seed(0))
    strained = [float(chunk.loss(backbone, edit_of(*theta), 1.0)) for chunk in chunks]
    assert sum(strained) > 0 and all(float(c.loss(backbone, None, 1.0)) == 0 for c in chunks)


def test_the_likelihood_loss_is_the_gain_per_token_of_the_chosen_answer(
    backbone: HFBackbone,
) -> None:
    settings = GUARDED.with_(fit_loss="likelihood", fit_batch=12)
    contrasts = [replace(c, chosen="a lonely robot") for c in planted()]
    prompts = [c.prompt for c in contrasts]
    [chunk] = fitting._chunks(fitting.PlainPrompts(backbone, prompts), contrasts, settings)
    edit = edit_of(*torch.randn(2, 3, backbone.d, generator=torch.Generator().manual_seed(0)))
    prepared, answers = backbone.prepare(prompts), [c.chosen for c in contrasts]
    with torch.no_grad():
        before, after = (
            backbone.score(prepared, answers, edit=by, reduce="mean") for by in (None, edit)
        )
        strain = (before - after).clamp_min(0).mean()
        for leash in (0.0, 2.0):
            expected = float(leash * strain - (after - before).mean())
            assert float(chunk.loss(backbone, edit, leash)) == pytest.approx(expected, abs=1e-5)
        assert float(chunk.loss(backbone, None, 1.0)) == 0  # no edit is no gain
    done = fit_by_preference(backbone, contrasts, LAYERS, settings.with_(fit_steps=20))
    assert done.held_out[0] == (0, 0.0) and done.best_step > 0
    with torch.no_grad():
        gained = backbone.score(prepared, answers, edit=done.edit, reduce="mean") - before
    assert float(gained.mean()) > 0
