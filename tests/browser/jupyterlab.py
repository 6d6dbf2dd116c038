"""Run a notebook in JupyterLab the way a reader does: in a browser, by its menu."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_lib.kit.kernels import lab_command, lab_environment, private_settings
from chameleon_lib.kit.notebooks import text_of
from chameleon_lib.kit.profiles import PROFILES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WINDOW = (1280, 900)
TOKEN = "chameleon"  # of a server that listens on this machine only and lives for one check
_START = 120.0  # seconds until Lab or a kernel has started on a loaded machine
_BUSY = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
    .filter(prompt => prompt.textContent.includes('*')).length"""
_CONNECTED = """() => {
    const name = document.querySelector('.jp-NotebookPanel .jp-KernelName');
    const state = document.querySelector('.jp-NotebookPanel .jp-Notebook-ExecutionIndicator');
    return name && name.textContent !== 'No Kernel' && state && state.dataset.status === 'idle';
}"""
_STARTED = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
    .some(prompt => /[*0-9]/.test(prompt.textContent))"""


@contextlib.contextmanager
def serve(folder: Path, scratch: Path) -> Iterator[str]:
    """JupyterLab without a browser, as `./run_all.sh --lab` starts it; ends with the block.

    Args:
        folder: what Lab shows, and saves where it runs it: give it copies.
        scratch: receives settings, log, and the outputs of the notebooks.

    Yields:
        The address without a slash at its end, such as `http://127.0.0.1:40001`.

    Raises:
        RuntimeError: the server does not answer in time; says what it printed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    env = lab_environment(PROFILES["demo"]) | private_settings(scratch / "settings")
    env["CHAMELEON_OUTPUTS"] = str(scratch / "outputs")
    words = [*lab_command(folder.resolve()), "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    words += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    log = scratch / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            words, env=env, stdout=stream, stderr=stream, cwd=folder, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        # No proxy: the address is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end = time.monotonic() + _START
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                opener.open(f"{address}/api/status?token={TOKEN}", timeout=5).close()
                break
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"JupyterLab did not start: {log.read_text('utf-8')}")
            time.sleep(0.2)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)  # it ends its kernels, too
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def run_in_lab(browser: Browser, notebook: Path, scratch: Path, seconds: float) -> dict[str, Any]:
    """Open a notebook in JupyterLab, choose Run All Cells, wait for the end, save, and picture it.

    Lab knows no skip tag: this runs the Explore cells as well.

    Args:
        browser: an open Chromium.
        notebook: a copy; Lab saves it.
        scratch: receives settings, log and outputs, and `lab.png`: Lab, at the first figure.
        seconds: how long it may take.

    Returns:
        The notebook as saved by Lab, outputs included.

    Raises:
        RuntimeError: it takes longer.
    """
    with serve(notebook.parent, scratch) as address:
        page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        page.set_default_timeout(1000 * _START)
        page.goto(f"{address}/lab/tree/{notebook.name}?token={TOKEN}")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        # Run All before the kernel is connected opens a dialog that asks for one. Without a kernel
        # the page says idle, too; so its name must have come.
        page.wait_for_function(_CONNECTED)
        _menu(page, "Run", "Run All Cells")
        page.wait_for_function(_STARTED)
        end, quiet = time.monotonic() + seconds, 0  # looks in a row that found nothing waiting
        while quiet < 3:
            if time.monotonic() > end:
                raise RuntimeError(f"{notebook.name} did not finish within {seconds:.0f} s.")
            page.wait_for_timeout(500)
            quiet = quiet + 1 if page.evaluate(_BUSY) == 0 else 0
        before = notebook.stat().st_mtime_ns  # not earlier: Lab saves by itself every two minutes
        _menu(page, "File", "Save Notebook")
        while notebook.stat().st_mtime_ns == before:
            page.wait_for_timeout(200)
        figure = page.locator(".jp-Notebook .jp-RenderedImage img").first
        if figure.count():
            figure.evaluate("image => image.scrollIntoView({block: 'start'})")
        page.wait_for_timeout(1500)  # cells that come into view are drawn late
        page.screenshot(path=scratch / "lab.png")
        page.close()
    saved: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))
    return saved


def errors(notebook: dict[str, Any]) -> list[str]:
    """What went wrong in a notebook that was run: errors of cells, and cells that never ran."""
    found = []
    for number, cell in enumerate(notebook["cells"], start=1):
        if cell["cell_type"] != "code" or not text_of(cell).strip():
            continue
        if cell["execution_count"] is None:
            found.append(f"cell {number} never ran")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"cell {number} raised {output['ename']}: {output['evalue']}")
    return found


def _menu(page: Page, menu: str, item: str) -> None:
    page.click(f'.lm-MenuBar-itemLabel:text-is("{menu}")')
    page.click(f'.lm-Menu-itemLabel:text-is("{item}")')
