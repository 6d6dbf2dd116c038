"""A forgotten user's exports: gone from every serving folder that is known or named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chameleon_lib import cli
from chameleon_lib.errors import UserError
from chameleon_lib.serving.files import (
    KNOWN,
    known_folders,
    model_name,
    remember_folder,
    remove_model,
    versions,
)
from chameleon_lib.serving.store import ProfileStore
from tests.serving.small import USERS, profile


def _exports(root: Path) -> tuple[ProfileStore, Path, dict[str, bytes]]:
    """A store of two users and a group, a serving folder, and the bytes each export holds."""
    store = ProfileStore(root / "store")
    out = root / "out"
    store.save(USERS[0], profile(0))
    store.save(USERS[1], profile(1, USERS[1:2]))
    store.save("movies", profile(2, USERS))
    remember_folder(root / "store", out)
    held = {}
    for at, info in enumerate(store.list()):
        model = model_name(info.group, info.id)
        held[model] = f"directions {at} of {model}".encode()
        for number in (1, 2):
            _put(out / f"{model}-v{number:04d}", held[model])
        _put(out / f".{model}-v0003.partial-7-ab", held[model])
    return store, out, held


def _put(folder: Path, payload: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(payload)


def _holding(root: Path, needle: bytes) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and needle in path.read_bytes()]


def _own(store: ProfileStore) -> str:
    return model_name("", store.info(USERS[0]).id)


def test_forgetting_removes_every_version_and_what_killed_exports_left(tmp_path: Path) -> None:
    store, out, held = _exports(tmp_path)
    own = _own(store)
    assert len(_holding(tmp_path, held[own])) == 3
    done = store.forget(USERS[0])
    assert len(done.exports) == 3 and not _holding(tmp_path, held[own])
    assert not _holding(out, own.encode()) and not list(out.glob(f"*{own}*"))
    assert all(len(_holding(out, held[model])) == 3 for model in held if model != own)
    assert {path.name for path in done.stale_exports} >= {"g-movies-v0001", "g-movies-v0002"}
    assert {"g-movies"} == {path.name.strip(".")[:8] for path in done.stale_exports}
    again = store.forget(USERS[0])
    assert again.nothing and again.stale_exports == done.stale_exports


def test_the_exports_of_a_profile_that_was_deleted_before_go_too(tmp_path: Path) -> None:
    store, _, held = _exports(tmp_path)
    own = _own(store)
    store.delete(USERS[0])
    assert len(store.forget(USERS[0]).exports) == 3 and not _holding(tmp_path, held[own])


def test_a_call_that_was_killed_between_exports_and_profile_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, held = _exports(tmp_path)
    own = _own(store)
    rmtree, left = shutil.rmtree, [1]

    def dying(path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        store.forget(USERS[0])
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert store.info(USERS[0]).n_pairs and _holding(tmp_path, held[own])
    store.forget(USERS[0])
    assert not _holding(tmp_path, held[own])


def test_a_folder_that_was_moved_is_told_and_cleaned_where_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out, held = _exports(tmp_path)
    own, moved = _own(store), tmp_path / "moved"
    out.rename(moved)
    words = ["profiles", "forget", USERS[0], "--store", str(tmp_path / "store")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"Profiles were exported into {out}, which is not there" in said
    assert _holding(moved, held[own])
    assert cli.main([*words, "--serving", str(moved)]) == 0
    said = capsys.readouterr().out
    assert "Removed 3 exports; restart the servers" in said and not _holding(moved, held[own])
    assert "replace their exports" in said and "g-movies-v0002" in said
    assert cli.main([*words, "--serving", str(tmp_path / "nowhere")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_folders_are_remembered_once_and_names_are_told_apart(tmp_path: Path) -> None:
    store, out, _ = _exports(tmp_path)
    remember_folder(tmp_path / "store", out)
    remember_folder(tmp_path / "store", tmp_path / "b")
    assert known_folders(tmp_path / "store") == [tmp_path / "b", out]
    _put(out / "g-movies-v0001-v0001", b"another")  # a group named 'movies-v0001'
    assert all("v0001-v0001" not in path.name for path in versions([out], "g-movies"))
    assert remove_model("g-nobody", [out, tmp_path / "none"]) == []


@pytest.mark.parametrize("content", ["{", '{"folders": 3}', "[]"])
def test_a_damaged_list_is_refused_before_anything_is_removed(content: str, tmp_path: Path) -> None:
    store, _, held = _exports(tmp_path)
    (tmp_path / "store" / KNOWN).write_text(content)
    with pytest.raises(UserError, match="serving.json cannot be read .*--serving"):
        store.forget(USERS[0])
    assert len(_holding(tmp_path, held[_own(store)])) == 3
