from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import root
from chameleon_lib.serving.files import ProfileFiles, Stored


def _profile(number: int) -> Stored:
    return Stored({"n": number}, {"p": np.full((2, 3), number, np.float32)})


@pytest.mark.parametrize("mode", ["kill", "together"])
def test_killed_and_concurrent_writers_lose_and_corrupt_nothing(mode: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.writers", mode, str(tmp_path)],
        cwd=root(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("20 kills" if mode == "kill" else "8 writers") in done.stdout


def test_what_a_killed_writer_left_goes_with_the_next_write_and_with_the_profile(
    tmp_path: Path,
) -> None:
    store = ProfileFiles(tmp_path)
    path = store.put("alice", _profile(1))
    partial = path.with_name(f"{path.name}.partial-1-ab")
    for leave in (lambda: store.put("alice", _profile(2)), lambda: store.delete("alice")):
        partial.write_bytes(b"directions")
        leave()
        assert not partial.exists()
    assert [file.name for file in path.parent.iterdir()] == ["lock"]


def test_a_refused_write_changes_nothing(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise UserError("no")

    store = ProfileFiles(tmp_path)
    path = store.put("alice", _profile(1), check=refuse)  # nothing there to be refused
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(UserError):
        store.put("alice", _profile(2), check=refuse)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_store_that_another_writer_begins_meanwhile_is_no_store_without_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key was not there when it was looked for; then another process made it and a profile."""
    store = ProfileFiles(tmp_path)
    looked_for = ProfileFiles.paths

    def meanwhile(self: ProfileFiles) -> Iterator[Path]:
        monkeypatch.setattr(ProfileFiles, "paths", looked_for)
        ProfileFiles(tmp_path).put("bob", _profile(1))
        return looked_for(self)

    monkeypatch.setattr(ProfileFiles, "paths", meanwhile)
    store.put("alice", _profile(2))
    assert [store.get(key).content["n"] for key in ("bob", "alice")] == [1, 2]
    (tmp_path / "pseudonyms.key").unlink()
    with pytest.raises(UserError, match="restore it from a backup"):
        store.path_of("alice")
