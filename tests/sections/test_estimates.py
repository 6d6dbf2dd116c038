from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chameleon_lib.lamp.metrics import evaluate
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.estimates import (
    STATISTICS,
    difference_on,
    estimate,
    methods_in,
    metrics_of,
    paper_numbers,
    paper_value,
    sums,
    where_defined,
)
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.results import agreeing, query_golds, stacked
from tests.sections.planted import SEEDS, planted_run, without_margins

TASKS = ("LaMP_2", "LaMP_3", "LaMP_7")

# Section 6.1 of the method reference, read from the paper's Table 1: before → after, two families.
PRINTED = [
    ("LaMP_2", "accuracy", "decoder", 0.198, 0.396),
    ("LaMP_2", "f1", "decoder", 0.236, 0.349),
    ("LaMP_3", "mae", "decoder", 0.497, 0.407),
    ("LaMP_3", "rmse", "decoder", 0.944, 0.815),
    ("LaMP_7", "rouge1", "decoder", 0.354, 0.381),
    ("LaMP_7", "rougeL", "decoder", 0.295, 0.334),
    ("LaMP_2", "accuracy", "encoder-decoder", 0.238, 0.420),
    ("LaMP_2", "f1", "encoder-decoder", 0.171, 0.311),
    ("LaMP_3", "mae", "encoder-decoder", 0.456, 0.400),
    ("LaMP_3", "rmse", "encoder-decoder", 0.818, 0.714),
    ("LaMP_7", "rouge1", "encoder-decoder", 0.333, 0.429),
    ("LaMP_7", "rougeL", "encoder-decoder", 0.292, 0.385),
]


@pytest.mark.parametrize(("task", "metric", "family", "before", "after"), PRINTED)
def test_the_papers_numbers_are_those_it_printed(
    task: str, metric: str, family: str, before: float, after: float
) -> None:
    assert paper_value(task, metric, family, "Instruct") == before
    assert paper_value(task, metric, family, "CHAMELEON") == after


def test_what_the_paper_did_not_measure_is_none() -> None:
    assert paper_value("LaMP_2", "margin", "decoder", "CHAMELEON") is None
    assert paper_value("LaMP_2", "accuracy", "decoder", "nobody") is None
    assert paper_value("LaMP_2", "accuracy", "decoder", "ALOE") == 0.307
    assert paper_value("LaMP_2", "accuracy", "encoder-decoder", "LLM-REC") == 0.214
    numbers = paper_numbers()
    assert len(numbers) == 84 and numbers["value"].between(0, 1.5).all()
    keys = ["table", "task", "metric", "backbone", "method"]
    assert not numbers.duplicated(keys).any()


@pytest.mark.parametrize("task", TASKS)
def test_the_official_metrics_are_those_of_the_evaluator(task: str) -> None:
    run = planted_run({"chameleon": 0.7}, tasks=(task,))
    [cell] = run.cells
    golds = query_golds(run, task)
    expected = [evaluate(task, golds, answer.texts) for answer in cell.answers["chameleon"]]
    for metric in get_task(task).metrics:
        found = estimate(run, [cell], "chameleon", metric)
        assert found.value == pytest.approx(np.mean([one[metric] for one in expected]))
        assert found.low < found.value < found.high
        assert (found.n, found.seeds) == (120, SEEDS)


def test_a_difference_is_paired_and_turns_with_its_arms() -> None:
    run = planted_run({"chameleon": 0.9}, tasks=("LaMP_2",))
    gain = estimate(run, run.cells, "chameleon", "accuracy", "instruct")
    level, base = (estimate(run, run.cells, m, "accuracy") for m in ("chameleon", "instruct"))
    assert gain.value == pytest.approx(level.value - base.value) and gain.low > 0
    loss = estimate(run, run.cells, "instruct", "accuracy", "chameleon")
    assert loss.value == pytest.approx(-gain.value)
    nothing = estimate(run, run.cells, "chameleon", "accuracy", "chameleon")
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_two_models_of_a_family_are_seeds_of_one_estimate() -> None:
    run = planted_run(tasks=("LaMP_2",))
    [cell] = run.cells
    twice = [cell, replace(cell, backbone="demo:decoder:1")]
    found = estimate(run, twice, "chameleon", "accuracy")
    assert found.seeds == 2 * SEEDS == len(sums(run, twice, "chameleon", "f1"))
    assert found.value == pytest.approx(float(stacked([cell], "chameleon", "accuracy").mean()))


def test_queries_without_a_margin_are_left_out_of_its_mean() -> None:
    run = planted_run({"chameleon": 1.0})
    same = agreeing(run, "LaMP_3")
    assert 0 < same.sum() < len(same)
    found = estimate(run, run.cells, "chameleon", "margin", "instruct")
    assert (found.n, found.seeds) == ((~same).sum(), SEEDS)
    assert estimate(run, run.cells, "chameleon", "margin").value == 1.0
    counted = sums(run, run.cells, "chameleon", "margin")[0]
    assert counted[:, 1].tolist() == (~same).astype(float).tolist()


def test_where_nobody_has_a_margin_there_is_no_estimate_of_it() -> None:
    run = without_margins(planted_run())
    assert where_defined(estimate, run, run.cells, "chameleon", "margin", "instruct") is None
    assert where_defined(estimate, run, run.cells, "chameleon", "mae") == estimate(
        run, run.cells, "chameleon", "mae"
    )


def test_a_part_of_the_queries_can_be_looked_at_alone() -> None:
    run = planted_run({"chameleon": 1.0, "instruct": 0.0}, tasks=("LaMP_2",))
    same = agreeing(run, "LaMP_2")
    found = difference_on(run, run.cells, "chameleon", "accuracy", same)
    assert (found.value, found.n) == (1.0, int(same.sum()))
    nothing = difference_on(run, run.cells, "instruct", "accuracy", same)
    assert (nothing.low, nothing.high) == (0.0, 0.0)


def test_a_task_has_its_official_metrics_first_and_habits_in_the_world_alone() -> None:
    run = planted_run(tasks=TASKS)
    assert metrics_of(run, "LaMP_3") == ["mae", "rmse", "margin", "changed", "valid"]
    assert metrics_of(run, "LaMP_7") == [
        "rouge1", "rougeL", "margin", "habits", "changed", "valid",
    ]  # fmt: skip
    official = {"LaMP_7": replace(run.data["LaMP_7"], truth=None)}
    assert "habits" not in metrics_of(replace(run, data=official), "LaMP_7")
    assert {m for task in TASKS for m in metrics_of(run, task)} == set(STATISTICS)


def test_a_row_that_one_cell_lacks_is_counted_on_the_others() -> None:
    run = planted_run()
    [cell] = run.cells
    assert methods_in([cell]) == list(METHODS)
    scores = {name: value for name, value in cell.scores.items() if name != "answer_only"}
    poorer = replace(cell, scores=scores)
    assert methods_in([cell, poorer]) == list(METHODS)
    assert [m.id for m in methods_in([poorer])] == [m.id for m in METHODS if m.id != "answer_only"]
    alone = estimate(run, [cell], "answer_only", "mae", "instruct")
    assert estimate(run, [poorer, cell], "answer_only", "mae", "instruct") == alone
    assert estimate(run, [cell, cell], "random", "mae").seeds == 2 * alone.seeds


def test_every_training_seed_counts_the_same_whatever_the_number_of_its_groups() -> None:
    run = planted_run({"chameleon": 0.9}, backbones=("demo:decoder:0", "demo:decoder:1"))
    first, second = run.cells
    answers = {**second.answers, "chameleon": second.answers["chameleon"][:1]}
    fewer = replace(second, answers=answers, scores={**second.scores, "chameleon": {
        name: rows[:1] for name, rows in second.scores["chameleon"].items()
    }})  # fmt: skip
    found = estimate(run, [first, fewer], "chameleon", "mae")
    means = [float(cell.scores["chameleon"]["abs_error"].mean()) for cell in (first, fewer)]
    assert means[0] != means[1]
    assert found.value == pytest.approx(np.mean(means)) and found.seeds == 3
