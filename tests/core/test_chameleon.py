from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.core.preferences import PreferencePair, PreparedUser
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import ANSWER_CUE, answer_prompt
from chameleon_lib.lamp.records import User
from tests.backbones.demo.small import HashEmbedder, small_backbone
from tests.core.method import SETTINGS, train_users
from tests.core.scripted import scripted


@pytest.fixture(scope="module")
def backbone() -> HFBackbone:
    return small_backbone()


@pytest.fixture(scope="module")
def users() -> list[User]:
    return train_users()


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


class Agreeing(Chameleon):
    """Both agents say the same to every query of some users."""

    agreed: frozenset[str] = frozenset()

    def pairs(self, users: Sequence[PreparedUser]) -> list[PreferencePair]:
        return [
            replace(pair, answer_n=pair.answer_p) if pair.user_id in self.agreed else pair
            for pair in super().pairs(users)
        ]


def test_a_user_without_a_pair_is_named_with_the_reason_and_the_others_get_their_edit(
    backbone: HFBackbone, users: list[User], caplog: pytest.LogCaptureFixture
) -> None:
    some = [*users[:3], replace(users[3], queries=())]
    model = Agreeing(backbone, HashEmbedder(), SETTINGS.with_(pairs_k_min=1))
    model.agreed = frozenset({some[1].id})
    with caplog.at_level(logging.WARNING):
        profiles = model.fit_each(some)
    assert list(profiles) == [some[0].id, some[2].id]
    assert set(model.left_out) == {some[1].id, some[3].id}
    assert all("0 pairs with different outputs" in why for why in model.left_out.values())
    assert model.counts["too_few_pairs"] == 2 and model.counts["users"] == 4
    assert "2 users have no edit" in caplog.text and some[1].id in caplog.text
    alone = model.fit_each([some[0]])[some[0].id]
    assert alone.edit.layers == profiles[some[0].id].edit.layers and model.left_out == {}


def test_the_pair_limit_of_the_settings_holds_for_every_user_alone(
    backbone: HFBackbone, users: list[User]
) -> None:
    """Two queries each: a limit of three refuses everyone, a warning no one who has a pair."""
    strict = Chameleon(backbone, HashEmbedder(), SETTINGS.with_(pairs_k_min=3))
    with pytest.raises(UserError, match="No user can have an edit .*'too_few_pairs': 2"):
        strict.fit_each(users[:2])
    assert set(strict.left_out) == {user.id for user in users[:2]}
    lenient = SETTINGS.with_(pairs_k_min=3, pairs_on_too_few="warn")
    assert len(Chameleon(backbone, HashEmbedder(), lenient).fit_each(users[:2])) == 2


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


def test_a_mixed_or_empty_set_of_users_is_refused(
    backbone: HFBackbone, users: list[User]
) -> None:
    movies = train_users("LaMP_2", 1)
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
    assert model.counts == {
        "users": 6, "no_history": 0, "too_long": 0, "empty_insight": 1, "dropped_items": 0
    }  # fmt: skip
    assert "empty_insight" in caplog.text
    assert model.left_out == {users[1].id: "An insight came back empty."}

    tight = scripted(lambda _: "an insight", limit=20)
    model = Chameleon(tight, HashEmbedder(), settings)
    assert model.prepare(users) == [] and model.counts["too_long"] == 6
    with pytest.raises(UserError, match="0 pairs"):
        model.fit(users)


def test_an_empty_history_is_not_called_one_that_does_not_fit(users: list[User]) -> None:
    some = [users[0], replace(users[1], history=())]
    model = Chameleon(scripted(lambda _: "an insight"), HashEmbedder(), SETTINGS)
    assert [user.user.id for user in model.prepare(some)] == [users[0].id]
    assert model.left_out == {users[1].id: "The history is empty."}
    assert (model.counts["no_history"], model.counts["too_long"]) == (1, 0)


def test_an_empty_insight_of_one_query_leaves_its_user_out_as_one_of_the_user_does(
    users: list[User],
) -> None:
    silent = users[2].queries[1].text

    def reply(prompt: str) -> str:
        if ANSWER_CUE in prompt:
            return "4"
        return " ." if silent in prompt else "an insight"

    settings = SETTINGS.with_(insight_scope="query")
    model = Chameleon(scripted(reply), HashEmbedder(), settings)
    prepared = model.prepare(users)
    assert [user.user.id for user in prepared] == [u.id for u in users if u.id != users[2].id]
    assert model.counts["empty_insight"] == 1 and set(model.left_out) == {users[2].id}
    assert all(user.query_insights == (("an insight",) * 2,) * 2 for user in prepared)
    assert len(model.pairs(prepared)) == 10
    own = Chameleon(scripted(reply), HashEmbedder(), SETTINGS)
    assert len(own.prepare(users)) == 6  # the user's own insights are all there


def test_the_selection_rule_decides_which_items_are_shown(users: list[User]) -> None:
    embedder = HashEmbedder()
    settings = SETTINGS.with_(selection_rule="recent")
    model = Chameleon(scripted(lambda _: "an insight"), embedder, settings)
    assert [user.items for user in model.prepare(users)] == [user.history[-4:] for user in users]
    assert embedder.texts == []


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
