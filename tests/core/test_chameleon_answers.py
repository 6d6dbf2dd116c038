from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.chameleon import Chameleon, EditProfile
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


def test_an_unseen_user_is_asked_without_what_the_settings_take_for_the_insight(
    users: list[User],
) -> None:
    backbone = scripted(lambda _: "4")
    settings = SETTINGS.with_(
        eval_user_mode="unseen", infer_edit=False, prompts_baseline="drop_agent_block"
    )
    Chameleon(backbone, HashEmbedder(), settings).answer(users[:1])
    texts = [query.text for query in users[0].queries]
    asked = [unseen_prompt("LaMP_3", text, baseline="drop_agent_block") for text in texts]
    assert backbone.prompts == asked != [unseen_prompt("LaMP_3", text) for text in texts]


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
