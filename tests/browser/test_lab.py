"""JupyterLab as `run_all.sh --lab` opens it: a reader opens a notebook and presses Run All.

Tiny notebooks stand in for the kit's own where those are not stored: they take minutes then.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from PIL import Image

from chameleon_lib.errors import UserError
from chameleon_lib.kit import lab, lab_browser, paths
from chameleon_lib.kit.lab_browser import WINDOW, run_all_cells
from chameleon_lib.kit.notebooks import SKIP_TAG, tags_of
from tests.kit.checkout import notebook

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIGURE = """import base64
from IPython.display import Image, display
display(Image(base64.b64decode("{png}")))"""

EXPLORE = """import os
assert os.environ["HF_HUB_OFFLINE"] == "1" and os.environ["PYTHONHASHSEED"] == "0"
from chameleon_lib.kit.progress import Progress
import time
with Progress("cells of this test", 2) as progress:
    progress.advance()
    time.sleep(0.6)
    progress.advance()
print("explored", profile)"""


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(paths, "notebooks_dir", lambda: folder)
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    return folder


def write(folder: Path, name: str, *cells: str) -> bytes:
    new = nbformat.v4
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    book = new.new_notebook(
        cells=[new.new_code_cell(text) for text in cells], metadata={"kernelspec": kernel}
    )
    nbformat.write(book, folder / f"{name}.ipynb")
    return (folder / f"{name}.ipynb").read_bytes()


def red_square() -> str:
    import base64

    buffer = io.BytesIO()
    Image.new("RGB", (120, 120), (255, 0, 0)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def test_run_all_ends_and_the_picture_shows_the_figure(browser: Browser, notebooks: Path) -> None:
    code = "from chameleon_lib.kit import paths\nprint(paths.outputs_dir('demo'))"
    before = write(notebooks, "01_x", code, FIGURE.format(png=red_square()), "1 + 1")
    done = run_all_cells(browser, "01_x", seconds=120)
    assert done.cells == 3
    with Image.open(io.BytesIO(done.picture)) as picture:
        assert picture.size == WINDOW
        colours = dict((c, n) for n, c in picture.convert("RGB").getcolors(1 << 20) or [])
    assert colours.get((255, 0, 0), 0) > 5_000
    assert (notebooks / "01_x.ipynb").read_bytes() == before  # the reader's copy is untouched


def test_an_error_cell_ends_it_with_one_sentence(browser: Browser, notebooks: Path) -> None:
    write(notebooks, "01_x", "1", "raise ValueError('no such layer')", "2")
    with pytest.raises(UserError, match="cell 2 raised ValueError: no such layer"):
        run_all_cells(browser, "01_x", seconds=120)


def run_in_lab(browser: Browser, folder: Path, name: str, seconds: float) -> dict[str, Any]:
    with lab.serve(folder, outputs=folder.parent / "outputs") as address:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        lab_browser.open_notebook(page, address, name)
        saved = lab_browser.run_all(page, folder / name, seconds=seconds)
        page.close()
    return saved


def test_run_all_runs_every_cell_and_the_explore_cells_and_shows_progress_and_errors(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shown"
    notebook(folder, "01_table", ["x = 20 + 1", "1 / 0"], skipped=EXPLORE)
    broken = run_in_lab(browser, folder, "01_table.ipynb", 60)
    found = lab_browser.errors(broken)
    assert found[0] == "cell 4 raised ZeroDivisionError: division by zero"
    assert found[1:] == ["cell 5 never ran"]

    notebook(folder, "01_table", ["x = 20 + 1"], skipped=EXPLORE)
    good = run_in_lab(browser, folder, "01_table.ipynb", 60)
    assert lab_browser.errors(good) == []
    (explored,) = [cell for cell in good["cells"] if SKIP_TAG in tags_of(cell)]
    said = [(output["name"], "".join(output["text"])) for output in explored["outputs"]]
    assert ("stdout", "explored demo\n") in said
    bars = "".join(text for name, text in said if name == "stderr")
    assert "cells of this test: 100%" in bars and "2/2" in bars, said
    assert not list((tmp_path / "cache" / "lab").iterdir())  # server, settings and log are gone


@pytest.mark.parametrize("name", ["00_quickstart", "01_per_user"])
def test_a_reader_presses_run_all(browser: Browser, name: str, tmp_path: Path) -> None:
    """Where the demo has run on this machine; from an empty store it would take half an hour."""
    ledger = paths.cache_dir() / "ledger.json"
    if not ledger.is_file() or name not in ledger.read_text(encoding="utf-8"):
        pytest.skip(f"the demo has not run here, so the store is cold for {name}: ./run_all.sh")
    folder = lab.copy_notebooks(tmp_path / "notebooks")
    saved = run_in_lab(browser, folder, f"{name}.ipynb", 600)
    assert lab_browser.errors(saved) == []
    explored = [cell for cell in saved["cells"] if SKIP_TAG in tags_of(cell)]
    assert explored and all(cell["outputs"] for cell in explored)
