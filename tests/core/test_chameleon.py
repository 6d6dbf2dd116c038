from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.demo.world import WorldSettings, build_world
from chameleon_lib.core.chameleon import (
    Chameleon,
    EditProfile,
    check_pair_count,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import answer_prompt, unseen_prompt
from chameleon_lib.lamp.records import User
from tests.backbones.demo.small import HashEmbedder, small_backbone
from tests.core.scripted import scripted

SETTINGS = EditSettings(
    selection_k=4,
    decode_insight_tokens=6,
    decode_max_new_tokens=5,
    ccs_epochs=20,
    ccs_tries=2,
    pairs_k_min=2,
    fit_steps=2,
    fit_batch=4,
)


@pytest.fixture(scope="module")
def backbone() -> HFBackbone:
    return small_backbone()


@pytest.fixture(scope="module")
def users() -> list[User]:
    settings = WorldSettings(users=(6, 0, 0), queries=2, history=(5, 7))
    return build_world("LaMP_3", settings).users["train"]


@pytest.fixture(scope="module")
def profile(backbone: HFBackbone, users: list[User]) -> EditProfile:
    return Chameleon(backbone, HashEmbedder(), SETTINGS).fit(users)


def plain_prompts(users: list[User]) -> list[str]:
    return [
        answer_prompt(u.task, u.history[:4], query.text, role="P", insight=None)
        for u in users
        for query in u.queries
    ]


def with_gold(users: list[User], gold: str | None) -> list[User]:
    """The users with another gold answer for every query."""
    return [replace(u, queries=tuple(replace(q, gold=gold) for q in u.queries)) for u in users]


def test_fit_returns_a_profile_that_says_where_it_came_from(
    profile: EditProfile, backbone: HFBackbone, users: list[User]
) -> None:
    assert profile.task == "LaMP_3" and profile.settings == SETTINGS
    assert profile.backbone == (backbone.name, backbone.fingerprint)
    assert profile.users == tuple(user.id for user in users)
    assert profile.n_pairs + profile.n_identical == 12 and profile.n_pairs >= 2
    assert profile.directions is not None and profile.fitted is None
    assert profile.edit.theta_p.shape == (len(profile.edit.layers), 24)
    assert set(profile.edit.layers) < set(range(3))


def test_the_edit_changes_what_the_backbone_says(
    profile: EditProfile, backbone: HFBackbone, users: list[User]
) -> None:
    prompts = plain_prompts(users)
    prepared = backbone.prepare(prompts)
    plain = backbone.generate_prepared(prepared, max_new_tokens=5)
    edited = backbone.generate_prepared(prepared, max_new_tokens=5, edit=profile.edit)
    assert plain != edited
    assert plain == backbone.generate_prepared(prepared, max_new_tokens=5)
    answers = ["4"] * len(prompts)
    moved = backbone.score(prepared, answers, edit=profile.edit) - backbone.score(prepared, answers)
    assert bool((moved.abs() > 1e-3).all())


@pytest.mark.parametrize("method", ["paper", "fitted"])
def test_a_fit_repeats_and_never_reads_a_gold(
    method: str, backbone: HFBackbone, users: list[User]
) -> None:
    settings = SETTINGS.with_(theta_method=method)
    groups = [users, users, with_gold(users, "RUBBISH"), with_gold(users, None)]
    edits = [Chameleon(backbone, HashEmbedder(), settings).fit(group).edit for group in groups]
    for other in edits[1:]:
        assert other.layers == edits[0].layers
        assert torch.equal(other.theta_p, edits[0].theta_p)
        assert torch.equal(other.theta_n, edits[0].theta_n)


def test_a_fitted_profile_edits_all_layers_or_the_chosen_ones(
    backbone: HFBackbone, users: list[User], profile: EditProfile
) -> None:
    settings = SETTINGS.with_(theta_method="fitted")
    every = Chameleon(backbone, HashEmbedder(), settings).fit(users)
    assert every.edit.layers == (0, 1, 2) and every.directions is None
    assert every.fitted is not None and len(every.fitted.loss) == 2
    chosen = Chameleon(backbone, HashEmbedder(), settings.with_(fit_layers="chosen")).fit(users)
    assert chosen.edit.layers == profile.edit.layers


def test_fit_each_gives_every_user_an_edit_from_own_pairs(
    backbone: HFBackbone, users: list[User]
) -> None:
    settings = SETTINGS.with_(pairs_k_min=1)
    model = Chameleon(backbone, HashEmbedder(), settings)
    profiles = model.fit_each(users[:3])
    assert list(profiles) == [user.id for user in users[:3]]
    for user in users[:3]:
        own = profiles[user.id]
        alone = Chameleon(backbone, HashEmbedder(), settings).fit([user])
        assert own.users == alone.users == (user.id,)
        assert own.edit.layers == alone.edit.layers
        torch.testing.assert_close(own.edit.theta_p, alone.edit.theta_p, atol=1e-3, rtol=0)
    thetas = [p.directions.theta_p for p in profiles.values() if p.directions is not None]
    assert not torch.allclose(thetas[0], thetas[1], atol=1e-3)


def test_too_few_pairs_are_an_error_or_a_warning(
    backbone: HFBackbone, users: list[User], caplog: pytest.LogCaptureFixture
) -> None:
    strict = SETTINGS.with_(pairs_k_min=100)
    with pytest.raises(UserError, match="fewer than pairs_k_min = 100"):
        Chameleon(backbone, HashEmbedder(), strict).fit(users)
    with caplog.at_level(logging.WARNING):
        lenient = strict.with_(pairs_on_too_few="warn")
        Chameleon(backbone, HashEmbedder(), lenient).fit(users)
    assert "fewer than pairs_k_min = 100" in caplog.text


def test_the_pair_limit_has_a_sharp_edge_and_none_is_never_enough() -> None:
    check_pair_count(32, SETTINGS.with_(pairs_k_min=32))
    with pytest.raises(UserError, match="31 pairs"):
        check_pair_count(31, SETTINGS.with_(pairs_k_min=32))
    with pytest.raises(UserError, match="0 pairs"):
        check_pair_count(0, SETTINGS.with_(pairs_on_too_few="warn"))


def test_a_mixed_or_empty_set_of_users_is_refused(
    backbone: HFBackbone, users: list[User]
) -> None:
    movies = build_world("LaMP_2", WorldSettings(users=(1, 0, 0))).users["train"]
    for group in ([*users, *movies], []):
        with pytest.raises(UserError, match="users of one task"):
            Chameleon(backbone, HashEmbedder(), SETTINGS).fit(group)


def test_users_without_insight_or_without_room_are_left_out_and_counted(
    users: list[User], caplog: pytest.LogCaptureFixture
) -> None:
    silent = users[1].history[0].text

    def reply(prompt: str) -> str:
        return "" if silent in prompt else "an insight"

    settings = SETTINGS.with_(selection_k=20)
    model = Chameleon(scripted(reply), HashEmbedder(), settings)
    with caplog.at_level(logging.WARNING):
        prepared = model.prepare(users)
    assert [user.user.id for user in prepared] == [u.id for u in users if u.id != users[1].id]
    assert model.counts == {"users": 6, "too_long": 0, "empty_insight": 1, "dropped_items": 0}
    assert "empty_insight" in caplog.text

    tight = scripted(lambda _: "an insight", limit=20)
    model = Chameleon(tight, HashEmbedder(), settings)
    assert model.prepare(users) == [] and model.counts["too_long"] == 6
    with pytest.raises(UserError, match="0 pairs"):
        model.fit(users)


def test_each_stage_can_be_called_alone(
    backbone: HFBackbone, users: list[User], profile: EditProfile
) -> None:
    model = Chameleon(backbone, HashEmbedder(), SETTINGS)
    pairs = model.pairs(model.prepare(users))
    h_p, h_n = model.activations(pairs)
    assert h_p.shape == h_n.shape == (3, len(pairs), 24)
    same = [pair.answer_p == pair.answer_n for pair in pairs]
    for at, equal in enumerate(same):
        assert torch.allclose(h_p[:, at], h_n[:, at], atol=1e-5) == equal
    assert profile.n_identical >= sum(same)


# --- answers ---------------------------------------------------------------------------------


def asked(
    model: Chameleon, users: list[User], profile: EditProfile | None
) -> tuple[list[str], Any]:
    """The prompts that reach the backbone and the edit they are answered under."""
    calls: list[tuple[list[str], Any]] = []
    backbone = model.backbone

    class Listening:
        def __getattr__(self, name: str) -> Any:
            return getattr(backbone, name)

        def generate(self, prompts: Any, *, edit: Any = None, **rest: Any) -> list[str]:
            calls.append((list(prompts), edit))
            return backbone.generate(prompts, edit=edit, **rest)

    listening: Any = Listening()
    Chameleon(listening, model.embedder, model.settings).answer(users, profile)
    return calls[-1]


def test_the_edit_and_the_insight_of_an_answer_are_switched_one_by_one(
    profile: EditProfile, backbone: HFBackbone, users: list[User]
) -> None:
    said = {}
    for insight in (False, True):
        for edit in (False, True):
            settings = SETTINGS.with_(infer_insight_in_prompt=insight, infer_edit=edit)
            model = Chameleon(backbone, HashEmbedder(), settings)
            prompts, used = asked(model, users, profile)
            prepared = model.prepare(users)
            assert prompts == [
                answer_prompt(
                    user.user.task,
                    user.items,
                    query.text,
                    role="P",
                    insight=user.insight_p if insight else None,
                )
                for user in prepared
                for query in user.user.queries
            ]
            assert used is (profile.edit if edit else None)
            said[insight, edit] = model.answer(users, profile)
            assert said[insight, edit] == backbone.generate(prompts, max_new_tokens=5, edit=used)
    assert all(len(texts) == 12 for texts in said.values())
    assert said[False, False] != said[False, True] and said[False, False] != said[True, False]


def test_an_unseen_user_is_asked_without_a_history_unless_the_settings_show_it(
    profile: EditProfile, backbone: HFBackbone, users: list[User]
) -> None:
    bare = [replace(user, history=()) for user in users]
    unseen = SETTINGS.with_(eval_user_mode="unseen")
    prompts, used = asked(Chameleon(backbone, HashEmbedder(), unseen), bare, profile)
    assert prompts == [unseen_prompt(u.task, q.text) for u in users for q in u.queries]
    assert used is profile.edit
    shown = Chameleon(backbone, HashEmbedder(), unseen.with_(unseen_prompt="history"))
    seen = Chameleon(backbone, HashEmbedder(), SETTINGS)
    assert asked(shown, users, profile)[0] == asked(seen, users, profile)[0] != prompts


def test_a_profile_of_another_backbone_or_task_or_none_is_refused(
    profile: EditProfile, backbone: HFBackbone, users: list[User]
) -> None:
    model = Chameleon(backbone, HashEmbedder(), SETTINGS)
    movies = build_world("LaMP_2", WorldSettings(users=(1, 0, 0))).users["train"]
    other = Chameleon(small_backbone(seed=1), HashEmbedder(), SETTINGS)
    with pytest.raises(UserError, match="belongs to LaMP_3 and small-mistral-0, not to LaMP_2"):
        model.answer(movies, profile)
    with pytest.raises(UserError, match="not to LaMP_3 and small-mistral-1"):
        other.answer(users, profile)
    with pytest.raises(UserError, match="needs the profile of a fit"):
        model.answer(users)
    plain = Chameleon(backbone, HashEmbedder(), SETTINGS.with_(infer_edit=False))
    assert len(plain.answer(users)) == 12


def test_a_user_who_cannot_be_asked_is_named_by_count_and_not_dropped(
    users: list[User],
) -> None:
    tight = scripted(lambda _: "an insight", limit=20)
    model = Chameleon(tight, HashEmbedder(), SETTINGS.with_(infer_edit=False))
    with pytest.raises(UserError, match="'too_long': 6"):
        model.answer(users)
