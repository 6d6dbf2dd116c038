"""JupyterLab as `run_all.sh --lab` opens it, driven like a reader would: open, Run All, look.

The Lab works on a copy of the notebooks and writes its outputs into a temporary folder, so neither
the sources nor outputs/ change; finished units are shared with the store of the checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.notebooks import text_of
from chameleon_lib.kit.progress import Progress

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_START = 120.0  # seconds until the server answers, and until the kernel does
_TICK = 2.0
WINDOW = (1280, 900)


@dataclass(frozen=True)
class Done:
    """A notebook that ran to its end.

    Attributes:
        picture: the Lab afterwards, as PNG.
        cells: number of code cells that ran.
        seconds: wall-clock seconds from Run All to the end.
    """

    picture: bytes
    cells: int
    seconds: float


@dataclass(frozen=True)
class Lab:
    """A running server.

    Attributes:
        folder: its root, which holds notebooks/.
        url: its address, without a slash at the end.
        token: its password.
    """

    folder: Path
    url: str
    token: str

    def ask(self, path: str, method: str = "GET") -> Any:
        """Call the server's own interface, such as "api/status"; None for an empty answer."""
        request = urllib.request.Request(
            f"{self.url}/{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def kernel(self, name: str) -> str:
        """State of the kernel of a notebook; empty if it has none."""
        for session in self.ask("api/sessions"):
            if session["path"] == f"notebooks/{name}.ipynb" and session["kernel"]:
                return str(session["kernel"]["execution_state"])
        return ""


def run_all_cells(browser: Browser, name: str, seconds: float) -> Done:
    """Open a notebook in JupyterLab, run all its cells by the menu, wait, and picture it.

    Args:
        browser: an open Chromium.
        name: stem of a notebook.
        seconds: longest wait.

    Raises:
        UserError: JupyterLab does not start, a cell ends in an error, or time runs out.
    """
    with lab_server() as lab:
        page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        page.set_default_timeout(_START * 1000)
        page.goto(f"{lab.url}/lab/tree/notebooks/{name}.ipynb?token={lab.token}")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        # Run All before the kernel is there would open a dialog instead.
        _wait(lambda: lab.kernel(name) == "idle", _START, f"The kernel of {name} did not start.")
        page.click('.lm-MenuBar-itemLabel:text-is("Run")')
        page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
        started = time.monotonic()
        cells = _until_done(lab, page, name, started + seconds)
        spent = time.monotonic() - started
        _show_result(page)
        picture = page.screenshot()
        page.close()
        return Done(picture, cells, spent)


def _until_done(lab: Lab, page: Page, name: str, deadline: float) -> int:
    """Save and read the notebook until every code cell has its number; how many there are."""
    path = lab.folder / "notebooks" / f"{name}.ipynb"
    total = len(_code_cells(path))
    with Progress(f"{name}, cells", total) as progress:
        while True:
            page.keyboard.press("Control+s")
            time.sleep(_TICK)
            cells = _code_cells(path)
            for number, cell in enumerate(cells, start=1):
                for output in cell["outputs"]:
                    if output["output_type"] == "error":
                        raise UserError(
                            f"Cell {number} of {name} ended in JupyterLab with "
                            f"{output['ename']}: {output['evalue']}"
                        )
            done = sum(cell["execution_count"] is not None for cell in cells)
            progress.advance(done - progress.done)
            if done == total and lab.kernel(name) == "idle":
                return total
            if time.monotonic() > deadline:
                raise UserError(f"JupyterLab had run {done} of {total} cells of {name} in time.")


def _code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c for c in cells if c["cell_type"] == "code" and text_of(c).strip()]


def _show_result(page: Page) -> None:
    """Bring the first figure into view; a notebook without one stays at its end."""
    figure = page.locator(".jp-Notebook .jp-RenderedImage img").first
    if figure.count():
        figure.evaluate("image => image.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(1500)  # cells that come into view are drawn late


@contextlib.contextmanager
def lab_server() -> Iterator[Lab]:
    """`run_all.sh --lab` on a free port, with a password of its own; ended with its kernels.

    Raises:
        UserError: if it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="chameleon-lab-") as temporary:
        base = Path(temporary).resolve()
        lab = Lab(_copy(base), f"http://127.0.0.1:{(port := _free_port())}", secrets.token_hex(16))
        env = {
            **os.environ,
            "CHAMELEON_PYTHON": sys.executable,
            "CHAMELEON_CACHE": str(base / "cache"),
            "CHAMELEON_OUTPUTS": str(base / "outputs"),
            "JUPYTER_PORT": str(port),
            "JUPYTER_TOKEN": lab.token,
            "BROWSER": "true",  # the command that does nothing: ours is open already
        }
        # A plain kill must not leave the server behind: let it end this process by the usual way.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        with (base / "lab.log").open("wb") as log:
            server = subprocess.Popen(
                [str(lab.folder / "run_all.sh"), "--lab", "--no-install"],
                cwd=lab.folder,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait(
                lambda: server.poll() is not None or _answers(lab),
                _START,
                "JupyterLab did not answer.",
            )
            if server.poll() is not None:
                last = (base / "lab.log").read_text(encoding="utf-8", errors="replace").split("\n")
                said = next((line for line in reversed(last) if line.strip()), "no word")
                raise UserError(f"JupyterLab did not start: {said.strip()}")
            yield lab
        finally:
            _end(server, lab)
            signal.signal(signal.SIGTERM, before)


def _copy(base: Path) -> Path:
    """A folder that looks like the checkout, whose notebooks may be written to."""
    folder = base / "checkout"
    shutil.copytree(paths.notebooks_dir(), folder / "notebooks")
    shutil.copy(paths.root() / "run_all.sh", folder / "run_all.sh")
    (folder / "chameleon_lib").symlink_to(paths.package_dir())
    (folder / "environment.yml").symlink_to(paths.environment_file())
    units = paths.cache_dir() / "units"
    units.mkdir(parents=True, exist_ok=True)
    (base / "cache").mkdir()
    (base / "cache" / "units").symlink_to(units)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(lab: Lab) -> bool:
    try:
        lab.ask("api/status")
    except (urllib.error.URLError, OSError):
        return False
    return True


def _wait(true: Any, seconds: float, sentence: str) -> None:
    """Until a condition holds.

    Raises:
        UserError: the sentence, if it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise UserError(sentence)
        time.sleep(0.3)


def _end(server: subprocess.Popen[bytes], lab: Lab) -> None:
    """Ask the server to go, which takes its kernels along; then insist."""
    if server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            lab.ask("api/shutdown", "POST")
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=20)
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, sent)
        server.wait()
