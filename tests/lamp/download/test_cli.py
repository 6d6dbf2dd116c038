from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chameleon_lib.kit.cli import main
from chameleon_lib.lamp import data_cli
from chameleon_lib.lamp.download import LOCK, official_files
from chameleon_lib.lamp.download.meter import Meter, progress_text
from tests.lamp.download.server import Handler, Server, outputs_of, questions_of

QUESTIONS, OUTPUTS = (file.path for file in official_files(["LaMP_7"], "user", ["dev"]))


def command(server: Server, folder: Path) -> list[str]:
    return [
        "data", "lamp", "--task", "LaMP_7", "--parts", "dev", "--to", str(folder),
        "--base-url", server.url, "--timeout", "2", "--attempts", "2",
    ]  # fmt: skip


@pytest.fixture
def served(server: Server) -> Server:
    server.files[f"/{QUESTIONS}"] = questions_of("LaMP_7", "dev", 1500)
    server.files[f"/{OUTPUTS}"] = outputs_of("LaMP_7", "dev", 1500)
    return server


def test_one_command_downloads_says_what_it_did_and_how_to_use_it(
    served: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(served, tmp_path)) == 0
    out = capsys.readouterr().out
    assert "2 of 2 files downloaded" in out and f"--data {tmp_path}" in out
    assert "test_outputs" not in out
    assert main(command(served, tmp_path)) == 0
    again = capsys.readouterr()
    assert "0 of 2 files downloaded" in again.out and "verifying" in again.err
    assert len(served.seen) == 2


def test_withheld_test_labels_are_explained(
    served: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = official_files(["LaMP_7"], "user", ["test"])[0].path
    served.files[f"/{path}"] = questions_of("LaMP_7", "test", 1496)
    words = ["test" if word == "dev" else word for word in command(served, tmp_path)]
    assert main(words) == 0
    assert "withholds the labels of its test part" in capsys.readouterr().out


def test_a_kill_in_the_middle_is_resumed_from_the_bytes_that_arrived(
    served: Server, tmp_path: Path
) -> None:
    content = served.files[f"/{QUESTIONS}"]

    def slowly(h: Handler, _: bytes) -> None:
        h.answer(200, content[:100_000], ETag='"v1"', **{"Content-Length": str(len(content))})
        h.wfile.flush()
        time.sleep(20)

    served.will(f"/{QUESTIONS}", slowly)
    words = [sys.executable, "-m", "chameleon_lib", *command(served, tmp_path), "--timeout", "30"]
    partial = tmp_path / f"{QUESTIONS}.partial"
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size == 100_000):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / QUESTIONS).exists()
    assert main(command(served, tmp_path)) == 0
    assert served.ranges(f"/{QUESTIONS}") == ["", "bytes=100000-"]
    assert (tmp_path / QUESTIONS).read_bytes() == content
    assert sorted(p.name for p in tmp_path.rglob("*.json*")) == sorted(
        [LOCK, "dev_outputs.json", "dev_questions.json"]
    )


def test_a_kill_between_lock_and_name_is_mended(served: Server, tmp_path: Path) -> None:
    assert main(command(served, tmp_path)) == 0
    target = tmp_path / QUESTIONS
    target.rename(target.with_name(f"{target.name}.partial"))
    size = len(served.files[f"/{QUESTIONS}"])
    note = {"url": f"{served.url}/{QUESTIONS}", "version": '"v1"', "total": size}
    target.with_name(f"{target.name}.partial.json").write_text(json.dumps(note))
    assert main(command(served, tmp_path)) == 0
    assert target.is_file() and len(served.seen) == 2


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["lamp"], "The following arguments are required: --to"),
        (["lamp", "--to", "x", "--task", "LaMP_4"], "Unknown task 'LaMP_4'"),
        (["lamp", "--to", "x", "--split", "item"], "Argument --split: invalid choice"),
        (["lamp", "--to", "x", "--parts", "dev,eval"], "Unknown part 'eval'"),
        (["lamp", "--to", "x", "--parts", ","], "--parts takes some of train, dev, test"),
        (["lamp", "--to", "x", "--timeout", "0"], "Argument --timeout: '0' is not a number"),
        (["lamp", "--to", "x", "--timeout", "nan"], "Argument --timeout: 'nan' is not"),
        (["lamp", "--to", "x", "--attempts", "0"], "Argument --attempts: '0' is not a whole"),
        (["lamp", "--to", "x", "--base-url", "x.org"], "--base-url takes an http or https"),
        (["lampe"], "Unknown command 'data lampe': choose one of lamp"),
    ],
)
def test_misuse_is_answered_with_one_sentence_and_exit_code_2(
    words: list[str], start: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(tmp_path / "x") if word == "x" else word for word in words]
    assert main(["data", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith(start) and list(tmp_path.iterdir()) == []


def test_a_list_names_the_files_and_asks_for_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--task", "LaMP_2", "--split", "time", "--parts", "dev", "--to", str(tmp_path)]
    assert main(["data", "lamp", "--list", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "/LaMP/time/LaMP_2/new/dev/dev_outputs.json" in lines[1]


def test_the_table_of_data_commands_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0 and main(["data"]) == 2
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in data_cli.COMMANDS)


def test_progress_names_amount_speed_and_time_left() -> None:
    text = progress_text("bytes", 150_000_000, 401_034_862, 100_000_000, 20.0)
    assert text == "150.0/401.0 MB, 5.0 MB/s, about 0:50 left"
    assert progress_text("bytes", 1_000_000, None, 0, 0.0) == "1.0 MB"
    assert progress_text("records", 500, 2500, 500, 5.0) == (
        "500/2,500 records, 100.0 records/s, about 0:20 left"
    )


def test_a_meter_shows_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    clock = iter((0.0, 0.1, 1.0, 1.1))
    meter = Meter()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    for done in (0, 10_000_000, 50_000_000, 60_000_000):
        meter.progress("u", "bytes", done, 100_000_000)
    meter.say("done.")
    lines = capsys.readouterr().err.replace("\r", "").splitlines()
    assert [line.strip() for line in lines] == [
        "u 50.0/100.0 MB, 50.0 MB/s, about 0:01 left",
        "done.",
    ]
