"""Explore cells are run apart from the outputs, and a broken one is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from nbclient.exceptions import CellExecutionError

from tests.kit.checkout import notebook
from workshop.explored import run_explored


def test_explore_cells_run_and_a_broken_one_ends_it(tmp_path: Path) -> None:
    code = "from chameleon_lib.kit import paths\nfolder = paths.outputs_dir('demo')"
    save = "folder.mkdir()\n(folder / 'x').touch()"
    assert run_explored(notebook(tmp_path, "01_x", [code], skipped=save), tmp_path) == 1
    assert (tmp_path / "demo" / "x").is_file()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_explored(notebook(tmp_path, "02_x", ["x = 1"], skipped="x / 0"), tmp_path)
