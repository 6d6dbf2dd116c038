"""Estimates of the time left: this machine's own first, then the demo's at this machine's pace."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lib.kit import board as board_module
from chameleon_lib.kit import paths
from chameleon_lib.kit.board import Board
from chameleon_lib.kit.notebooks import discover
from chameleon_lib.kit.pace import DEMO, Pace


@pytest.fixture(autouse=True)
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))


def test_the_last_run_here_comes_first_and_a_run_that_outlasts_it_is_a_first_one() -> None:
    pace = Pace({"01": 5.0}, {"01": 300.0})
    assert pace.last("01") == 5.0 and pace.left("01") == 5.0 and pace.left("01", 2.0) == 3.0
    assert pace.left("01", 6.0) == 294.0
    assert pace.left("01", 301.0) is None and pace.left("02") is None


def test_what_is_done_corrects_what_is_left() -> None:
    pace = Pace({}, {"00": 30.0, "01": 300.0, "02": 100.0})
    assert pace.total(["01", "02"]) == 400.0
    pace.finished("00", 60.0)  # this machine takes twice the time
    assert pace.left("01") == 600.0 and pace.total(["01", "02"]) == 800.0
    pace.finished("01", 270.0)
    assert pace.left("02") == pytest.approx(100.0)
    assert pace.total(["02", "another"]) is None and pace.total([]) == 0.0


def test_times_are_kept_for_the_next_run_and_a_broken_file_is_no_obstacle() -> None:
    pace = Pace.read("demo")
    assert pace.last("00_quickstart") is None
    assert pace.left("00_quickstart") == DEMO["00_quickstart"]
    pace.finished("00_quickstart", 12.34)
    pace.save("demo")
    assert Pace.read("demo").last("00_quickstart") == 12.3
    assert Pace.read("laptop").left("00_quickstart") is None
    for broken in ("{", "[]", '{"seconds": 3}', '{"seconds": {"00_quickstart": "x"}}'):
        (paths.measured_dir("demo") / "timings.json").write_text(broken)
        assert Pace.read("demo").last("00_quickstart") is None


def test_every_notebook_of_the_demo_has_a_first_estimate() -> None:
    assert {notebook.name for notebook in discover(paths.notebooks_dir())} == set(DEMO)


def test_a_line_says_what_is_left_of_the_notebook_and_of_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"00": "00_quickstart", "01": "01_per_user"}
    board = Board("demo", names, Pace({}, {"00_quickstart": 30.0, "01_per_user": 300.0}))
    now = board_module.time.monotonic() + 100
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now)
    notebook = SimpleNamespace(number="00", name="00_quickstart", light=False)
    step: Any = SimpleNamespace(notebook=notebook, state=SimpleNamespace(why="never run here"))
    session: Any = SimpleNamespace(started=now - 10, cell=3, total=9)
    board.start(step)
    board.show([(step, session)], ["01"])
    shown = capsys.readouterr().err
    assert "[00] 00_quickstart (1/2): never run here" in shown
    assert "cell 3/9 · 0:10 so far, about 0:20 left · then 01, about 5:00 more" in shown
    done: Future[float] = Future()
    done.set_result(60.0)
    assert board.finish(step, done)
    assert Pace.read("demo").last("00_quickstart") == 60.0
