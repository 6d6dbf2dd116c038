from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import root
from chameleon_lib.profiles import directory
from chameleon_lib.profiles.directory import ProfileDirectory, locked, remove_leftovers
from chameleon_lib.profiles.files import read_content

ARRAYS = {"p": np.ones((2, 3), np.float32)}


@pytest.mark.parametrize("mode", ["kill", "together"])
def test_killed_and_concurrent_writers_lose_and_corrupt_nothing(mode: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.profiles.writers", mode, str(tmp_path)],
        cwd=root(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("20 kills" if mode == "kill" else "8 writers") in done.stdout


def test_what_a_killed_writer_left_goes_with_the_next_write_and_with_the_profile(
    tmp_path: Path,
) -> None:
    store = ProfileDirectory(tmp_path)
    path = store.put("alice", {"n": 1}, ARRAYS)
    orphan = path.with_name(f"{path.stem}-{'0' * 16}.safetensors")
    partial = path.with_name(f"{path.name}.partial-1-ab")
    for leave in (lambda: store.put("alice", {"n": 2}, ARRAYS), lambda: store.delete("alice")):
        orphan.write_bytes(b"directions")
        partial.write_bytes(b"directions")
        leave()
        assert not orphan.exists() and not partial.exists()
    assert [file.name for file in path.parent.iterdir()] == ["lock"]


def test_leftovers_of_others_are_not_the_tensors_of_a_damaged_profile(tmp_path: Path) -> None:
    """A damaged JSON may be restored from a backup; its tensors must still be there then."""
    store = ProfileDirectory(tmp_path)
    path = store.put("alice", {"n": 1}, ARRAYS)
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with locked(path.parent):
        assert remove_leftovers(path.parent) == 0
    path.write_bytes(whole)
    assert (store.get("alice").tensors["p"] == 1).all()


def test_a_reader_that_met_a_writer_between_its_two_reads_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ProfileDirectory(tmp_path)
    store.put("alice", {"n": 1}, ARRAYS)
    writes = [2, 3]

    def read_and_be_overtaken(path: Path) -> dict[str, object]:
        content = read_content(path)
        if writes:
            number = writes.pop(0)
            monkeypatch.setattr(directory, "read_content", read_content)
            store.put("alice", {"n": number}, {"p": np.full((2, 3), number, np.float32)})
            monkeypatch.setattr(directory, "read_content", read_and_be_overtaken)
        return content

    monkeypatch.setattr(directory, "read_content", read_and_be_overtaken)
    stored = store.get("alice")
    assert stored.content["n"] == 3 and (stored.tensors["p"] == 3).all()


def test_a_refused_write_changes_nothing(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise UserError("no")

    store = ProfileDirectory(tmp_path)
    path = store.put("alice", {"n": 1}, ARRAYS, check=refuse)  # nothing there to be refused
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(UserError):
        store.put("alice", {"n": 2}, ARRAYS, check=refuse)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
