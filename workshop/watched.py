"""Run notebooks from nothing, with something changed in every process of the run.

A process of the run is a kernel or a worker of one. Each finds a ``sitecustomize`` that calls
``install()`` of the script behind the run, before anything else; what that script wants to change
is changed as soon as its module has been imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from chameleon_lib.kit.paths import cache_dir, root

Changes = Mapping[str, Callable[[Any], None]]  # module → what to do with it once it has run


class AfterImport(MetaPathFinder):
    """Changes modules of this process as soon as they have run."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes

    def find_spec(self, name: str, _path: Any, _target: Any = None) -> ModuleSpec | None:
        """The module's own spec; the change follows its run."""
        if name not in self.changes:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            self.changes[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def run_demo(
    folder: Path,
    only: str,
    script: Path | None = None,
    *,
    profile: str = "demo",
    words: Sequence[str] = (),
    **variables: str,
) -> Path:
    """A run of the demo with a cache and outputs of its own; returns its outputs.

    Args:
        folder: Does not exist yet.
        only: Notebooks, such as "03,07"; all if empty.
        script: Its ``install()`` is called in every process; None changes nothing.
        profile: Another run profile.
        words: Further words of the command.
        variables: Further environment variables.
    """
    folder.mkdir(parents=True)
    if script is not None:
        (folder / "sitecustomize.py").write_text(
            f"import sys\nsys.path.append({str(script.parent)!r})\n"
            f"import {script.stem}\n{script.stem}.install()\n",
            encoding="utf-8",
        )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{root()}",
        "CHAMELEON_OUTPUTS": str(folder / "outputs"),
        "CHAMELEON_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "agg",
        **variables,
    }
    (folder / "cache").mkdir()
    if (models := cache_dir() / "models").is_dir():  # what was fetched is not fetched again
        (folder / "cache" / "models").symlink_to(models.absolute())
    command = [sys.executable, "-m", "chameleon_lib", "run", "--profile", profile, *words]
    command += ["--only", only] if only else []
    subprocess.run(command, cwd=root(), env=environment, check=True)
    return folder / "outputs" / profile
