"""What the person who waits sees: the notes of a notebook while it runs, each once."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lib.kit import board as board_module
from chameleon_lib.kit.board import Board, progress_file
from chameleon_lib.kit.pace import Pace
from chameleon_lib.kit.progress import VARIABLE, notes_file, tell


def test_notes_are_said_while_a_notebook_runs_and_each_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    clock = [board_module.time.monotonic()]
    monkeypatch.setattr(board_module.time, "monotonic", lambda: clock[0])
    notebook = SimpleNamespace(number="01", name="01_per_user", light=False)
    step: Any = SimpleNamespace(notebook=notebook, state=SimpleNamespace(why="never run here"))
    session: Any = SimpleNamespace(started=clock[0], cell=3, total=9)
    board = Board("laptop", {"01": "01_per_user"}, Pace({}, {}))
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
