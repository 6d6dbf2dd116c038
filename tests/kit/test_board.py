"""What the person who waits sees: notes, each once, and what is left, as far as it is known."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lib.kit import board as board_module
from chameleon_lib.kit.board import Board, Pace, progress_file
from chameleon_lib.kit.progress import VARIABLE, notes_file, tell


@pytest.fixture(autouse=True)
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))


def test_notes_are_said_while_a_notebook_runs_and_each_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [board_module.time.monotonic()]
    monkeypatch.setattr(board_module.time, "monotonic", lambda: clock[0])
    notebook = SimpleNamespace(number="01", name="01_per_user", light=False)
    step: Any = SimpleNamespace(notebook=notebook, why="never run here")
    session: Any = SimpleNamespace(started=clock[0], cell=3, total=9)
    board = Board("laptop", {"01": "01_per_user"}, Pace("laptop", {}))
    board.start(step)
    notes = notes_file(progress_file("01"))
    notes.parent.mkdir(parents=True)

    def said() -> list[str]:
        clock[0] += 100
        board.show([(step, session)], [])
        return [line for line in capsys.readouterr().err.splitlines() if "note:" in line]

    assert said() == []
    monkeypatch.setenv(VARIABLE, str(progress_file("01")))
    tell("training ALOE, draw 0")
    with notes.open("a", encoding="utf-8") as stream:
        stream.write("half a ")  # another process is still at it
    assert said() == ["[01] note: training ALOE, draw 0"] and said() == []
    with notes.open("a", encoding="utf-8") as stream:
        stream.write("sentence\n")
    assert said() == ["[01] note: half a sentence"]
    tell("training DPO, draw 0")
    done: Future[float] = Future()
    done.set_result(1.0)
    assert board.finish(step, done)
    left = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert left == ["[01] note: training DPO, draw 0"] and not notes.exists()


def test_a_line_says_what_is_left_of_the_notebook_and_of_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"00": "00_quickstart", "01": "01_per_user"}
    pace = Pace("demo", {"00_quickstart": 30.0, "01_per_user": 300.0})
    board = Board("demo", names, pace)
    now = board_module.time.monotonic() + 100
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now)
    notebook = SimpleNamespace(number="00", name="00_quickstart", light=False)
    step: Any = SimpleNamespace(notebook=notebook, why="never run here")
    session: Any = SimpleNamespace(started=now - 10, cell=3, total=9)
    board.start(step)
    board.show([(step, session)], ["01"])
    shown = capsys.readouterr().err
    assert "[00] 00_quickstart (1/2): never run here" in shown
    assert "cell 3/9 · 0:10 so far, about 0:20 left · then 01, about 5:00 more" in shown
