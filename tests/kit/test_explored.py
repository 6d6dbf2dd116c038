"""`python -m chameleon_lib explore`: skipped cells are run, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from chameleon_lib.kit.engine import NotebookFailed
from chameleon_lib.kit.explored import EXPLORE_TAG, Timed, lifted
from chameleon_lib.kit.notebooks import SKIP_TAG, read_notebook, tags_of
from tests.kit.checkout import TABLE, Checkout, notebook

REPORT = """from chameleon_lib.kit.paths import tables_dir
print((tables_dir(profile) / "size.csv").read_text())"""


def test_a_copy_has_the_same_cells_and_skips_none(tmp_path: Path) -> None:
    source = read_notebook(notebook(tmp_path / "from", "01_table", ["x = 1"], skipped="x + 1"))
    copy = read_notebook(lifted(source, tmp_path / "to"))
    assert len(copy.runnable()) == len(source.runnable()) + 1 and len(copy.cells) == 4
    (explored,) = [cell for cell in copy.cells if EXPLORE_TAG in tags_of(cell)]
    assert explored["source"] == source.cells[-1]["source"]
    assert SKIP_TAG in tags_of(source.cells[-1])
    session = Timed()
    for cell in copy.cells:
        session.note_cell(cell)
    session.end_cell()
    session.end_cell()
    assert len(session.seconds) == 1 and session.seconds[0] < 5
    session.stopped = "it took longer"
    with pytest.raises(NotebookFailed, match="it took longer"):
        session.note_cell(explored)


def test_explore_cells_run_apart_from_the_outputs_and_a_broken_one_is_named(
    tmp_path: Path,
) -> None:
    checkout = Checkout(tmp_path)
    notebook(checkout.notebooks, "01_table", [TABLE], skipped="print('explored', SIZE)")
    notebook(checkout.notebooks, "99_report", [REPORT], skipped="1 / 0")
    first = checkout.call("explore", "--only", "01")
    assert first.returncode == 0, first.stderr
    assert "[01] Explore cells: " in first.stderr and "1/1 ran with" in first.stderr
    assert first.stdout == "Look at: .chameleon/explore/demo/notebooks\n"
    shown = tmp_path / ".chameleon" / "explore" / "demo" / "notebooks" / "01_table.ipynb"
    assert "explored 21" in shown.read_text(encoding="utf-8")
    assert not checkout.outputs.exists()

    assert checkout.call("run").returncode == 0
    files, ledger = checkout.files(), (tmp_path / ".chameleon" / "ledger.json").read_bytes()
    broken = checkout.call("explore", "--only", "99")  # reads the table of the run
    assert broken.returncode == 1 and "ZeroDivisionError" in broken.stderr
    assert "0/1 ran with" in broken.stderr
    assert checkout.files() == files
    assert (tmp_path / ".chameleon" / "ledger.json").read_bytes() == ledger
    assert "up to date" in checkout.call("run").stderr


def test_an_explore_cell_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    checkout.limit_seconds(3)
    hung = "import time\ntime.sleep(300)"
    notebook(checkout.notebooks, "01_slow", ["print(1)"], skipped=hung)
    result = checkout.call("explore")
    assert result.returncode == 1 and "it took longer than 0:03" in result.stderr
