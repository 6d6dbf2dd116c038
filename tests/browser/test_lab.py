"""JupyterLab as `run_all.sh --lab` opens it: Run All ends, and an error cell is found.

Tiny notebooks stand in for the kit's own, which take minutes where nothing is stored; the command
`screens` runs one of those.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from PIL import Image

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.lab_session import WINDOW, run_all_cells

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIGURE = """import base64
from IPython.display import Image, display
display(Image(base64.b64decode("{png}")))"""


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
    with pytest.raises(UserError, match="Cell 2 of 01_x ended .* ValueError: no such layer"):
        run_all_cells(browser, "01_x", seconds=120)
