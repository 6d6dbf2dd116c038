"""Who is served: own edits from own pairs, and queries that no fit has seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.data import load_task_data
from chameleon_lib.sections.serving import study as serving
from chameleon_lib.sections.serving.study import ASKED, LEARNED, POOLED, Service
from tests.sections.serving.conftest import PROFILE, USERS
from tests.sections.small import SETTINGS, use_small_models


def test_nobody_is_asked_what_the_fit_has_seen(services: list[Service]) -> None:
    for service in services:
        everything = {user.id: user.queries for user in service.data.train}
        for user in service.served:
            queries = everything[user.asks.user.id]
            assert len(queries) == LEARNED + ASKED
            asked = [query.text for query in user.asks.user.queries]
            assert asked == [query.text for query in queries[LEARNED:]]
            assert user.profile.users == (user.asks.user.id,)
            assert user.profile.n_pairs + user.profile.n_identical == LEARNED


def test_own_edits_differ_and_the_pooled_one_has_all_pairs(services: list[Service]) -> None:
    for service in services:
        thetas = [user.profile.edit.theta_p for user in service.served]
        assert not torch.equal(thetas[0], thetas[1])
        assert {user.profile.edit.layers for user in service.served} == {(0, 1, 2)}
        assert service.pooled.n_pairs == sum(user.profile.n_pairs for user in service.served)
        assert len(service.pooled.users) == USERS and service.pooled.directions is not None
        assert list(service.profiles)[-1] == POOLED
        edits = [profile.edit for profile in service.profiles.values()]
        assert {edit.positions for edit in edits} == {"all"}


def test_a_history_does_not_depend_on_the_number_of_queries() -> None:
    one = load_task_data(PROFILE, "LaMP_7", max_users=4)
    many = load_task_data(PROFILE, "LaMP_7", max_users=4, world={"queries": LEARNED + ASKED})
    for first, second in zip(one.train, many.train, strict=True):
        assert [item.text for item in first.history] == [item.text for item in second.history]


def test_an_own_edit_acts_on_all_tokens_so_that_every_form_can_carry_it() -> None:
    settings = serving.settings_of(PROFILES["demo"])
    assert (settings.edit_positions, settings.fit_steps) == ("all", 12)
    assert serving.settings_of(PROFILES["demo"], fit_steps=3).fit_steps == 3


def test_files_with_one_query_per_user_give_groups_and_ask_test_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    world = load_task_data(PROFILE, "LaMP_3")
    data = type(world)(**{**vars(world), "truth": None})
    monkeypatch.setattr(serving, "load_task_data", lambda *_: data)
    monkeypatch.setattr(serving, "MEMBERS", 3)
    settings = SETTINGS.with_(edit_positions="all")
    (service, _) = serving.run(
        PROFILE, settings, task="LaMP_3", users=2, data_dir="x", store=ArtifactStore(tmp_path)
    )
    assert [len(user.profile.users) for user in service.served] == [3, 3]
    assert [user.asks.user.id for user in service.served] == [user.id for user in data.test[:2]]


@pytest.mark.parametrize(("users", "says"), [(1, "at least 2"), (13, "too few to serve 13")])
def test_a_number_of_users_that_cannot_be_served_is_refused(
    users: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    world = load_task_data(PROFILE, "LaMP_7", max_users=5, world={"queries": LEARNED + ASKED})
    monkeypatch.setattr(serving, "load_task_data", lambda *_, **__: world)
    with pytest.raises(UserError, match=says):
        serving.run(PROFILE, SETTINGS, task="LaMP_7", users=users, store=ArtifactStore(tmp_path))
