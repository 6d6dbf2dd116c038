"""Other people's runtimes, each in a virtual environment of its own that also sees the kit's.

What an environment installs lies before the kit's packages, so it can hold another version of one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from chameleon_lib.kit.paths import root

VARIABLE = "CHAMELEON_RUNTIMES"
# Compiling llama-cpp-python takes about ten minutes of two idle cores; the others are wheels.
RUNTIMES: dict[str, list[str]] = {
    "transformers4": ["transformers==4.57.6"],
    "transformers5": ["transformers==5.23.0"],
    "ctranslate2": ["ctranslate2==4.8.5"],
    "llama": ["llama-cpp-python==0.3.36"],
    # optimum-intel 2.2.0 takes transformers below 5.6 alone.
    "openvino": [
        "openvino-genai==2026.4.1.0",
        "optimum-intel==2.2.0",
        "transformers==5.5.4",
        "torch==2.13.0",
    ],
    "onnx": ["onnxruntime-genai==0.18.0", "onnxruntime", "onnx", "onnx-ir"],
}


class Missing(Exception):
    """Why a runtime is not tested here."""


def home() -> Path:
    """Folder of the environments."""
    if VARIABLE not in os.environ:
        raise Missing(f"{VARIABLE} is not set; 'python -m tests.runtimes DIR' makes the folder")
    return Path(os.environ[VARIABLE]).absolute()


def python_of(runtime: str) -> Path:
    """The interpreter of an environment that is whole."""
    folder = home() / runtime
    if not (folder / "ready").exists():
        raise Missing(f"{folder} is not made; run 'python -m tests.runtimes {home()}'")
    return folder / "bin" / "python"


def make(runtime: str) -> str:
    """Makes an environment if it is missing; returns what came of it."""
    folder = home() / runtime
    if (folder / "ready").exists():
        return "there already"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "kit.pth").write_text(f"{sysconfig.get_path('purelib')}\n{root()}\n")
    words = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    done = subprocess.run([*words, "-q", *RUNTIMES[runtime]], capture_output=True, text=True)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    (folder / "ready").write_text("\n".join(RUNTIMES[runtime]) + "\n")
    return "made"


def run(runtime: str, job: str, **words: Any) -> dict[str, Any]:
    """Runs a function of ``jobs`` in an environment; what it returns, with its versions."""
    command = [str(python_of(runtime)), "-m", "tests.runtimes.jobs", job, json.dumps(words)]
    done = subprocess.run(command, cwd=root(), capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{runtime}: {job} ended with {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
