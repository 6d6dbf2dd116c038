"""What a run needs from a machine: one sentence for everything missing, nothing for the demo."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib import cli
from chameleon_lib.errors import UserError
from chameleon_lib.kit import needs
from chameleon_lib.kit.cost import Scope
from chameleon_lib.kit.needs import Device, Machine, NotReady
from chameleon_lib.kit.plan import Run, plan_lines
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.kit.wheels import WHEELS
from tests.kit.checkout import notebook

MISTRAL, T5 = PROFILES["paper"].backbones
LARGE = Machine(
    device=lambda: Device(1 << 45),
    ram=lambda: 1 << 45,
    cached=lambda _: False,
    token=lambda: True,
    reachable=lambda: True,
    free=lambda _: 1 << 50,
)


def said(machine: Machine, name: str = "paper") -> tuple[list[str], list[str]]:
    return needs.missing(Scope(PROFILES[name]), ["01", "99"], machine)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of this machine's hub takes part."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH",
                 "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / "outputs"))


def test_every_missing_thing_is_one_sentence_that_names_it() -> None:
    bare = Machine(
        device=lambda: Device(why="torch finds no CUDA device"),
        cached=lambda _: False,
        token=lambda: False,
        reachable=lambda: False,
        free=lambda _: 10**9,
    )
    stops, warns = said(bare)
    starts = (
        "Profile paper needs a GPU, and torch finds no CUDA device:",
        f"Profile paper has to download {MISTRAL}, {T5}, sentence-transformers/all-MiniLM-L6-v2, "
        "and https://huggingface.co cannot be reached:",
        f"{MISTRAL} asks for an access token:",
        "The models of profile paper take 59.1 GB, and ",
    )
    assert len(stops) == len(starts)
    for sentence, start in zip(stops, starts, strict=True):
        assert sentence.startswith(start) and sentence.endswith(".") and "\n" not in sentence
    assert [w.partition(" may grow")[0] for w in warns] == ["The artifact store"]


def test_a_small_gpu_is_told_what_it_cannot_hold() -> None:
    stops, _ = said(replace(LARGE, device=lambda: Device(16 << 30)))
    assert [s.partition(" needs about ")[0] for s in stops] == [MISTRAL, T5]
    stops, warns = said(replace(LARGE, device=lambda: Device(48 << 30)))
    assert stops == [] and [w.partition(", and asking")[0] for w in warns] == [
        f"Training the rivals (DPO, ALOE) of {T5}"
    ]
    assert said(replace(LARGE, device=lambda: Device(80 << 30))) == ([], [])


def test_the_demo_asks_for_nothing_and_looks_at_nothing() -> None:
    def never(*_: object) -> Any:
        raise AssertionError("the machine was looked at")

    blind = Machine(never, never, never, never, never)
    assert said(blind, "demo") == ([], []) and said(blind, "demo-data") == ([], [])


def test_a_laptop_needs_the_network_for_what_is_not_cached_and_no_gpu() -> None:
    no_net = replace(LARGE, reachable=lambda: False, device=lambda: Device(why="none"))
    stops, _ = said(no_net, "laptop")
    assert len(stops) == 1 and "cannot be reached" in stops[0]
    assert said(replace(no_net, cached=lambda _: True), "laptop") == ([], [])
    only = replace(no_net, cached=lambda name: "Qwen" not in name)
    assert "has to download Qwen/Qwen2.5-0.5B-Instruct, and" in said(only, "laptop")[0][0]


def test_a_laptop_is_told_what_its_memory_cannot_hold() -> None:
    qwen, t5 = PROFILES["laptop"].backbones
    no_gpu = replace(LARGE, device=lambda: Device(why="none"))
    assert said(no_gpu, "laptop") == ([], [])
    stops, warns = said(replace(no_gpu, ram=lambda: 16 << 30), "laptop")
    assert stops == [] and [w.partition(", and asking")[0] for w in warns] == [
        f"Training the rivals (DPO, ALOE) of {qwen}"
    ]
    assert warns[0].endswith("of memory, and there are 17.2 GB: it may not fit.")
    stops, _ = said(replace(no_gpu, ram=lambda: 2 << 30), "laptop")
    assert [s.partition(" needs about ")[0] for s in stops] == [qwen, t5]
    assert all(s.endswith("memory, and there are 2.15 GB: take a larger machine.") for s in stops)
    # A GPU is used where there is one; a system that does not tell is not held against it.
    assert "of GPU memory" in said(replace(no_gpu, device=lambda: Device(2 << 30)), "laptop")[0][0]
    assert said(replace(no_gpu, ram=lambda: 0), "laptop") == ([], [])
    assert needs.ram_bytes() > 1 << 28


@pytest.mark.parametrize("name", ["laptop-4bit", "paper-4bit"])
def test_four_bit_weights_are_refused_without_their_packages_or_a_gpu(name: str) -> None:
    lacking = replace(LARGE, package=lambda package: package != "bitsandbytes")
    stops, _ = said(lacking, name)
    assert len(stops) == 1 and stops[0].startswith(
        f"Profile {name} loads 4-bit weights, and bitsandbytes is not installed here: run 'pip "
    )
    bare = replace(LARGE, device=lambda: Device(why="none"), package=lambda _: True)
    stops, _ = said(bare, name)
    assert len(stops) == 1 and stops[0].startswith(f"Profile {name} needs a GPU, and none:")
    assert said(replace(LARGE, package=lambda _: True), name) == ([], [])


def test_the_hubs_offline_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stops, _ = said(LARGE, "laptop")
    assert len(stops) == 1 and "HF_HUB_OFFLINE forbids it" in stops[0]


def snapshot(name: str, *files: str, index: object = None) -> None:
    folder = needs.hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).write_text("x", encoding="utf-8")
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_a_model_counts_as_cached_when_its_last_shard_is_there() -> None:
    assert needs.in_cache("demo:decoder:0") and not needs.in_cache(T5)
    snapshot(T5, "config.json")
    assert not needs.in_cache(T5)
    weights = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    snapshot(T5, "model-1.safetensors", index=weights)
    assert not needs.in_cache(T5)
    snapshot(T5, "model-2.safetensors")
    assert needs.in_cache(T5)
    snapshot("me/one", "config.json", "pytorch_model.bin")
    assert needs.in_cache("me/one")
    snapshot("me/bad", "config.json", index=["no map"])
    assert not needs.in_cache("me/bad")


def test_a_token_is_only_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not needs.has_token()
    monkeypatch.setenv("HF_TOKEN", "set for the test")
    assert needs.has_token()
    monkeypatch.delenv("HF_TOKEN")
    needs.hub_home().mkdir(parents=True)
    (needs.hub_home() / "token").write_text("stored for the test", encoding="utf-8")
    assert needs.has_token()


class _Refuses(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[str]:
    """A hub that refuses: it is there."""
    http = HTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


def test_any_answer_means_that_the_hub_is_there(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert needs.hub_answers()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not needs.hub_answers()
    monkeypatch.setenv("HF_ENDPOINT", "no address")
    assert not needs.hub_answers()


def test_a_run_is_refused_with_a_line_each_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = replace(LARGE, device=lambda: Device(why="none is here"), reachable=lambda: False)
    monkeypatch.setattr(needs, "Machine", lambda: bare)
    assert cli.main(["run", "--profile", "paper", "--only", "01", "--data", str(tmp_path)]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "needs a GPU" in lines[0] and "cannot be reached" in lines[1]
    assert not (tmp_path / "cache").exists() and not (tmp_path / "outputs").exists()
    with pytest.raises(NotReady) as refused:
        needs.require(Scope(PROFILES["paper"]), ["01"])
    assert isinstance(refused.value, UserError) and refused.value.exit_code == 3


def test_a_plan_names_what_is_missing_and_what_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(needs, "Machine", lambda: LARGE)
    assert cli.main(["plan", "--profile", "laptop", "--only", "01", "--tflops", "50"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("01  run") and "at 50 TFLOP/s" in out
    assert out.endswith(
        "Missing on this machine:\n  The users: name the folder of the LaMP files with --data.\n"
    )
    assert cli.main(["plan", "--only", "99"]) == 0
    assert capsys.readouterr().out.endswith("Missing on this machine:\n  nothing\n")


def test_a_notebook_whose_model_was_not_fetched_is_left_out_in_one_sentence(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "notebooks"
    notebook(folder, "01_table", ["x = 1"])
    path = notebook(folder, "02_real", ["x = 1"])
    content = json.loads(path.read_text(encoding="utf-8"))
    content["metadata"]["chameleon"] = {"models": ["smollm2"]}
    path.write_text(json.dumps(content), encoding="utf-8")

    def run(*only: str) -> Run:
        return Run("demo", only=only, folder=folder)

    sentence = (
        "02_real is left out, for it reads SmolLM2-135M-Instruct: bring it with 'python -m "
        "chameleon_lib models get smollm2'."
    )
    assert [one.number for one in run().selected] == ["01"] and run().left_out == [sentence]
    assert sentence in plan_lines(run())
    with pytest.raises(NotReady) as caught:
        run("02")
    assert str(caught.value) == sentence and caught.value.exit_code == 3
    file = WHEELS["smollm2"].path
    file.parent.mkdir(parents=True)
    file.touch()
    assert len(run().selected) == 2 and run().left_out == []
