from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.serving.pseudonyms import Pseudonyms, is_pseudonym


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
