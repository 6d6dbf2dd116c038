"""Other people's runtimes, each in a virtual environment of its own that also sees the kit's.

What an environment installs lies before the kit's packages, so it can hold another version of one.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

from chameleon_lib.kit.paths import root
from tests.runtimes.jobs import ANSWER

VARIABLE = "CHAMELEON_RUNTIMES"
# Compiling llama-cpp-python takes about ten minutes of two idle cores; the others are wheels.
RUNTIMES: dict[str, list[str]] = {
    "transformers4": ["transformers==4.57.6"],
    "transformers5": ["transformers==5.23.0"],
    "ctranslate2": ["ctranslate2==4.8.5"],
    "ctranslate2-transformers4": ["ctranslate2==4.8.5", "transformers==4.57.6"],
    "llama": ["llama-cpp-python==0.3.36"],
    # optimum-intel 2.2.0 takes transformers below 5.6 alone, whose huggingface_hub needs this
    # version of datasets.
    "openvino": [
        "openvino-genai==2026.4.1.0",
        "optimum-intel==2.2.0",
        "transformers==5.5.4",
        "datasets==4.8.5",
        "torch==2.13.0",
    ],
    "onnx": ["onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0"],
}
# What pip brings along, models of text do without, and does not fit a torch built for processors.
WITHOUT = {"openvino": ["torchvision"]}


class Missing(Exception):
    """Why a runtime is not tested here."""


def home() -> Path:
    """Folder of the environments."""
    if VARIABLE not in os.environ:
        raise Missing(
            f"{VARIABLE} names no folder; '{VARIABLE}=DIR python -m tests.runtimes' fills it"
        )
    return Path(os.environ[VARIABLE]).absolute()


def python_of(runtime: str) -> Path:
    """The interpreter of an environment that is whole and has the versions above."""
    folder = home() / runtime
    if not _is_made(folder, runtime):
        raise Missing(f"{folder} is not made; 'python -m tests.runtimes {runtime}' makes it")
    return folder / "bin" / "python"


def make(runtime: str) -> str:
    """Makes an environment if it is missing or has other versions; returns what came of it."""
    folder = home() / runtime
    if _is_made(folder, runtime):
        return "there already"
    subprocess.run(
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True
    )
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "kit.pth").write_text(f"{sysconfig.get_path('purelib')}\n{root()}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    commands = [["install", "-q", *RUNTIMES[runtime]]]
    if runtime in WITHOUT:
        commands.append(["uninstall", "-q", "-y", *WITHOUT[runtime]])
    for words in commands:
        done = subprocess.run([*pip, *words], capture_output=True, text=True)
        if done.returncode:
            return f"failed: {done.stderr.strip().splitlines()[-1]}"
    (folder / "ready").write_text(_wanted(runtime))
    return "made"


def _is_made(folder: Path, runtime: str) -> bool:
    note = folder / "ready"
    return note.exists() and note.read_text() == _wanted(runtime)


def _wanted(runtime: str) -> str:
    return "\n".join(RUNTIMES[runtime]) + "\n"


@cache
def _worker(runtime: str) -> subprocess.Popen[str]:
    """A process of the environment that runs one job after another, ended with this one."""
    command = [str(python_of(runtime)), "-m", "tests.runtimes.jobs"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    worker = subprocess.Popen(command, cwd=root(), text=True, **pipes)
    atexit.register(worker.kill)
    return worker


def run(runtime: str, job: str, **words: Any) -> dict[str, Any]:
    """Runs a function of ``jobs`` in an environment; what it returns, with its versions."""
    worker = _worker(runtime)
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(json.dumps({"job": job, **words}) + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith(ANSWER):
            found: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
            assert "failed" not in found, f"{runtime}: {job} ended with {found['failed']}"
            return found
    _worker.cache_clear()
    raise AssertionError(f"{runtime}: {job} ended its process with status {worker.wait()}")
