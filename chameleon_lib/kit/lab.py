"""JupyterLab on the notebooks, with private settings.

Nothing of the reader's other Jupyter work gets in and nothing of ours gets out: settings,
workspaces and run files lie below the cache.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from chameleon_lib.kit import paths
from chameleon_lib.kit.kernels import lab_environment
from chameleon_lib.kit.profiles import PROFILES

# Extension -> what its settings say. The news prompt would cover the first notebook that a reader
# opens. Lab keeps only the cells near the screen in the page unless told otherwise; our notebooks
# are short, and so a search, a print-out and a screen reader find every figure.
_SETTINGS: dict[str, dict[str, object]] = {
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "notebook-extension/tracker": {"windowingMode": "none"},
}


def private_settings(folder: Path) -> dict[str, str]:
    """Make private Jupyter folders below `folder`; returns the variables that point to them."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR",
             "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")  # fmt: skip
    found = {name: folder / name.lower() for name in names}
    for path in found.values():
        path.mkdir(parents=True, exist_ok=True)
    for name, values in _SETTINGS.items():
        target = found["JUPYTERLAB_SETTINGS_DIR"] / f"@jupyterlab/{name}.jupyterlab-settings"
        if not target.exists():  # else the reader's own choice
            paths.replace_text(target, json.dumps(values, indent=1) + "\n")
    return {name: str(path) for name, path in found.items()}


def lab_command(root: Path, opens: str = "") -> list[str]:
    """The command that serves `root` and opens its file or folder `opens`."""
    words = [sys.executable, "-m", "jupyterlab"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words.append("--allow-root")  # containers; Jupyter refuses otherwise
    return [*words, f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{opens}"]


def open_lab(profile: str) -> NoReturn:
    """Become JupyterLab, opened in the reader's browser on `notebooks/`."""
    folder = paths.notebooks_dir()
    env = lab_environment(PROFILES[profile]) | private_settings(paths.cache_dir() / "lab")
    words = lab_command(folder.parent, folder.name)
    os.execve(words[0], words, env)
