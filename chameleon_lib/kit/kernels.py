"""What a kernel, or JupyterLab, may see of the machine: private settings, fixed seeds and threads.

Nothing of the reader's other Jupyter work gets in and nothing of ours gets out: settings,
workspaces and run files lie below the cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from chameleon_lib.kit import paths
from chameleon_lib.kit.hashing import file_digest
from chameleon_lib.kit.profiles import PROFILES, RunProfile
from chameleon_lib.kit.progress import VARIABLE

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def jupyter_folders(base: Path | None = None) -> dict[str, str]:
    """Private Jupyter folders, made if needed: the reader's own settings must not reach a run."""
    base = base or paths.cache_dir() / "jupyter"
    names = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR",
             "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")  # fmt: skip
    found = {name: base / name.lower() for name in names}
    for folder in found.values():
        folder.mkdir(parents=True, exist_ok=True)
    return {name: str(folder) for name, folder in found.items()}


@contextlib.contextmanager
def private_jupyter() -> Iterator[None]:
    """Let this process, which starts the kernels, use the private folders for a while."""
    wanted = jupyter_folders()
    before = {name: os.environ.get(name) for name in (*wanted, "JUPYTER_PATH")}
    os.environ.update(wanted)
    # It could bring in somebody else's kernel named python3.
    os.environ.pop("JUPYTER_PATH", None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# Tensors of embedded models, a few megabytes, come and go thousands of times; glibc would give each
# back to the system and ask for it again, page by page. Measured: two thirds less time in the
# kernel. Those of larger models are given back, or holes between them grow to gigabytes.
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}
_LARGE_TENSORS = {"MALLOC_MMAP_THRESHOLD_": str(2**22), "MALLOC_TRIM_THRESHOLD_": str(2**27)}


def kernel_environment(profile: RunProfile, progress: Path) -> dict[str, str]:
    """The environment variables of a kernel that the driver starts.

    Args:
        profile: decides threads and whether hub libraries stay off the network.
        progress: file through which library calls tell the driver how far they are.

    Returns:
        All variables: this process's own, and on top of them those that make two runs equal.
    """
    progress.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, **jupyter_folders()}
    env.pop("JUPYTER_PATH", None)
    env |= _shared(profile) | {
        VARIABLE: str(progress),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Warnings quote file paths of this machine, bars quote times: both would end up in outputs.
        "PYTHONWARNINGS": "ignore",
        "TQDM_DISABLE": "1",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": str(paths.cache_dir() / "matplotlib"),
    }
    return env


def _shared(profile: RunProfile) -> dict[str, str]:
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    found = {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(paths.root()), *inherited])),
        "PYTHONHASHSEED": "0",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Not the reader's own number: the facts of the run say the profile's.
        "OMP_NUM_THREADS": str(profile.threads),
    }
    embedded = all(name.startswith("demo:") for name in profile.backbones)
    for name, value in (_MEMORY if embedded else _LARGE_TENSORS).items():
        found[name] = os.environ.get(name, value)
    if profile.offline and not profile.from_hub:
        found |= dict.fromkeys(_OFFLINE, "1")
    return found


# --- JupyterLab ---------------------------------------------------------------------------------

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


def lab_environment(profile: RunProfile) -> dict[str, str]:
    """The environment variables of JupyterLab, which its kernels inherit.

    Args:
        profile: decides threads and whether hub libraries stay off the network.

    Returns:
        All variables: this process's own, and on top of them those that make results equal. Other
        than under the driver, progress shows and figures appear in the notebook.
    """
    env = dict(os.environ)
    # JUPYTER_PATH could bring in somebody else's kernel named python3.
    for name in (VARIABLE, "MPLBACKEND", "JUPYTER_PATH"):
        env.pop(name, None)
    return env | _shared(profile)


def private_settings(folder: Path) -> dict[str, str]:
    """Private Jupyter folders below `folder` with settings of ours, which the reader may change."""
    found = jupyter_folders(folder)
    for name, values in _SETTINGS.items():
        settings = Path(found["JUPYTERLAB_SETTINGS_DIR"])
        target = settings / f"@jupyterlab/{name}.jupyterlab-settings"
        if not target.exists():
            paths.replace_text(target, json.dumps(values, indent=1) + "\n")
    return found


def lab_command(root: Path, opens: str = "") -> list[str]:
    """The command that serves `root` and opens its file or folder `opens`."""
    words = [sys.executable, "-m", "jupyterlab"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words.append("--allow-root")  # containers; Jupyter refuses otherwise
    return [*words, f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{opens}"]


def own_notebooks() -> Path:
    """Copy the notebooks for a reader, who may then save what was typed and what came out.

    The sources are committed, so nothing of that may get into them. A copy that was saved stays as
    it is; the others follow their sources.
    """
    folder = paths.own_notebooks_dir()
    record = folder / ".copied.json"
    copied = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for source in sorted(paths.notebooks_dir().glob("*.ipynb")):
        target = folder / source.name
        if not target.exists() or file_digest(target) == copied.get(source.name):
            paths.replace_bytes(target, source.read_bytes())
            copied[source.name] = file_digest(target)
    paths.replace_text(record, json.dumps(copied, indent=1, sort_keys=True) + "\n")
    return folder


def open_lab(profile: str) -> NoReturn:
    """Become JupyterLab, opened in the reader's browser on copies of the notebooks."""
    folder = own_notebooks()
    env = lab_environment(PROFILES[profile]) | private_settings(paths.cache_dir() / "lab")
    words = lab_command(folder.parent, folder.name)
    os.execve(words[0], words, env)
