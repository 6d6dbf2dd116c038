"""JupyterLab as `run_all.sh --lab` opens it: a reader opens a notebook and presses Run All.

Tiny notebooks stand in for the kit's own where those are not stored: they take minutes then.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from chameleon_lib.kit import paths
from chameleon_lib.kit.notebooks import SKIP_TAG, tags_of
from tests.browser.jupyterlab import WINDOW, errors, run_in_lab
from tests.kit.checkout import notebook

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIGURE = """import io
from IPython.display import Image as Shown, display
from PIL import Image
buffer = io.BytesIO()
Image.new("RGB", (120, 120), (255, 0, 0)).save(buffer, "PNG")
display(Shown(buffer.getvalue()))"""

EXPLORE = """import os
assert os.environ["HF_HUB_OFFLINE"] == "1" and os.environ["PYTHONHASHSEED"] == "0"
from chameleon_lib.kit.progress import Progress
import time
with Progress("cells of this test", 2) as progress:
    progress.advance()
    time.sleep(0.6)
    progress.advance()
print("explored", profile)"""


def test_run_all_runs_the_explore_cells_too_and_shows_figures_and_progress(
    browser: Browser, tmp_path: Path
) -> None:
    good = notebook(tmp_path / "shown", "01_table", [FIGURE, "x = 20 + 1"], skipped=EXPLORE)
    saved = run_in_lab(browser, good, tmp_path, 60)
    assert errors(saved) == []
    with Image.open(tmp_path / "lab.png") as picture:
        assert picture.size == WINDOW
        colours = dict((c, n) for n, c in picture.convert("RGB").getcolors(1 << 20) or [])
    assert colours.get((255, 0, 0), 0) > 5_000
    (explored,) = [cell for cell in saved["cells"] if SKIP_TAG in tags_of(cell)]
    said = [(output["name"], "".join(output["text"])) for output in explored["outputs"]]
    assert ("stdout", "explored demo\n") in said
    bars = "".join(text for name, text in said if name == "stderr")
    assert "cells of this test: 100%" in bars and "2/2" in bars, said


def test_an_error_ends_it_and_is_named(browser: Browser, tmp_path: Path) -> None:
    broken = notebook(tmp_path / "shown", "01_table", ["x = 20 + 1", "1 / 0"], skipped=EXPLORE)
    assert errors(run_in_lab(browser, broken, tmp_path, 60)) == [
        "cell 4 raised ZeroDivisionError: division by zero",
        "cell 5 never ran",
    ]


@pytest.mark.parametrize("name", ["00_quickstart", "01_per_user"])
def test_a_reader_presses_run_all(browser: Browser, name: str, tmp_path: Path) -> None:
    """Where the demo has run on this machine; from an empty store it would take half an hour."""
    ledger = paths.cache_dir() / "ledger.json"
    if not ledger.is_file() or name not in ledger.read_text(encoding="utf-8"):
        pytest.skip(f"the demo has not run here, so the store is cold for {name}: ./run_all.sh")
    folder = shutil.copytree(paths.notebooks_dir(), tmp_path / "notebooks")
    saved = run_in_lab(browser, folder / f"{name}.ipynb", tmp_path, 600)
    assert errors(saved) == []
    explored = [cell for cell in saved["cells"] if SKIP_TAG in tags_of(cell)]
    assert explored and all(cell["outputs"] for cell in explored)
