from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lib.core.history import select_items
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.records import User
from chameleon_lib.sections import selection as selection_module
from chameleon_lib.sections.data import load_task_data, without_gold
from chameleon_lib.sections.selection import stored_selection
from tests.backbones.demo.small import HashEmbedder
from tests.sections.small import SETTINGS, small_profile

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
    found = stored_selection(store, users, settings, HashEmbedder)
    assert found == select_items(users, HashEmbedder(), settings)
    assert found == stored_selection(store, users, settings, _unwanted)


def test_another_rule_or_number_of_items_embeds_no_item_again(
    tmp_path: Path, users: list[User]
) -> None:
    embedder, store = HashEmbedder(), ArtifactStore(tmp_path)
    stored_selection(store, users, SETTINGS, lambda: embedder)
    embedded = len(embedder.texts)
    assert embedded == sum(len(user.history) for user in users)
    chosen = []
    for changes in RULES[1:]:
        settings = SETTINGS.with_(**changes)
        chosen.append(stored_selection(store, users, settings, lambda: embedder))
    assert embedder.texts[embedded:] == [q.text for user in users for q in user.queries]
    assert len({str(indices) for indices in chosen}) == len(chosen)


@pytest.mark.parametrize(
    "changes", [{"selection_embedder": "another"}, {"selection_item_text": "body"}]
)
def test_another_embedder_or_item_text_embeds_anew(
    changes: dict[str, Any], tmp_path: Path, users: list[User]
) -> None:
    store = ArtifactStore(tmp_path)
    stored_selection(store, users, SETTINGS, HashEmbedder)
    embedder = HashEmbedder()
    stored_selection(store, users, SETTINGS.with_(**changes), lambda: embedder)
    assert len(embedder.texts) == sum(len(user.history) for user in users)


def test_a_killed_embedding_keeps_what_is_done(
    tmp_path: Path, users: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two users a batch; the second batch dies."""
    monkeypatch.setattr(selection_module, "_BATCH", 2)

    class Dying(HashEmbedder):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if self.texts:
                raise KeyboardInterrupt
            return super().encode(texts)

    dying, store = Dying(), ArtifactStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stored_selection(store, users, SETTINGS, lambda: dying)
    embedder = HashEmbedder()
    found = stored_selection(store, users, SETTINGS, lambda: embedder)
    assert len(embedder.texts) == sum(len(user.history) for user in users[2:])
    assert found == select_items(users, HashEmbedder(), SETTINGS)


def test_users_without_any_history_are_chosen_nothing_of(
    tmp_path: Path, users: list[User]
) -> None:
    empty = [replace(user, history=()) for user in users]
    store = ArtifactStore(tmp_path)
    assert stored_selection(store, empty, SETTINGS, HashEmbedder) == [[]] * len(users)


def _unwanted() -> HashEmbedder:
    raise AssertionError("nothing is left to embed")
