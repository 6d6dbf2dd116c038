"""Run a notebook in JupyterLab the way a reader does: in a browser, by its menu.

Playwright drives the system's Chromium; both are only needed for checks and screenshots, so the
import of Playwright is left to the caller, who hands in its page.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit.lab import TOKEN

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Without a sandbox: as root, as in most containers, Chromium does not start otherwise. What it
# loads is our own server on this machine.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--hide-scrollbars")
_BUSY = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
    .filter(prompt => prompt.textContent.includes('*')).length"""
_CONNECTED = """() => {
    const name = document.querySelector('.jp-NotebookPanel .jp-KernelName');
    const state = document.querySelector('.jp-NotebookPanel .jp-Notebook-ExecutionIndicator');
    return name && name.textContent !== 'No Kernel' && state && state.dataset.status === 'idle';
}"""
_STARTED = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
    .some(prompt => /[*0-9]/.test(prompt.textContent))"""
_READY = 120_000  # milliseconds until Lab and its kernel have started on a loaded machine


def chromium() -> str | None:
    """The system's Chromium or Chrome, if there is one."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        found = shutil.which(name)
        if found:
            return found
    return None


def open_notebook(page: Page, address: str, name: str, *, token: str = TOKEN) -> None:
    """Open a notebook of the served folder and wait until its kernel is idle.

    Args:
        page: of Playwright; any size.
        address: what `lab.serve` yields.
        name: file name, relative to the served folder.
        token: the server's.
    """
    # `reset` forgets what an earlier page had open.
    page.goto(f"{address}/lab/tree/{name}?token={token}&reset", timeout=_READY)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=_READY)
    # Run All before the kernel is connected opens a dialog that asks for one. Without a kernel the
    # page says idle, too; so its name must have come.
    page.wait_for_function(_CONNECTED, timeout=_READY)


def run_all(page: Page, saved: Path, *, seconds: float) -> dict[str, Any]:
    """Choose Run, Run All Cells; wait until no cell is waiting; save.

    Lab knows no skip tag: this runs the Explore cells as well.

    Args:
        page: with the notebook open (`open_notebook`).
        saved: the notebook's file in the served folder.
        seconds: how long it may take.

    Returns:
        The notebook as saved by Lab, outputs included.

    Raises:
        UserError: if it takes longer, or Lab does not save it.
    """
    before = saved.stat().st_mtime_ns
    _menu(page, "Run", "Run All Cells")
    end = time.monotonic() + seconds
    page.wait_for_function(_STARTED, timeout=_READY)
    quiet = 0  # looks in a row that found nothing waiting
    while quiet < 3:
        if time.monotonic() > end:
            raise UserError(f"{saved.name} did not finish within {seconds:.0f} s in JupyterLab.")
        page.wait_for_timeout(500)
        quiet = quiet + 1 if page.evaluate(_BUSY) == 0 else 0
    _menu(page, "File", "Save Notebook")
    end = time.monotonic() + 30
    while saved.stat().st_mtime_ns == before:
        if time.monotonic() > end:
            raise UserError(f"JupyterLab did not save {saved.name}.")
        page.wait_for_timeout(200)
    notebook: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
    return notebook


def errors(notebook: dict[str, Any]) -> list[str]:
    """What went wrong in a notebook that was run: errors of cells, and cells that never ran."""
    found = []
    for number, cell in enumerate(notebook["cells"], start=1):
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
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
