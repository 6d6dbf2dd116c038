from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import progress
from chameleon_lib.kit.paths import root
from chameleon_lib.kit.pool import warm


def write_square(folder: str, number: int) -> None:
    """Leave number² in a file, with who computed it and on how many threads."""
    torch = sys.modules.get("torch")  # a worker has loaded it to fix its threads
    threads = torch.get_num_threads() if torch else 0
    (Path(folder) / f"{number}.txt").write_text(f"{number * number} {os.getpid()} {threads}")


def fail_at_two(folder: str, number: int) -> None:
    if number == 2:
        raise ZeroDivisionError("unit 2")
    write_square(folder, number)


def sleep_long(folder: str, number: int) -> None:
    write_square(folder, number)
    time.sleep(120)


def units(folder: Path, n: int) -> list[tuple[str, int]]:
    return [(str(folder), number) for number in range(n)]


def test_every_unit_is_computed_in_other_processes_with_the_threads_asked_for(
    tmp_path: Path,
) -> None:
    warm([("squares", write_square, units(tmp_path, 5))], workers=2, threads=3)
    found = [(tmp_path / f"{n}.txt").read_text().split() for n in range(5)]
    assert [int(value) for value, *_ in found] == [0, 1, 4, 9, 16]
    assert str(os.getpid()) not in {pid for _, pid, _ in found}
    assert {threads for *_, threads in found} == {"3"}


def after_the_first(folder: str, number: int) -> None:
    assert (Path(folder) / "first" / "3.txt").is_file()  # the last unit of the phase before
    write_square(folder, number)


def test_phases_follow_each_other_in_the_same_processes(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    phases = [("one", write_square, units(first, 4)), ("two", after_the_first, units(tmp_path, 4))]
    warm(phases, workers=2, threads=1)
    pids = [
        {(folder / f"{n}.txt").read_text().split()[1] for n in range(4)}
        for folder in (first, tmp_path)
    ]
    assert len(pids[0] | pids[1]) <= 2 and str(os.getpid()) not in pids[1]


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    warm([("squares", write_square, units(tmp_path, 2))], workers=1, threads=1)
    assert (tmp_path / "1.txt").read_text().split()[:2] == ["1", str(os.getpid())]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_unit_is_progress(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 0)
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "told"))
    lines = list[str]()
    monkeypatch.setattr(progress, "replace_text", lambda _, line: lines.append(line))
    warm([("squares", write_square, units(tmp_path, 3))], workers=workers, threads=1)
    assert [line.partition(",")[0] for line in lines] == [f"squares {n}/3" for n in (1, 2, 3)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_unit_fails_the_run(workers: int, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="unit 2"):
        warm([("failing", fail_at_two, units(tmp_path, 3))], workers=workers, threads=1)
    assert (tmp_path / "0.txt").is_file() and not (tmp_path / "2.txt").exists()


def die(_folder: str, _number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out


def test_a_worker_that_is_killed_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ended from outside during 'answers', .* goes on from"):
        warm([("answers", die, units(tmp_path, 2))], workers=2, threads=1)


def alive(pid: int) -> bool:
    """Whether a process still runs; a zombie whose new parent has not looked yet does not."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from chameleon_lib.kit.pool import warm\n"
        "from tests.kit.test_pool import sleep_long\n"
        "if __name__ == '__main__':\n"
        f"    units = [({str(tmp_path)!r}, 1), ({str(tmp_path)!r}, 2)]\n"
        "    warm([('sleepers', sleep_long, units)], workers=2, threads=1)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(root())}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, cwd=tmp_path)
    try:
        notes = [tmp_path / "1.txt", tmp_path / "2.txt"]
        _wait(lambda: all(n.exists() and n.read_text().count(" ") == 2 for n in notes), 90)
        workers = [int(note.read_text().split()[1]) for note in notes]
        assert all(alive(pid) for pid in workers) and parent.poll() is None
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    try:
        _wait(lambda: not any(alive(pid) for pid in workers), 10)
    finally:
        for pid in filter(alive, workers):  # a test that fails leaves no sleeper either
            os.kill(pid, signal.SIGKILL)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.1)
