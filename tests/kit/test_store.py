from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chameleon_lib.kit.paths import root
from chameleon_lib.kit.records import encode
from chameleon_lib.kit.sources import SourceTree
from chameleon_lib.kit.store import ArtifactStore


def records(store: ArtifactStore) -> list[Path]:
    return sorted(store.root.rglob("*.unit"))


def test_a_value_is_computed_once_and_found_by_a_later_store(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, float]:
        calls.append(1)
        return {"loss": 0.1}

    first = ArtifactStore(tmp_path).get_or_compute("fit", {"k": 10}, compute)
    store = ArtifactStore(tmp_path)
    assert store.get_or_compute("fit", {"k": 10}, compute) == first == {"loss": 0.1}
    assert (len(calls), store.stats.hits, store.stats.misses) == (1, 1, 0)


def test_a_fresh_value_has_the_types_of_a_stored_one(tmp_path: Path) -> None:
    fresh = ArtifactStore(tmp_path).get_or_compute("fit", 1, lambda: {"layers": (1, 2)})
    stored = ArtifactStore(tmp_path).get_or_compute("fit", 1, lambda: None)
    assert fresh == stored == {"layers": [1, 2]}


def test_tensors_come_back_with_type_shape_and_every_bit(tmp_path: Path) -> None:
    wide = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    value: dict[str, Any] = {
        "json": {"layers": [0, 2], "nan": None},
        "tensors": {
            "bf16": torch.tensor([1.0, 2.5], dtype=torch.bfloat16),
            "transposed": wide.T,
            "view": wide[1:, :2],
            "array": np.arange(6, dtype=np.int16).reshape(2, 3).T,
            "scalar": torch.tensor(3.0, dtype=torch.float64),
        },
    }
    loaded = ArtifactStore(tmp_path).get_or_compute("fit", 1, lambda: value)
    assert loaded["json"] == value["json"]
    for name, expected in value["tensors"].items():
        assert type(loaded["tensors"][name]) is type(expected)
        assert loaded["tensors"][name].dtype == expected.dtype
        assert loaded["tensors"][name].shape == expected.shape
        assert (loaded["tensors"][name] == expected).all()


def test_numpy_values_need_no_torch_and_keep_their_layout(tmp_path: Path) -> None:
    value = {"h": np.arange(6.0).reshape(2, 3).T, "n": np.array(7, dtype=np.int8)}
    loaded = ArtifactStore(tmp_path).get_or_compute("embed", 1, lambda: value)
    assert isinstance(loaded["h"], np.ndarray) and loaded["h"].shape == (3, 2)
    assert (loaded["h"] == value["h"]).all()
    assert loaded["n"].shape == () and loaded["n"].dtype == np.int8


def test_equal_values_give_equal_bytes_whatever_their_order() -> None:
    a, b = np.zeros(2, dtype=np.float32), np.ones(3)
    assert encode({"a": a, "b": b}) == encode({"b": b, "a": a})
    assert encode({"x": 1, "y": 2}) == encode({"y": 2, "x": 1})


def test_a_value_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        ArtifactStore(tmp_path).get_or_compute("fit", 1, lambda: {"model": object()})
    assert not list(tmp_path.rglob("*partial*"))


def library(base: Path, body: str) -> SourceTree:
    package = base / "chameleon_lib"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "fit.py").write_text("from chameleon_lib.edit import f\n", encoding="utf-8")
    (package / "edit.py").write_text(body, encoding="utf-8")
    return SourceTree(base)


def test_the_key_follows_stage_inputs_and_code_behind_the_module_but_no_comment(
    tmp_path: Path,
) -> None:
    def key(body: str, stage: str = "fit", inputs: object = 1) -> str:
        sources = library(tmp_path, body)
        return ArtifactStore(tmp_path, sources=sources).key(stage, inputs, ["chameleon_lib.fit"])

    same = key("def f():\n    return 1\n")
    assert same == key('def f():  # why\n    """New words."""\n    return 1\n')
    others = {key("def f():\n    return 2\n"), key("def f():\n    return 1\n", "edit")}
    others.add(key("def f():\n    return 1\n", inputs=2))
    assert same not in others and len(others) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_record_is_computed_again_and_a_sentence_says_so(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    ArtifactStore(tmp_path).get_or_compute("fit", 1, lambda: {"theta": np.ones(4)})
    (path,) = records(ArtifactStore(tmp_path))
    whole = path.read_bytes()
    bad = {"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[:30], "empty": b""}[damage]
    path.write_bytes(bad)
    store = ArtifactStore(tmp_path)
    value = store.get_or_compute("fit", 1, lambda: {"theta": np.ones(4)})
    assert (value["theta"] == 1).all() and path.read_bytes() == whole
    assert store.stats.corrupted == store.stats.misses == 1
    assert "is damaged" in caplog.text and path.name in caplog.text


def double(batch: list[int]) -> list[dict[str, int]]:
    return [{"value": 2 * unit} for unit in batch]


def test_map_computes_only_what_is_missing_and_keeps_the_order(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    def key_of(unit: int) -> int:
        return unit

    store.map("fit", [3, 1], double, inputs={}, key_of=key_of)
    asked: list[list[int]] = []

    def spy(batch: list[int]) -> list[dict[str, int]]:
        asked.append(batch)
        return double(batch)

    values = store.map("fit", [5, 3, 4, 1, 5], spy, inputs={}, key_of=key_of, batch_size=2)
    assert [value["value"] for value in values] == [10, 6, 8, 2, 10]
    assert asked == [[5], [4]]
    assert (store.stats.hits, store.stats.misses) == (2, 4)


def test_map_refuses_a_batch_with_too_few_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 items gave 1 values"):
        ArtifactStore(tmp_path).map(
            "fit", [1, 2, 3], lambda _: [0], inputs=0, key_of=lambda unit: unit
        )
    assert not list(tmp_path.rglob("*.unit"))


def test_under_the_driver_progress_goes_to_its_file_and_not_to_the_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "progress.json"
    monkeypatch.setenv("CHAMELEON_PROGRESS", str(target))
    monkeypatch.setattr("chameleon_lib.kit.progress._INTERVAL", 0.0)
    seen: list[str] = []

    def look(batch: list[int]) -> list[int]:
        seen.append(target.read_text(encoding="utf-8") if target.exists() else "")
        return batch

    store = ArtifactStore(tmp_path / "units")
    store.map("fit", [1, 2, 3], look, inputs=0, key_of=int, batch_size=1, label="users")
    assert "users 1/3" in seen[1] and "left" in seen[1] and "users 2/3" in seen[2]
    assert not target.exists()
    assert capfd.readouterr() == ("", "")


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from chameleon_lib.kit.store import ArtifactStore

folder, pause = Path(sys.argv[1]), float(sys.argv[2])

def compute(batch):
    time.sleep(pause)
    with (folder / "log").open("a") as log:
        log.write("".join(f"{unit}\\n" for unit in batch))
    spread = np.arange(4.0) / (1 + len(batch))  # depends on the batch, as padding does
    return [{"json": {"unit": unit}, "tensors": {"h": spread * unit}} for unit in batch]

ArtifactStore(folder / "units").map(
    "fit", range(20), compute, inputs={"k": 1}, key_of=lambda unit: unit, batch_size=3,
    modules=["chameleon_lib.kit.hashing"],
)
"""


def test_a_run_killed_by_kill_9_resumes_with_what_is_missing_and_equal_bytes(
    tmp_path: Path,
) -> None:
    def start(folder: Path, pause: float) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        env = os.environ | {"PYTHONPATH": str(root())}
        words = [sys.executable, "-c", WORKER, str(folder), str(pause)]
        return subprocess.Popen(words, env=env)

    def content(folder: Path) -> dict[str, bytes]:
        files = sorted((folder / "units").rglob("*.unit"))
        return {path.name: path.read_bytes() for path in files}

    killed, straight = tmp_path / "killed", tmp_path / "straight"
    worker = start(killed, 0.25)
    deadline = time.monotonic() + 60
    while len(content(killed)) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    before = content(killed)
    assert 6 <= len(before) < 20
    (killed / "log").unlink()
    assert start(killed, 0).wait() == 0
    assert start(straight, 0).wait() == 0
    computed = (killed / "log").read_text(encoding="utf-8").split()
    assert len(computed) == len(set(computed)) == 20 - len(before)
    assert content(killed) == content(straight) and len(content(killed)) == 20
    assert not list(killed.rglob("*partial*"))
