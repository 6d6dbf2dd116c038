from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from chameleon_lib.backbones import load_backbone, revisions
from chameleon_lib.backbones.revisions import Revision, loaded_files, record, tell, told
from chameleon_lib.errors import UserError
from tests.backbones.tiny import PROMPTS, save

MODEL = "someone/tiny-mistral"
FIRST, SECOND = "a1" * 20, "b2" * 20


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache on a machine without network, as HF_HOME and HF_HUB_OFFLINE make it."""
    cache = tmp_path / "home" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "paper" / revisions.LOCK_NAME


def publish(hub: Path, commit: str, seed: int, branch: str = "main") -> Path:
    """A commit in the cache, as a download leaves it, with a branch that points to it."""
    folder = hub / f"models--{MODEL.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    save(snapshot, "mistral", seed)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    return snapshot


def entries(lock: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(lock.read_text(encoding="utf-8"))[MODEL]
    return found


def test_the_first_load_writes_the_commit_that_the_cache_tells(hub: Path, lock: Path) -> None:
    snapshot = publish(hub, FIRST, 0)
    backbone = load_backbone(MODEL, lock=lock)
    found = entries(lock)
    assert found["commit"] == FIRST and found["asked"] is None and found["earlier"] == []
    assert len(str(found["config_sha256"])) == len(str(found["files_sha256"])) == 64
    assert backbone.name == "tiny-mistral" and list(lock.parent.iterdir()) == [lock]
    text = lock.read_text(encoding="utf-8")
    # What other programs leave in the cache is not part of the model.
    (snapshot / "pytorch_model.bin").write_bytes(b"the same in another format")
    (snapshot / "params.json").write_text("{}")
    again = load_backbone(MODEL, lock=lock)
    assert again.fingerprint == backbone.fingerprint
    assert lock.read_text(encoding="utf-8") == text


def test_a_moved_branch_is_told_once_and_kept_in_the_record(
    hub: Path, lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(hub, FIRST, 0)
    old = load_backbone(MODEL, lock=lock)
    assert caplog.messages == []
    publish(hub, SECOND, 1)
    with caplog.at_level(logging.WARNING):
        new = load_backbone(MODEL, lock=lock)
    [sentence] = caplog.messages
    assert FIRST[:12] in sentence and SECOND[:12] in sentence and f"pin {FIRST}" in sentence
    assert new.fingerprint != old.fingerprint
    found = entries(lock)
    assert found["commit"] == SECOND and found["earlier"] == [FIRST]
    assert told(lock) == [(f"revision {MODEL}", f"{SECOND[:12]} (earlier outputs: {FIRST[:12]})")]
    caplog.clear()
    load_backbone(MODEL, lock=lock)
    assert caplog.messages == []


@pytest.mark.parametrize("pin", [FIRST, "v1"])
def test_a_pin_goes_back_and_never_joins_outputs_of_another_commit(
    pin: str, hub: Path, lock: Path
) -> None:
    publish(hub, FIRST, 0, branch="v1")
    publish(hub, SECOND, 1)
    pinned = load_backbone(MODEL, revision=pin)
    newest = load_backbone(MODEL, lock=lock)
    expected = [pinned.generate(PROMPTS, max_new_tokens=4), newest.fingerprint]
    assert expected[0] != newest.generate(PROMPTS, max_new_tokens=4)
    before = lock.read_bytes()
    with pytest.raises(UserError, match=f"this run pins '{pin}': pin {SECOND}, or move"):
        load_backbone(MODEL, revision=pin, lock=lock)
    assert lock.read_bytes() == before
    other = lock.with_name("other.json")
    assert load_backbone(MODEL, revision=pin, lock=other).fingerprint == pinned.fingerprint
    assert entries(other)["commit"] == FIRST and entries(other)["asked"] == pin


def test_damaged_files_of_the_same_commit_are_refused(hub: Path, lock: Path) -> None:
    publish(hub, FIRST, 0)
    load_backbone(MODEL, lock=lock)
    before = lock.read_bytes()
    publish(hub, FIRST, 1)
    with pytest.raises(UserError, match="not those that .*revisions.json records"):
        load_backbone(MODEL, lock=lock)
    assert lock.read_bytes() == before


def test_what_is_not_there_is_told_and_leaves_no_record(hub: Path, lock: Path) -> None:
    with pytest.raises(UserError, match=f"'{MODEL}' cannot be loaded .* while online"):
        load_backbone(MODEL, lock=lock)
    snapshot = publish(hub, FIRST, 0)
    with pytest.raises(UserError, match="at revision 'v9' cannot be loaded"):
        load_backbone(MODEL, revision="v9", lock=lock)
    with pytest.raises(UserError, match="is a folder, which has no revisions"):
        load_backbone(snapshot, revision="v1")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(MODEL, lock=lock)
    assert not lock.parent.exists()


def test_an_unknown_commit_stays_unknown(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    nothing = Revision(MODEL, None, None, "c" * 64)
    record(lock, nothing)
    assert entries(lock)["commit"] is None and told(lock) == [(f"revision {MODEL}", "unknown")]
    tell(lock, nothing)
    assert caplog.messages == []
    tell(lock, replace(nothing, commit=FIRST))
    assert "made with unknown" in caplog.text


def test_a_lock_file_of_another_shape_is_refused(lock: Path) -> None:
    lock.parent.mkdir(parents=True)
    for text in ("no json", "[]", '{"a": 1}', '{"a": {"commit": "x"}}'):
        lock.write_text(text)
        with pytest.raises(UserError, match="is not a record of model revisions; delete it"):
            told(lock)


def test_the_files_of_a_sharded_model_are_those_of_its_index(tmp_path: Path) -> None:
    names = ("config.json", "one.safetensors", "two.safetensors", "three.safetensors", "notes.txt")
    for name in names:
        (tmp_path / name).write_text(name)
    index = {"weight_map": {"a": "two.safetensors", "b": "one.safetensors", "c": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = [path.name for path in loaded_files(tmp_path)]
    assert found == ["config.json", "one.safetensors", "two.safetensors"]
