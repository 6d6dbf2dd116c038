from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import answer_prompt, unseen_prompt
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
    with pytest.raises(UserError, match="'too_long': 6"):
        model.answer(users)
