"""What a fit costs: the rows, the process, and the memory that is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from chameleon_lib.backbones import embedder
from tests.bench import ccs, fit
from tests.bench.__main__ import main
from tests.bench.fit import Cost
from tests.bench.measure import Ratio, Row
from tests.demo.small import HashEmbedder

COSTS = {
    10: Cost(10, 7, 1.0, 400.0, 10.0, "decoder, embedded model"),
    100: Cost(100, 70, 8.0, 500.0, 40.0, "decoder, embedded model"),
    1000: Cost(1000, 700, 60.0, 550.0, 60.0, "decoder, embedded model"),
}


def test_memory_is_compared_with_the_next_fewer_users() -> None:
    rows = fit.measure((10, 100, 1000), COSTS.__getitem__)
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


def test_without_proc_no_memory_is_made_up() -> None:
    rows = fit.measure((10, 100), lambda n: Cost(n, 5, 1.0, 0.0, 0.0, "a model"))
    assert rows[-1].ratio is None and rows[-1].goal is None
    assert "no /proc" in rows[-1].evidence


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_a_fit_counts_pairs_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "load_embedder", HashEmbedder)
    cost = fit.cost_of(12)
    assert cost.users == 12 and 1 <= cost.pairs <= 12 and cost.seconds > 0
    assert 50 < cost.resident < 4000 and 0 <= cost.above < cost.resident


def test_the_command_measures_one_part_and_refuses_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row("CCS", "tiny", "loop", Ratio(2.0, 1.0, 3.0, 3), None, True, "equal")
    seen: list[object] = []
    monkeypatch.setattr(ccs, "measure", lambda work, _: seen.append(work) or [row])
    assert main(["ccs", "--quick"]) == 0 and seen == [ccs.CCSWork(layers=4)]
    out = capsys.readouterr().out
    assert "| CCS | tiny | loop | 2.00 [1.00, 3.00] | – | yes: equal |" in out
    with pytest.raises(SystemExit):
        main(["gpu"])
    assert "there is no part 'gpu'; choose from ccs, generation" in capsys.readouterr().err
