"""What a fit costs: the rows, the process, and the memory that is read."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.backbones import embedder
from chameleon_lib.bench import fit
from chameleon_lib.bench.fit import Cost, FitWork
from chameleon_lib.bench.rows import frame
from chameleon_lib.errors import UserError
from tests.backbones.demo.small import HashEmbedder

COSTS = {
    10: Cost(10, 7, 1.0, 400.0, 10.0, "decoder, embedded model"),
    100: Cost(100, 70, 8.0, 500.0, 40.0, "decoder, embedded model"),
    1000: Cost(1000, 700, 60.0, 550.0, 60.0, "decoder, embedded model"),
}


def test_memory_is_compared_with_the_next_fewer_users() -> None:
    rows = fit.measure(FitWork(), COSTS.__getitem__)
    assert [row.what for row in rows] == [
        "Fit, seconds per user: 100 users",
        "Fit, seconds per user: 1000 users",
        "Fit, resident memory: 1000 users",
    ]
    ratios = [row.ratio and row.ratio.median for row in rows]
    assert ratios == pytest.approx([0.8, 0.6, 1.1])
    assert rows[2].goal_met and str(rows[2].goal) == "≤ 1.2" and rows[2].reference == "100 users"
    assert "1000 users, 700 pairs, 60.0 s CPU, 550 MiB resident (60 above" in rows[0].setting
    assert rows[0].setting.startswith("decoder, embedded model; ")
    table = frame(rows, threads=4, clock="wall clock")  # whatever the other parts were timed by
    assert set(table["threads"]) == {1} and set(table["clock"]) == {"CPU time"}


def test_without_proc_no_memory_is_made_up() -> None:
    rows = fit.measure(FitWork((10, 100)), lambda n: Cost(n, 5, 1.0, 0.0, 0.0, "a model"))
    assert rows[-1].ratio is None and rows[-1].goal is None
    assert "no /proc" in rows[-1].evidence


def test_a_process_that_fails_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: no room\n")

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(UserError, match="fit of 100 users failed: MemoryError: no room"):
        fit.in_process(100)


def test_a_process_prints_its_cost_last(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(asdict(COSTS[10]))

    def done(command: list[str], **_: Any) -> Any:
        assert command[-3:] == ["-m", "chameleon_lib.bench.fit", "10"]
        return subprocess.CompletedProcess([], 0, f"a warning\n{text}\n", "")

    monkeypatch.setattr(subprocess, "run", done)
    assert fit.in_process(10) == COSTS[10]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_a_fit_counts_pairs_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "load_embedder", HashEmbedder)
    cost = fit.cost_of(12)
    assert cost.users == 12 and 1 <= cost.pairs <= 12 and cost.seconds > 0
    assert 50 < cost.resident < 4000 and 0 <= cost.above < cost.resident
