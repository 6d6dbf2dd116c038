"""Each part at tiny sizes: rows, sameness, positive ratios; speed itself is never asserted."""

from __future__ import annotations

import re
import time

import pytest
from torch import Tensor

from chameleon_lib.core.ccs import CCSResult, fit_ccs
from chameleon_lib.demo import FAMILIES
from chameleon_lib.kit.paths import root
from workshop.bench import ccs, generation, models, read_once
from workshop.bench.__main__ import main
from workshop.bench.ccs import CCSWork
from workshop.bench.generation import GenerationWork
from workshop.bench.measure import Ratio, Row

CCS = CCSWork(layers=2, pairs=12, d=64, tries=3, epochs=40, rounds=2)


def _positive(rows: list[Row]) -> bool:
    return all(0 < row.ratio.low <= row.ratio.median <= row.ratio.high for row in rows)


def test_ccs_rows_compare_loop_reference_and_span() -> None:
    rows = ccs.measure(CCS, time.perf_counter)
    assert len(rows) == 7 and _positive(rows)
    timed = [row for row in rows if row.same is None]
    assert [row.what for row in timed] == [
        "CCS, span solver: share of 60 s to a loss no worse",
        "CCS, span solver run to its own end: share of 60 s",
    ]
    assert all(row.goal_met and str(row.goal) == "≤ 1" for row in timed)
    where = timed[0].evidence.rpartition(": ")[2]
    assert (root() / where).is_file() and " s in all" in timed[0].evidence
    rows = [row for row in rows if row not in timed]
    assert all(row.same for row in rows), [row.evidence for row in rows]
    assert "1 layer x 1 try x 40 epochs, scaled x 6" in rows[0].reference
    goals = ["≥ 30" if row.what.endswith("to a loss no worse") else None for row in rows]
    assert goals == [None, "≥ 30", "≥ 30", None, None]
    assert [None if row.goal is None else str(row.goal) for row in rows] == goals


def test_ccs_says_no_where_the_losses_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(h_n: Tensor, h_p: Tensor, *arguments: object, **named: object) -> CCSResult:
        return fit_ccs(h_n, h_p + 1, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(ccs, "fit_ccs", spoiled)
    row = ccs.measure(CCS, time.perf_counter)[0]
    assert not row.same


def test_prompts_come_in_pairs_that_share_their_history() -> None:
    prompts, groups = models.paired_prompts(6, 10)
    assert groups == [0, 0, 1, 1, 2, 2] and len(set(prompts)) == 6
    for personal, neutral in zip(prompts[::2], prompts[1::2], strict=True):
        lines = personal.split("\n")
        assert "10. " in personal and lines[:11] == neutral.split("\n")[:11]
    assert prompts[0].split("\n")[1] != prompts[2].split("\n")[1]


@pytest.mark.usefixtures("no_checkpoint")
def test_generation_gives_the_same_texts_from_random_weights() -> None:
    tasks = ("LaMP_2", "LaMP_7")
    work = GenerationWork(prompts=4, history=2, rounds=1, tasks=tasks)
    rows = generation.measure(work, time.perf_counter)
    asked = [(family, task) for family in FAMILIES for task in tasks]
    assert len(rows) == 2 * len(asked) and _positive(rows)
    for (family, task), row, plain in zip(asked, rows[::2], rows[1::2], strict=True):
        assert row.setting == plain.setting
        assert row.setting.startswith(f"{family}, random weights; {task}, 4 prompts")
        assert row.same and row.evidence.startswith("4 of 4 texts are equal (")
        assert "generate of transformers" in plain.reference and plain.goal is None
        assert plain.same and plain.evidence.startswith("4 of 4 texts are equal (")


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


def test_reading_once_gives_the_same_and_reads_each_prompt_once() -> None:
    rows = read_once.measure(read_once.QUICK, time.perf_counter)
    assert _positive(rows)
    evaluation, growth, fit = rows
    assert evaluation.same and fit.same, (evaluation.evidence, fit.evidence)
    before, now = map(int, re.findall(r"tokens (\d+) over (\d+)", evaluation.evidence)[0])
    assert before == 3 * read_once.QUICK.arms * now
    assert f"read: {now}, once" in growth.evidence  # whatever the arms
    assert re.findall(r"tokens (\d+) over (\d+)", fit.evidence)[0][1] == str(now)
