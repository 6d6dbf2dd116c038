from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.chameleon import Chameleon, EditProfile
from chameleon_lib.core.task import ANSWER_CUE, User, answer_prompt
from chameleon_lib.errors import UserError
from tests.core.method import SETTINGS, train_users
from tests.core.scripted import scripted
from tests.demo.small import HashEmbedder, small_backbone


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
    found = model.prepare(users)
    assert [u.user.id for u in found.users] == [u.id for u in users if u.id != users[1].id]
    assert found.counts == {
        "users": 6, "no_history": 0, "too_long": 0, "empty_insight": 1, "dropped_items": 0
    }  # fmt: skip
    assert found.left_out == {users[1].id: "An insight came back empty."}

    tight = scripted(lambda _: "an insight", limit=20)
    model = Chameleon(tight, HashEmbedder(), settings)
    assert model.prepare(users).users == [] and model.prepare(users).counts["too_long"] == 6
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="0 pairs"):
        model.fit(users)
    assert "'too_long': 6" in caplog.text


def test_an_empty_history_is_not_called_one_that_does_not_fit(users: list[User]) -> None:
    some = [users[0], replace(users[1], history=())]
    model = Chameleon(scripted(lambda _: "an insight"), HashEmbedder(), SETTINGS)
    found = model.prepare(some)
    assert [user.user.id for user in found.users] == [users[0].id]
    assert found.left_out == {users[1].id: "The history is empty."}
    assert (found.counts["no_history"], found.counts["too_long"]) == (1, 0)


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
    found = model.prepare(users)
    assert [u.user.id for u in found.users] == [u.id for u in users if u.id != users[2].id]
    assert found.counts["empty_insight"] == 1 and set(found.left_out) == {users[2].id}
    assert all(user.query_insights == (("an insight",) * 2,) * 2 for user in found.users)
    assert len(model.pairs(found)) == 10
    own = Chameleon(scripted(reply), HashEmbedder(), SETTINGS)
    assert len(own.prepare(users).users) == 6  # the user's own insights are all there


def test_the_selection_rule_decides_which_items_are_shown(users: list[User]) -> None:
    embedder = HashEmbedder()
    settings = SETTINGS.with_(selection_rule="recent")
    model = Chameleon(scripted(lambda _: "an insight"), embedder, settings)
    found = model.prepare(users).users
    assert [user.items for user in found] == [user.history[-4:] for user in users]
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
