from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.fitting import EditProfile
from chameleon_lib.core.task import ANSWER_CUE, INSIGHT_QUERIES, User, answer_prompt, unseen_prompt
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
        "users": 6, "no_history": 0, "too_long": 0, "empty_insight": 1, "dropped_items": 0,
        "cut_items": 0,
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
            prepared = model.prepare(users).users
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
    movies = train_users("LaMP_2", 1)
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
    with pytest.raises(UserError, match="6 of 6 users cannot be asked") as caught:
        model.answer(users)
    assert f"{users[5].id}: Not one history item fits the context" in str(caught.value)
    bare = [users[0], replace(users[1], history=())]
    roomy = scripted(lambda _: "4")
    with pytest.raises(UserError, match=f"1 of 2 .* {users[1].id}: The history is empty"):
        Chameleon(roomy, HashEmbedder(), SETTINGS.with_(infer_edit=False)).answer(bare)
    assert roomy.prompts == []


def test_an_answer_without_insights_writes_none_and_needs_none(users: list[User]) -> None:
    silent = scripted(lambda prompt: "4" if ANSWER_CUE in prompt else "")
    plain = SETTINGS.with_(infer_edit=False)
    assert Chameleon(silent, HashEmbedder(), plain).answer(users) == ["4"] * 12
    assert len(silent.prompts) == 12
    asking = Chameleon(silent, HashEmbedder(), plain.with_(infer_insight_in_prompt=True))
    with pytest.raises(UserError, match="6 of 6 users .* An insight came back empty"):
        asking.answer(users)


def test_an_answer_needs_the_insights_of_its_prompts_alone(users: list[User]) -> None:
    """The neutral one never stands there, nor the user's own where each query has one."""
    first = INSIGHT_QUERIES["N"]

    def reply(prompt: str) -> str:
        if ANSWER_CUE in prompt:
            return "4"
        own = not any(q.text in prompt for u in users for q in u.queries)
        return "" if first in prompt or (own and scope == "query") else "an insight"

    for scope in ("user", "query"):
        settings = SETTINGS.with_(
            infer_edit=False, infer_insight_in_prompt=True, insight_scope=scope
        )
        backbone = scripted(reply)
        assert Chameleon(backbone, HashEmbedder(), settings).answer(users) == ["4"] * 12
        assert all("an insight." in prompt for prompt in backbone.prompts[-12:])


def test_items_that_an_answer_prompt_has_no_room_for_are_said_to_be_dropped(
    users: list[User], caplog: pytest.LogCaptureFixture
) -> None:
    user = users[0]
    settings = SETTINGS.with_(infer_edit=False)
    longest = max(
        len(answer_prompt(user.task, user.history[:4], q.text, role=role, insight="-").split())
        for q in user.queries
        for role in ("P", "N")
    )
    room = longest + settings.decode_insight_tokens + 5 - 1
    tight = scripted(lambda _: "4", limit=room)
    with caplog.at_level(logging.WARNING):
        assert Chameleon(tight, HashEmbedder(), settings).answer([user]) == ["4", "4"]
    assert "history items do not fit and are dropped" in caplog.text
