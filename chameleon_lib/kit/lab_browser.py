"""Run a notebook in JupyterLab the way a reader does: in a browser, by its menu.

Playwright drives the system's Chromium (`kit.browser`); both are only needed for checks and
screenshots.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit.lab import TOKEN, copy_notebooks, serve
from chameleon_lib.kit.notebooks import text_of
from chameleon_lib.kit.progress import Progress

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WINDOW = (1280, 900)
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


@dataclass(frozen=True)
class Done:
    """A notebook that ran to its end.

    Attributes:
        picture: Lab afterwards, as PNG.
        cells: number of code cells that ran.
        seconds: wall-clock seconds from Run All to the end.
    """

    picture: bytes
    cells: int
    seconds: float


def run_all_cells(browser: Browser, name: str, seconds: float) -> Done:
    """Open a copy of a notebook in JupyterLab, run all its cells by the menu, and picture it.

    It is a demo run, as the stored parameters say. Neither the sources nor outputs/ change;
    finished units are those of the checkout's store.

    Args:
        browser: an open Chromium.
        name: stem of a notebook.
        seconds: longest wait.

    Raises:
        UserError: JupyterLab does not start, a cell ends in an error, or time runs out.
    """
    with tempfile.TemporaryDirectory(prefix="chameleon-lab-") as temporary:
        base = Path(temporary).resolve()
        folder, file = copy_notebooks(base / "notebooks"), f"{name}.ipynb"
        with serve(folder, outputs=base / "outputs") as address:
            page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
            open_notebook(page, address, file)
            started = time.monotonic()
            saved = run_all(page, folder / file, seconds=seconds)
            spent = time.monotonic() - started
            if found := errors(saved):
                raise UserError(f"{name} in JupyterLab: {found[0]}.")
            _show_result(page)
            picture = page.screenshot()
            page.close()
    return Done(picture, len(_code_cells(saved)), spent)


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
    _menu(page, "Run", "Run All Cells")
    end = time.monotonic() + seconds
    page.wait_for_function(_STARTED, timeout=_READY)
    quiet = 0  # looks in a row that found nothing waiting
    total = len(_code_cells(json.loads(saved.read_text(encoding="utf-8"))))
    with Progress(f"{saved.stem} in JupyterLab, cells", total) as progress:
        while quiet < 3:
            if time.monotonic() > end:
                raise UserError(
                    f"{saved.name} did not finish within {seconds:.0f} s in JupyterLab."
                )
            page.wait_for_timeout(500)
            waiting = int(page.evaluate(_BUSY))
            progress.advance(max(0, total - waiting - progress.done))
            quiet = quiet + 1 if waiting == 0 else 0
    before = saved.stat().st_mtime_ns  # not earlier: Lab saves by itself every two minutes
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
    for number, cell in _code_cells(notebook):
        if cell["execution_count"] is None:
            found.append(f"cell {number} never ran")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"cell {number} raised {output['ename']}: {output['evalue']}")
    return found


def _code_cells(notebook: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Code cells that are not empty, each with its place in the notebook, from 1."""
    return [
        (number, cell)
        for number, cell in enumerate(notebook["cells"], start=1)
        if cell["cell_type"] == "code" and text_of(cell).strip()
    ]


def _show_result(page: Page) -> None:
    """Bring the first figure into view; a notebook without one stays at its end."""
    figure = page.locator(".jp-Notebook .jp-RenderedImage img").first
    if figure.count():
        figure.evaluate("image => image.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(1500)  # cells that come into view are drawn late


def _menu(page: Page, menu: str, item: str) -> None:
    page.click(f'.lm-MenuBar-itemLabel:text-is("{menu}")')
    page.click(f'.lm-Menu-itemLabel:text-is("{item}")')
