"""The server as a process of its own: bad requests, kill -9, and the README's three commands."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.backbones import load_backbone
from chameleon_lib.demo import checkpoint
from chameleon_lib.kit.paths import root
from workshop.load import (
    NEW_TOKENS,
    STRONG,
    Crowd,
    bad_requests,
    crowd_of,
    equality,
    malformed,
    running,
    stand_in_store,
)

README = (root() / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:python -m chameleon_lib (?:fit|token) |curl ).*$", README, re.M)
USERS, PROMPTS = 4, ["A bomb saves a riddle in Oslo\nYour answer:", "A robot feels\nYour answer:"]


def test_a_server_survives_bad_requests_and_kill_9_loses_nothing(tmp_path: Path) -> None:
    model = str(checkpoint("decoder", "0"))
    backbone = load_backbone(model)
    store = stand_in_store(tmp_path / "store", backbone, USERS, STRONG)
    crowd: Crowd = crowd_of(store, USERS, PROMPTS)

    def alone(user: int, number: int) -> str:
        row = store.row(f"user{user}")
        assert row is not None
        prompt = [crowd.prompt(user, number)]
        return backbone.generate(prompt, max_new_tokens=NEW_TOKENS, edit=row.edit)[0]

    with running(store.root, model, tmp_path) as server:  # ended by kill -9
        assert equality(crowd, server, alone, 2) == {"users": 4, "answers": 8, "equal": 8}
        bad = malformed(crowd, server, store.root, alone, 60)
    assert bad["no clear 4xx"] == [] and bad["good ones answered otherwise"] == 0
    assert bad["server alive"] and bad["store unchanged"]
    assert bad["opened outside store and code"] == {}
    with running(store.root, model, tmp_path) as server:
        assert equality(crowd, server, alone, 1)["equal"] == USERS


def test_bad_requests_are_of_all_kinds_and_repeat() -> None:
    made = [list(zip(range(200), bad_requests("m", random.Random(1)), strict=False))
            for _ in range(2)]  # fmt: skip
    assert made[0] == made[1] and len({kind for _, (kind, *_) in made[0]}) == 11


def test_the_readme_leads_in_three_commands_from_a_table_to_an_answer() -> None:
    assert [line.split()[3 if "python" in line else 0] for line in COMMANDS] == [
        "fit", "token", "curl",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_three_commands_run_as_they_stand(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed here")
    (tmp_path / "chameleon_lib").symlink_to(root() / "chameleon_lib")  # as from the checkout
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fit, serve, curl = COMMANDS
    serve = serve.replace("--store my_store &", f"--store my_store --port {port} &")
    curl = curl.replace(":8080/", f":{port}/")
    assert f"--port {port}" in serve and f":{port}/" in curl
    beside = {
        **os.environ, "PYTHONPATH": str(root()), "CHAMELEON_CACHE": str(tmp_path / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    how: dict[str, Any] = {"cwd": tmp_path, "env": beside, "text": True}
    subprocess.run(["bash", "-c", fit], check=True, stdout=subprocess.DEVNULL, **how)
    server = subprocess.Popen(["bash", "-c", f"{serve} wait"], start_new_session=True, **how)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        found = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, **how)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    entry = json.loads(found.stdout)
    assert entry["choices"][0]["text"] and entry["explanation"].endswith(".")
    assert re.search(r"-(own|group-\d{4}|base)$", entry["system_fingerprint"])


def _wait_for(url: str, server: subprocess.Popen[str]) -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the server ended with {server.returncode}")
