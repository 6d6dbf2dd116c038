from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.owners import Pseudonyms, is_pseudonym, units_of
from chameleon_lib.kit.records import encode, verify
from chameleon_lib.kit.store import ArtifactStore


def notes(root: Path) -> dict[str, Any]:
    """Stage → note of its only record."""
    found = {}
    for path in root.glob("*/*/*.unit"):
        found[path.parents[1].name] = verify(path.read_bytes())[0].get("about")
    return found


def stages(root: Path, user: str) -> dict[str, int]:
    return units_of(root, user).stages()


def per_user(store: ArtifactStore, users: list[str], stage: str = "insights") -> None:
    store.map(
        stage, users, lambda batch: [f"about {user}" for user in batch], inputs={},
        key_of=lambda user: f"text of {user}", about=lambda user: [user],
    )  # fmt: skip


def test_a_record_is_found_for_its_users_and_for_nobody_else(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    per_user(store, ["ann", "ben"])
    store.get_or_compute("fit", 1, lambda: {"theta": np.ones(3)}, about=["ann", "cid"])
    store.get_or_compute("rates", 1, lambda: 2.5, about=())
    assert stages(tmp_path, "ann") == {"fit": 1, "insights": 1}
    assert stages(tmp_path, "cid") == {"fit": 1} and stages(tmp_path, "dora") == {}
    assert units_of(tmp_path, "ann").texts == ["about ann"]
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"cid" not in everything


def test_a_record_nobody_is_named_for_belongs_to_all_the_store_worked_for(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.get_or_compute("early", 1, lambda: 1)
    per_user(store, ["ann", "ben"])
    store.get_or_compute("directions", 1, lambda: 1)
    assert stages(tmp_path, "ben") == {"directions": 1, "insights": 1}
    assert stages(tmp_path, "cid") == {}
    assert [path.parents[1].name for path in units_of(tmp_path, "cid").unclaimed] == ["early"]
    later = ArtifactStore(tmp_path)  # finds everything, and by that has worked for both
    per_user(later, ["ann", "ben"])
    later.get_or_compute("early", 1, lambda: 1)
    assert stages(tmp_path, "ben") == {"directions": 1, "early": 1, "insights": 1}
    assert later.stats.misses == 0 and units_of(tmp_path, "cid").unclaimed == []


def test_equal_content_of_two_users_belongs_to_both(tmp_path: Path) -> None:
    for users in (["ann"], ["ben"]):
        store = ArtifactStore(tmp_path)
        store.map(
            "embed", users, lambda batch: [7] * len(batch), inputs={},
            key_of=lambda _: "the same text", about=lambda user: [user],
        )  # fmt: skip
    assert (store.stats.hits, store.stats.misses) == (1, 0)
    assert stages(tmp_path, "ann") == stages(tmp_path, "ben") == {"embed": 1}
    together = ArtifactStore(tmp_path / "b")
    together.map(
        "embed", ["ann", "ben"], lambda batch: [7] * len(batch), inputs={},
        key_of=lambda _: "the same text", about=lambda user: [user],
    )  # fmt: skip
    assert stages(tmp_path / "b", "ann") == stages(tmp_path / "b", "ben") == {"embed": 1}


def test_a_record_without_a_note_gets_one_when_its_user_comes_back(tmp_path: Path) -> None:
    """Caches from before there were notes: the same work with the same keys."""
    plain = ArtifactStore(tmp_path)
    plain.map(
        "insights", ["ann"], lambda _: ["about ann"], inputs={}, key_of=lambda u: f"text of {u}"
    )
    assert notes(tmp_path) == {"insights": None}
    assert len(units_of(tmp_path, "anyone").unclaimed) == 1
    store = ArtifactStore(tmp_path)
    per_user(store, ["ann"])
    assert (store.stats.hits, store.stats.misses) == (1, 0)
    assert stages(tmp_path, "ann") == {"insights": 1} and stages(tmp_path, "ben") == {}


def test_a_lost_key_makes_every_record_anybodys(tmp_path: Path) -> None:
    per_user(ArtifactStore(tmp_path), ["ann"])
    (tmp_path / "pseudonyms.key").unlink()
    found = units_of(tmp_path, "ann")
    assert found.stages() == {} and len(found.unclaimed) == 1
    per_user(ArtifactStore(tmp_path), ["ann"])
    assert stages(tmp_path, "ann") == {"insights": 1}


def test_what_killed_writers_left_is_found_and_removed(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    per_user(store, ["ann", "ben"])
    (path,) = [p for p in units_of(tmp_path, "ann").claimed]
    whole = path.read_bytes()
    for number, content in enumerate([whole, whole[:50], b""]):
        path.with_name(f"{path.name}.partial-1-{number}").write_bytes(content)
    found = units_of(tmp_path, "ann")
    assert (len(found.claimed), len(found.unclaimed)) == (2, 2)
    found.remove()
    assert stages(tmp_path, "ann") == {} and stages(tmp_path, "ben") == {"insights": 1}
    assert not list(tmp_path.rglob("*partial*"))


def test_a_note_changes_neither_key_nor_value(tmp_path: Path) -> None:
    value = {"h": np.arange(3.0)}
    assert encode(value, {"key": "k", "who": []}) != encode(value)
    store = ArtifactStore(tmp_path)
    first = store.get_or_compute("fit", 1, lambda: value, about=["ann"])
    again = store.get_or_compute("fit", 1, lambda: None, about=["ben"])
    assert (first["h"] == again["h"]).all() and store.stats.hits == 1


def _mark(folder: Path, found: Any) -> None:
    found.put((Pseudonyms(folder).mark, Pseudonyms(folder).of("ann")))


def test_processes_that_start_at_once_agree_on_the_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    workers = [context.Process(target=_mark, args=(tmp_path, found)) for _ in range(6)]
    for worker in workers:
        worker.start()
    said = {found.get() for _ in workers}
    for worker in workers:
        worker.join()
    assert len(said) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pseudonyms.key"]


def test_a_pseudonym_tells_store_and_purpose_apart_and_no_name(tmp_path: Path) -> None:
    one, other = Pseudonyms(tmp_path / "one"), Pseudonyms(tmp_path / "other")
    assert one.of("ann") == Pseudonyms(tmp_path / "one").of("ann") != one.of("Ann")
    assert one.of("ann") != other.of("ann") and "ann" not in one.of("ann")
    assert one.owns(one.of("ann")) and not one.owns(other.of("ann"))
    assert is_pseudonym(other.of("ann")) and not is_pseudonym("user:1")
    assert one.hashed("profile", "ann") not in one.of("ann")


@pytest.mark.parametrize("content", [b"", b"abc", b"Z" * 64, b"\xff" * 64, json.dumps({}).encode()])
def test_a_damaged_key_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pseudonyms.key").write_bytes(content)
    with pytest.raises(UserError, match="pseudonyms.key is no key"):
        Pseudonyms(tmp_path).of("ann")
