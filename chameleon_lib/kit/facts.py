"""Facts of a run: what it is pinned to, for the pages, and apart from that its machine."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.environment import environment_hash
from chameleon_lib.kit.hashing import file_digest
from chameleon_lib.kit.profiles import get_profile

PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn", "safetensors",
            "tokenizers", "matplotlib", "papermill", "nbconvert")  # fmt: skip
# Instruction sets that decide which matrix kernels run, hence the last bits of every sum.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "fma", "asimd", "sve")
FILE = "run_facts.json"
MACHINE = "machine.json"  # in the folder measured/, which git ignores


def run_facts(profile: str, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Collect what decides a run's numbers, without any time, host or path.

    Args:
        profile: run profile.
        data: name -> sha256 or revision of the data sets (and hub models) that were used.
    """
    chosen = get_profile(profile)
    models = {
        path.relative_to(paths.package_dir()).as_posix(): file_digest(path)
        for path in sorted((paths.package_dir() / "demo").rglob("*.safetensors"))
    }
    environment = paths.environment_file()
    return {
        "profile": profile,
        # What the environment pins: a patch version and a build such as +cpu are the machine's.
        "python": ".".join(platform.python_version_tuple()[:2]),
        "versions": {name: _version(name).partition("+")[0] for name in PACKAGES},
        "environment_sha256": environment_hash(environment) if environment.is_file() else "absent",
        "threads": chosen.threads,
        "seeds": chosen.seeds,
        "users": {"train": chosen.n_train, "dev": chosen.n_dev, "test": chosen.n_test},
        "backbones": list(chosen.backbones),
        "models": models if chosen.data == "demo" else {},
        "data": dict(data or {}),
    }


def machine_facts() -> dict[str, Any]:
    """What may move the last digits, and differs from machine to machine."""
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "flags": _cpu_flags(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def save_run_facts(profile: str, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write outputs/<profile>/run_facts.json and measured/machine.json; return the former.

    The hashes of ``data`` join those already in the file. Only a notebook that ran may call this:
    facts of a machine that merely shows the results would be wrong beside them.
    """
    path = paths.outputs_dir(profile) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with _turn(path.parent):
        try:
            known = load_run_facts(path.parent).get("data", {})
        except UserError:
            known = {}  # damaged: every notebook is about to run again and to add its own
        facts = run_facts(profile, {**known, **(data or {})})
        paths.replace_text(path, json.dumps(facts, indent=1, sort_keys=True) + "\n")
        text = json.dumps(machine_facts(), indent=1) + "\n"
        paths.replace_text(paths.measured_dir(profile) / MACHINE, text)
    return facts


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One writer at a time: notebooks that overlap would lose each other's hashes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def load_run_facts(folder: Path) -> dict[str, Any]:
    """Read run_facts.json of an outputs folder; empty if the run recorded none."""
    return _load(folder / FILE)


def load_machine(folder: Path) -> dict[str, Any]:
    """Read measured/machine.json of an outputs folder; empty where it did not run."""
    return _load(folder / "measured" / MACHINE)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{paths.display(path)} is not JSON; run the profile again.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{paths.display(path)} holds no record; run the profile again.")
    return facts


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _cpu_flags() -> list[str]:
    info = _cpuinfo()
    words = set((info.get("flags") or info.get("Features") or "").split())
    return [flag for flag in _FLAGS if flag in words]


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")  # Linux only; elsewhere the machine type has to do
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
