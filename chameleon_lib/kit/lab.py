"""JupyterLab on the notebooks, with private settings: for a reader, and for the browser checks.

Nothing of the reader's other Jupyter work gets in and nothing of ours gets out: settings,
workspaces and run files lie below the cache. `./run_all.sh --lab` is `python -m chameleon_lib lab`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from chameleon_lib.command_line import Parser
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.kernels import lab_environment
from chameleon_lib.kit.profiles import PROFILES, PUBLIC

TOKEN = "chameleon"  # of a server that listens on this machine only and lives for one check
_START_TIMEOUT = 120.0  # seconds; a loaded machine imports the server's extensions slowly
_STOP_TIMEOUT = 20.0  # seconds for kernels and server to end by themselves

# Extension -> settings file -> what it says. Lab keeps only the cells near the screen in the page
# unless told otherwise; our notebooks are short, and so a search, a print-out and a screen reader
# find every figure. The news prompt would cover the first notebook that a reader opens.
_SETTINGS: dict[str, dict[str, object]] = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}


def _prepare(folder: Path) -> dict[str, str]:
    """Make the private folders below `folder`; returns the variables that point to them.

    Data as well: the usual folder may hold a foreign kernel named python3.
    """
    found = {
        "JUPYTER_CONFIG_DIR": folder / "config",
        "JUPYTER_RUNTIME_DIR": folder / "runtime",
        "JUPYTER_DATA_DIR": folder / "data",
        "IPYTHONDIR": folder / "ipython",
        "JUPYTERLAB_SETTINGS_DIR": folder / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
    }
    for path in found.values():
        path.mkdir(parents=True, exist_ok=True)
    for name, values in _SETTINGS.items():
        target = found["JUPYTERLAB_SETTINGS_DIR"] / f"{name}.jupyterlab-settings"
        if not target.exists():  # else the reader's own choice
            paths.replace_text(target, json.dumps(values, indent=1) + "\n")
    return {name: str(path) for name, path in found.items()}


def _command(root: Path, opens: str) -> list[str]:
    words = [sys.executable, "-m", "jupyterlab"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words.append("--allow-root")  # containers; Jupyter refuses otherwise
    return [*words, f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{opens}"]


def free_port() -> int:
    """A port of this machine that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copy_notebooks(folder: Path) -> Path:
    """Copies of the source notebooks: a check may run and save them, the sources stay as they are.

    Returns:
        `folder`, which then holds them all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(paths.notebooks_dir().glob("*.ipynb")):
        shutil.copyfile(path, folder / path.name)
    return folder


@contextlib.contextmanager
def serve(
    folder: Path,
    *,
    port: int | None = None,
    token: str = TOKEN,
    profile: str = "demo",
    outputs: Path | None = None,
) -> Iterator[str]:
    """JupyterLab without a browser, as `./run_all.sh --lab` starts it; ends with the block.

    Args:
        folder: what Lab shows. Lab saves what it runs: give it copies (`copy_notebooks`).
        port: a free one by default.
        token: what a page must know; it goes into the address as `?token=`.
        profile: run profile, which decides threads and whether hubs are out of bounds.
        outputs: where the notebooks leave tables and figures; where they always do by default.

    Yields:
        The address without a slash at its end, such as `http://127.0.0.1:40001`. A notebook of
        `folder` opens under `{address}/lab/tree/{name}?token={token}`.

    Raises:
        UserError: if the server does not answer in time; names its log.
    """
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    log = paths.cache_dir() / "lab" / f"server-{port}.log"
    # Own settings for each server: workspaces of two at a time would overwrite each other.
    private = paths.cache_dir() / "lab" / f"server-{port}"
    env = lab_environment(PROFILES[profile]) | _prepare(private)
    if outputs is not None:
        env["CHAMELEON_OUTPUTS"] = str(outputs)
    words = [*_command(folder.resolve(), ""), "--no-browser", "--ip=127.0.0.1"]
    words += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    with log.open("wb") as stream:
        server = subprocess.Popen(
            words, env=env, stdout=stream, stderr=stream, cwd=folder, start_new_session=True
        )
    try:
        _wait_until_ready(server, f"{address}/api/status?token={token}", log)
        yield address
    finally:
        _stop(server)
        shutil.rmtree(private, ignore_errors=True)
    log.unlink(missing_ok=True)


def _wait_until_ready(server: subprocess.Popen[bytes], status: str, log: Path) -> None:
    end = time.monotonic() + _START_TIMEOUT
    while server.poll() is None and time.monotonic() < end:
        try:
            # No proxy: the address is this machine's own.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(status, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    why = "ended" if server.poll() is not None else f"did not answer within {_START_TIMEOUT:.0f} s"
    raise UserError(f"JupyterLab {why}; its messages are in {paths.display(log)}.")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and, through it, its kernels; both by force if they do not go."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
    try:
        server.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def main(argv: Sequence[str]) -> int:
    """`lab`: become JupyterLab, opened in the reader's browser on `notebooks/`."""
    parser = Parser(
        prog="python -m chameleon_lib lab",
        description="open JupyterLab on notebooks/",
        allow_abbrev=False,
    )
    parser.add_argument("--profile", choices=PUBLIC, default="demo", help="size of the run")
    options = parser.parse_args(argv)
    folder = paths.notebooks_dir()
    env = lab_environment(PROFILES[options.profile]) | _prepare(paths.cache_dir() / "lab")
    words = _command(folder.parent, folder.name)
    os.execve(words[0], words, env)
