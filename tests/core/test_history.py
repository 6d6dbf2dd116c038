"""Which history items are chosen, kept or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lib.core import history as history_module
from chameleon_lib.core.history import (
    item_texts,
    nearest_items,
    select_history,
    select_items,
    selection_key,
    spread_items,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import HistoryItem, Query, User
from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.data import load_task_data, without_gold
from tests.demo.small import HashEmbedder
from tests.studies.small import SETTINGS, small_profile


def _settings(**changes: object) -> EditSettings:
    return EditSettings().with_(**({"selection_k": 3} | changes))


def test_short_profiles_are_returned_whole_in_order() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5))
    assert select_history(rows, _settings()) == [0, 1, 2]
    assert select_history(rows[:0], _settings()) == []


def test_centring_selects_untypical_items_and_no_centring_typical_ones() -> None:
    mean = np.zeros(6)
    mean[0] = 5.0
    rows = np.tile(mean, (8, 1))
    rows[:4, 0] += np.array([0.4, 0.3, 0.2, 0.1])  # along the mean
    rows[4:, 0] = 1.0  # far from it
    rows[4:, 1] = np.array([2.0, 2.1, 2.2, 0.0])
    assert select_history(rows, _settings(selection_center="none")) == [0, 1, 2]
    assert set(select_history(rows, _settings(selection_center="both"))) <= {4, 5, 6, 7}


def test_norms_follow_a_plain_computation() -> None:
    rows = np.random.default_rng(1).normal(size=(20, 7))
    centred = rows - rows.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    for norm, order in (("l2", 2), ("l1", 1), ("max", np.inf)):
        wanted = np.argsort(-np.linalg.norm(centred @ axes, ord=order, axis=1))[:3]
        got = select_history(rows, _settings(selection_norm=norm, selection_n_components=2))
        assert got == sorted(wanted.tolist())
    partly = np.argsort(-np.linalg.norm(rows @ axes, axis=1))[:3]
    settings = _settings(selection_center="components", selection_n_components=2)
    assert select_history(rows, settings) == sorted(partly.tolist())


def test_equal_items_are_taken_in_profile_order() -> None:
    rows = np.tile(np.random.default_rng(2).normal(size=(1, 9)), (7, 1))
    assert select_history(rows, _settings()) == [0, 1, 2]
    assert select_history(rows, _settings(selection_center="none")) == [0, 1, 2]


def test_bad_embeddings_raise() -> None:
    with pytest.raises(UserError, match="shape"):
        select_history(np.zeros(4), _settings())
    rows = np.zeros((5, 2))
    rows[2, 1] = np.nan
    with pytest.raises(UserError, match="NaN"):
        select_history(rows, _settings())


def test_item_text_is_the_line_or_the_body() -> None:
    item = HistoryItem("1", "A robot learns to cry.", "sci-fi")
    (line,) = item_texts("LaMP_2", [item], _settings())
    assert "sci-fi" in line and "A robot" in line
    body = item_texts("LaMP_2", [item], _settings(selection_item_text="body"))
    assert body == ["A robot learns to cry."]


# The controls of the history ablation: random, recent, nearest.


class WordEmbedder:
    """One dimension per letter, so that cosines can be told by eye; keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(list(texts))
        rows = [[text.count(letter) for letter in "abcdefgh"] for text in texts]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), 8)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _user(name: str, texts: Sequence[str], *queries: str) -> User:
    items = tuple(HistoryItem(f"{name}{at}", text, None) for at, text in enumerate(texts))
    asked = tuple(Query(f"{name}q{at}", text, text, "gold") for at, text in enumerate(queries))
    return User(name, "LaMP_7", items, asked)


USERS = [
    _user("u", ["a", "ab", "b", "bc", "c", "cd", "d"], "b"),
    _user("v", ["h", "g", "f", "e", "d", "c", "b", "a"], "a", "h"),
    _user("w", ["a", "b"], "b"),
]


def test_the_default_is_the_papers_rule_and_costs_one_embedding_call() -> None:
    assert EditSettings().selection_rule == "pca"
    embedder = WordEmbedder()
    chosen = select_items(USERS, embedder.encode, _settings())
    (texts,) = embedder.calls
    assert texts == [item.text for user in USERS for item in user.history]
    alone = [
        select_history(WordEmbedder().encode([i.text for i in user.history]), _settings())
        for user in USERS
    ]
    assert chosen == alone and select_items([], embedder.encode, _settings()) == []


def test_of_a_long_history_as_many_items_as_stated_are_embedded_and_that_is_told() -> None:
    long = _user("l", [letter * (1 + at % 7) for at, letter in enumerate("abcdefgh" * 50)], "b")
    settings = _settings(selection_max_items=40)
    embedder, told = WordEmbedder(), list[str]()
    one, other = select_items([long, USERS[0]], embedder.encode, settings, tell=told.append)
    (texts,) = embedder.calls
    spread = spread_items(long, settings)
    assert spread[0] == 0 and spread[-1] == 399 and len(set(spread)) == 40
    assert {b - a for a, b in zip(spread, spread[1:], strict=False)} == {10, 11}
    assert texts[:40] == [long.history[at].text for at in spread]
    rows = WordEmbedder().encode([long.history[at].text for at in spread])
    assert one == [spread[at] for at in select_history(rows, settings)]
    assert other == select_items([USERS[0]], embedder.encode, _settings())[0]
    (sentence,) = told
    assert sentence.startswith("1 of 2 users have more than 40 items, up to 400: 40 of each")
    whole = _settings(selection_max_items=None)
    select_items([long], embedder.encode, whole, tell=told.append)
    assert len(embedder.calls[-1]) == 400 and len(told) == 1
    for rule in ("recent", "random"):  # embed nothing, so there is nothing to tell
        select_items([long], embedder.encode, settings.with_(selection_rule=rule), tell=told.append)
    assert len(told) == 1


def test_heavy_users_are_embedded_in_steps_that_show_and_light_ones_in_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = [_user(f"u{at}", ["a", "bc"] * 1500, "b") for at in range(3)]
    monkeypatch.setattr("chameleon_lib.core.history._TELL", -1.0)
    embedder, told = WordEmbedder(), list[str]()
    settings = _settings(selection_max_items=2500)
    select_items(users, embedder.encode, settings, tell=told.append)
    assert [len(call) for call in embedder.calls] == [2500] * 3
    assert told[1:] == [f"{at * 2500} of 7500 texts are embedded" for at in (1, 2, 3)]


@pytest.mark.parametrize("rule", ["pca", "random", "recent", "nearest"])
def test_every_rule_gives_k_items_in_profile_order_and_short_profiles_whole(rule: str) -> None:
    for k in (1, 3, 20):
        settings = _settings(selection_rule=rule, selection_k=k)
        every = select_items(USERS, WordEmbedder().encode, settings)
        for user, chosen in zip(USERS, every, strict=True):
            assert chosen == sorted(set(chosen)) and len(chosen) == min(k, len(user.history))
            assert set(chosen) <= set(range(len(user.history)))
            assert select_items([user], WordEmbedder().encode, settings) == [chosen]


@pytest.mark.parametrize("rule", ["random", "recent"])
def test_what_compares_nothing_embeds_nothing(rule: str) -> None:
    embedder = WordEmbedder()
    select_items(USERS, embedder.encode, _settings(selection_rule=rule))
    assert embedder.calls == []


def test_recent_items_are_the_last_of_the_profile() -> None:
    chosen = select_items(USERS, WordEmbedder().encode, _settings(selection_rule="recent"))
    assert chosen == [[4, 5, 6], [5, 6, 7], [0, 1]]


def test_nearest_items_have_the_largest_cosine_to_the_query() -> None:
    chosen = select_items(USERS, WordEmbedder().encode, _settings(selection_rule="nearest"))
    assert chosen[0] == [1, 2, 3]  # "ab", "b", "bc" for the query "b"
    # Two queries, "a" and "h": both ends of the profile, and the first of the equal rest.
    assert chosen[1] == [0, 1, 7]


def test_the_nearest_follow_a_plain_computation_whatever_the_lengths() -> None:
    rng = np.random.default_rng(3)
    rows, queries = rng.normal(size=(15, 6)), rng.normal(size=(2, 6))
    target = sum(query / np.linalg.norm(query) for query in queries)
    cosines = [row @ target / np.linalg.norm(row) for row in rows]
    expected = sorted(np.argsort(cosines)[-3:].tolist())
    settings = _settings(selection_rule="nearest")
    assert nearest_items(rows, queries, settings) == expected
    stretched = rows * rng.uniform(0.1, 9.0, size=(15, 1))
    louder = queries * np.array([[9.0], [0.1]])
    assert nearest_items(stretched, louder, settings) == expected


@pytest.mark.parametrize(
    ("rows", "queries", "message"),
    [
        (np.eye(5), np.zeros((0, 5)), "needs a query"),
        (np.eye(5), np.zeros((1, 5)), "no direction"),
        (np.eye(5), np.array([[1.0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0]]), "no direction"),
        (np.zeros((5, 5)), np.eye(5), "no direction"),
        (np.eye(5), np.full((1, 5), np.nan), "NaN"),
        (np.eye(5), np.ones(5), "shape"),
    ],
)
def test_a_query_that_nothing_can_be_near_to_raises(
    rows: np.ndarray, queries: np.ndarray, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        nearest_items(rows, queries, _settings(selection_rule="nearest"))


def test_random_items_depend_on_seed_and_history_alone() -> None:
    def chosen(user: User, seed: int = 0, k: int = 3) -> list[int]:
        settings = _settings(selection_rule="random", selection_seed=seed, selection_k=k)
        (indices,) = select_items([user], WordEmbedder().encode, settings)
        return indices

    user = USERS[0]
    # Written down: a hash that changes between processes would fail here.
    assert chosen(user) == [1, 2, 4]
    renamed = _user("somebody", [item.text for item in user.history], "another query")
    assert chosen(renamed) == chosen(user)
    assert len({tuple(chosen(user, seed)) for seed in range(20)}) > 8
    others = [_user("o", [f"{n} {at}" for at in range(7)], "b") for n in range(20)]
    assert len({tuple(chosen(other)) for other in others}) > 8
    assert set(chosen(user, k=2)) < set(chosen(user, k=3)) < set(chosen(user, k=5))


def test_random_items_are_even_over_users() -> None:
    settings = _settings(selection_rule="random")
    users = [_user("o", [f"{n} {at}" for at in range(6)], "b") for n in range(600)]
    counts = np.bincount(np.concatenate(select_items(users, WordEmbedder().encode, settings)))
    assert counts.sum() == 1800 and (np.abs(counts - 300) < 5 * np.sqrt(600 * 0.25)).all()


def test_the_key_of_a_user_holds_what_decides_and_nothing_else() -> None:
    user, asked = USERS[0], _user("x", [item.text for item in USERS[0].history], "other")
    for rule in ("pca", "random", "recent"):
        settings = _settings(selection_rule=rule)
        history = [[item.text, item.label] for item in user.history]
        assert selection_key(user, settings) == ["LaMP_7", history] == selection_key(
            asked, settings
        )
    settings = _settings(selection_rule="nearest")
    assert selection_key(user, settings) != selection_key(asked, settings)
    assert "gold" not in json.dumps(selection_key(user, settings))


RULES: tuple[dict[str, Any], ...] = (
    {},
    {"selection_center": "none"},
    {"selection_norm": "l1", "selection_k": 5},
    {"selection_rule": "nearest"},
    {"selection_rule": "random"},
    {"selection_rule": "recent", "selection_k": 1},
)


@pytest.fixture(scope="module")
def users() -> list[User]:
    return without_gold(load_task_data(small_profile(), "LaMP_3").train)[:6]


@pytest.mark.parametrize("changes", RULES)
def test_stored_choices_are_those_of_the_rule_itself(
    changes: dict[str, Any], tmp_path: Path, users: list[User]
) -> None:
    settings = SETTINGS.with_(**changes)
    store = ArtifactStore(tmp_path)
    found = select_items(users, HashEmbedder().encode, settings, store)
    assert found == select_items(users, HashEmbedder().encode, settings)
    assert found == select_items(users, _unwanted, settings, store)


def test_another_rule_or_number_of_items_embeds_no_item_again(
    tmp_path: Path, users: list[User]
) -> None:
    embedder, store = HashEmbedder(), ArtifactStore(tmp_path)
    select_items(users, embedder.encode, SETTINGS, store)
    embedded = len(embedder.texts)
    assert embedded == sum(len(user.history) for user in users)
    chosen = []
    for changes in RULES[1:]:
        settings = SETTINGS.with_(**changes)
        chosen.append(select_items(users, embedder.encode, settings, store))
    assert embedder.texts[embedded:] == [q.text for user in users for q in user.queries]
    assert len({str(indices) for indices in chosen}) == len(chosen)


@pytest.mark.parametrize(
    "changes", [{"selection_embedder": "another"}, {"selection_item_text": "body"}]
)
def test_another_embedder_or_item_text_embeds_anew(
    changes: dict[str, Any], tmp_path: Path, users: list[User]
) -> None:
    store = ArtifactStore(tmp_path)
    select_items(users, HashEmbedder().encode, SETTINGS, store)
    embedder = HashEmbedder()
    select_items(users, embedder.encode, SETTINGS.with_(**changes), store)
    assert len(embedder.texts) == sum(len(user.history) for user in users)


def test_a_killed_embedding_keeps_what_is_done(
    tmp_path: Path, users: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two users a batch; the second batch dies."""
    monkeypatch.setattr(history_module, "_USERS", 2)

    class Dying(HashEmbedder):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if self.texts:
                raise KeyboardInterrupt
            return super().encode(texts)

    dying, store = Dying(), ArtifactStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        select_items(users, dying.encode, SETTINGS, store)
    embedder = HashEmbedder()
    found = select_items(users, embedder.encode, SETTINGS, store)
    assert len(embedder.texts) == sum(len(user.history) for user in users[2:])
    assert found == select_items(users, HashEmbedder().encode, SETTINGS)


def test_users_without_any_history_are_chosen_nothing_of(
    tmp_path: Path, users: list[User]
) -> None:
    empty = [replace(user, history=()) for user in users]
    store = ArtifactStore(tmp_path)
    assert select_items(empty, HashEmbedder().encode, SETTINGS, store) == [[]] * len(users)


def _unwanted(_texts: Sequence[str]) -> np.ndarray:
    raise AssertionError("nothing is left to embed")
