from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chameleon_lib.core import directions
from chameleon_lib.core.task import get_task
from chameleon_lib.data.metrics import evaluate
from chameleon_lib.errors import UserError
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
    Estimate,
)
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies import s01_per_user as table1
from chameleon_lib.studies import s02_unseen_users as table2
from chameleon_lib.studies import s07_serving as serving
from chameleon_lib.studies.frame import (
    COLUMNS,
    Claim,
    alike,
    contrast,
    difference,
    estimate,
    judge,
    matrix,
    methods_in,
    metrics_of,
    pick,
    places,
    summarise,
    sums,
    titled,
    user_sums,
    values_of,
    where_defined,
)
from chameleon_lib.studies.methods import (
    METHODS,
    ROLES,
    controls_of,
    model_of,
    paper_numbers,
    paper_value,
    tell_apart,
    title_of,
)
from chameleon_lib.studies.run import Arm, Run, agreeing_queries, plans_of, split_of
from chameleon_lib.studies.s06_ledger import widened
from tests.studies.planted import (
    SEEDS,
    agreeing,
    answers_of,
    keeping,
    planted_run,
    query_golds,
    scores_of,
    without_margins,
)
from tests.studies.small import SETTINGS, small_profile

TASKS = ("LaMP_2", "LaMP_3", "LaMP_7")
MISTRAL, LLAMA = "mistralai/Mistral-7B-Instruct-v0.3", "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(scope="module")
def gain() -> Run:
    return planted_run({"chameleon": 0.8}, tasks=("LaMP_2",))


# --- the frame ---------------------------------------------------------------------------------


def test_a_row_is_one_number_about_one_answer(gain: Run) -> None:
    frame = gain.frame
    assert tuple(frame.columns) == COLUMNS
    assert not frame.duplicated(list(COLUMNS[:-1])).any()
    [cell] = gain.cells
    for method, answers in answers_of(cell).items():
        for name in answers[0].scores:
            own, backbones, users = matrix(pick(frame, method=method), name)
            np.testing.assert_array_equal(own, scores_of(cell, method, name))
            assert len(set(backbones)) == 1 and users.tolist() == list(range(120))
    assert values_of(pick(frame, method="instruct"), "draw") == [-1]
    assert values_of(pick(frame, method="chameleon"), "draw") == [0, 1]
    texts = [text for answers in answers_of(cell)["chameleon"] for text in answers.texts]
    codes = matrix(pick(frame, method="chameleon"), "answer")[0].ravel()
    assert len(set(zip(texts, codes, strict=True))) == len(set(texts)) == len(set(codes))


def test_several_random_directions_of_a_group_are_seeds_of_their_own(gain: Run) -> None:
    [cell] = gain.cells
    more = {arm._replace(repeat=1): found for arm, found in cell.answers.items()
            if arm.method == "random"}  # fmt: skip
    run = replace(gain, cells=[replace(cell, answers=cell.answers | more)])
    assert estimate(run.frame, "random", "accuracy").seeds == 2 * SEEDS


def test_rows_are_picked_by_value_and_walked_through_by_place() -> None:
    run = planted_run(tasks=("LaMP_2", "LaMP_3"), backbones=("demo:decoder:0", "demo:encdec:0"))
    names = [place for place, _ in places(run.frame, "task", "model")]
    assert names == [(t, m) for t in run.data for m in ("demo:decoder", "demo:encdec")]
    some = pick(run.frame, task="LaMP_3", method=("instruct", "fitted"), draw=-1)
    assert values_of(some, "method") == ["instruct"] and values_of(some, "task") == ["LaMP_3"]
    assert pick(run.frame, task="LaMP_9").empty
    fitted = pick(run.frame, method="fitted")
    first = pick(fitted, draw=0, backbone="demo:decoder:0")
    assert values_of(alike(fitted, first), "draw") == [0]


# --- models ------------------------------------------------------------------------------------


def side_by_side() -> Run:
    """Two decoders in one profile, of which one gains, and the paper's own model."""
    run = planted_run({"chameleon": 0.9}, tasks=("LaMP_2",), backbones=("demo:decoder:0",))
    other = planted_run(tasks=("LaMP_2",), backbones=("demo:decoder:1",))
    cells = [
        replace(run.cells[0], backbone=LLAMA),
        replace(other.cells[0], backbone=MISTRAL),
        run.cells[0],
        replace(run.cells[0], backbone="demo:decoder:1"),
    ]
    return replace(run, cells=cells)


def test_two_decoders_are_two_rows_and_only_the_papers_own_stands_beside_its_numbers() -> None:
    run = side_by_side()
    assert run.models == [LLAMA, MISTRAL, "demo:decoder"]
    table = table1.results(run.frame, "LaMP_2")
    rows = table[table["method"] == "CHAMELEON (paper)"].set_index("model")
    stand_in = title_of("demo:decoder")
    assert list(rows.index) == ["Llama-3.1-8B-Instruct", "Mistral-7B-Instruct-v0.3", stand_in]
    assert rows["accuracy"].tolist() == pytest.approx([0.9, 0.4, 0.9], abs=0.01)
    assert rows["seeds"].tolist() == [SEEDS, SEEDS, 2 * SEEDS]
    assert rows["paper accuracy"].isna().tolist() == [True, False, False]
    changes = table1.effects(run.frame, "LaMP_2", agreeing_queries(run, "LaMP_2"))
    assert changes.groupby("model").size().nunique() == 1 and changes["model"].nunique() == 3
    found = [v for v in table1.verdicts(run, "x") if v.words == table1.questions()[0].words]
    assert [(v.model, v.status) for v in found] == [
        ("Llama-3.1-8B-Instruct", REPRODUCED),
        ("Mistral-7B-Instruct-v0.3", NOT_REPRODUCED),
        (stand_in, REPRODUCED),
    ]
    assert [v.paper == "not in the paper" for v in found] == [True, False, False]


def test_an_embedded_model_is_its_backbone_without_the_training_seed() -> None:
    assert model_of("demo:encdec:1") == "demo:encdec" and model_of(LLAMA) == LLAMA
    assert title_of("demo:encdec") == "encoder-decoder (T5 class)"
    assert title_of("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen2.5-0.5B-Instruct"
    assert paper_value("LaMP_2", "accuracy", "Qwen/Qwen2.5-0.5B-Instruct", "CHAMELEON") is None
    assert paper_value("LaMP_2", "accuracy", MISTRAL, "CHAMELEON") == 0.396


@pytest.mark.parametrize("other", ["a/Llama-3.1-8B-Instruct", "x/llama_3.1_8B-Instruct"])
def test_models_that_would_share_a_row_or_a_file_are_refused_by_name(other: str) -> None:
    tell_apart([LLAMA, MISTRAL, "demo:decoder:0", "demo:decoder:1", "demo:encdec:0", LLAMA])
    both = replace(small_profile(), backbones=(LLAMA, other), studied=(LLAMA, other))
    with pytest.raises(UserError, match=f"{LLAMA} and {other} would both be called"):
        plans_of(both, SETTINGS)
    with pytest.raises(UserError, match="a name of its own"):
        serving.run(both, SETTINGS, task="LaMP_7")


# Read from the paper's Table 1: before → after, two models.
PRINTED = [
    ("LaMP_2", "accuracy", "demo:decoder", 0.198, 0.396),
    ("LaMP_2", "f1", "demo:decoder", 0.236, 0.349),
    ("LaMP_3", "mae", "demo:decoder", 0.497, 0.407),
    ("LaMP_3", "rmse", "demo:decoder", 0.944, 0.815),
    ("LaMP_7", "rouge1", "demo:decoder", 0.354, 0.381),
    ("LaMP_7", "rougeL", "demo:decoder", 0.295, 0.334),
    ("LaMP_2", "accuracy", "demo:encdec", 0.238, 0.420),
    ("LaMP_2", "f1", "demo:encdec", 0.171, 0.311),
    ("LaMP_3", "mae", "demo:encdec", 0.456, 0.400),
    ("LaMP_3", "rmse", "demo:encdec", 0.818, 0.714),
    ("LaMP_7", "rouge1", "demo:encdec", 0.333, 0.429),
    ("LaMP_7", "rougeL", "demo:encdec", 0.292, 0.385),
]


@pytest.mark.parametrize(("task", "metric", "model", "before", "after"), PRINTED)
def test_the_papers_numbers_are_those_it_printed(
    task: str, metric: str, model: str, before: float, after: float
) -> None:
    assert paper_value(task, metric, model, "Instruct") == before
    assert paper_value(task, metric, model, "CHAMELEON") == after


def test_the_papers_tables_are_whole() -> None:
    numbers = paper_numbers()
    assert len(numbers) == 84 and numbers["value"].between(0, 1.5).all()
    keys = ["table", "task", "metric", "backbone", "method"]
    assert not numbers.duplicated(keys).any()
    printed = set(numbers[numbers["table"] == "table1"]["method"])
    assert {method.paper for method in METHODS if method.paper} == printed


def test_methods_have_ids_titles_and_roles_of_their_own() -> None:
    for field in ("id", "title"):
        assert len({getattr(method, field) for method in METHODS}) == len(METHODS)
    assert [m.id for m in METHODS if m.labels != "none"] == ["aloe", "fitted_gold"]
    assert {m.role for m in METHODS if m.control_of} <= set(ROLES)
    assert controls_of("chameleon", "claim") == ("random", "from_neutral", "shuffled_pairs")
    assert controls_of("chameleon", "claim", "personal")[-1] == "permute_answers"
    assert controls_of("fitted") == ("random", "fitted_shuffled", "chameleon")


def test_a_direction_that_is_registered_has_its_row_and_must_be_beaten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(directions, "_REGISTRY", dict(directions._REGISTRY))

    @directions.direction("toy", title="control: a toy", kind="control", beats=("paper",))
    def toy(seen: directions.Reading) -> directions.Found:
        return directions.Found(seen.boost(), None)

    assert "toy" in controls_of("chameleon", "claim") and "toy" in table2.shown_edits()
    run = planted_run({"chameleon": 0.9, "toy": 0.9})
    assert "control: a toy" in set(table1.results(run.frame, "LaMP_3")["method"])
    paper, *_ = table1.verdicts(run, "x")
    assert paper.status == DIRECTION_ONLY and paper.note.endswith(", toy")


# --- estimates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_official_metrics_are_those_of_the_evaluator(task: str) -> None:
    run = planted_run({"chameleon": 0.7}, tasks=(task,))
    [cell] = run.cells
    golds = query_golds(run, task)
    expected = [evaluate(task, golds, a.texts) for a in answers_of(cell)["chameleon"]]
    for metric in get_task(task).metrics:
        found = estimate(run.frame, "chameleon", metric)
        assert found.value == pytest.approx(np.mean([one[metric] for one in expected]))
        assert found.low < found.value < found.high
        assert (found.n, found.seeds) == (120, SEEDS)


def test_a_difference_is_paired_and_turns_with_its_arms(gain: Run) -> None:
    up = estimate(gain.frame, "chameleon", "accuracy", "instruct")
    level, base = (estimate(gain.frame, m, "accuracy") for m in ("chameleon", "instruct"))
    assert up.value == pytest.approx(level.value - base.value) and up.low > 0
    down = estimate(gain.frame, "instruct", "accuracy", "chameleon")
    assert down.value == pytest.approx(-up.value)
    nothing = estimate(gain.frame, "chameleon", "accuracy", "chameleon")
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_every_training_seed_counts_the_same_whatever_the_number_of_its_groups() -> None:
    run = planted_run({"chameleon": 0.9}, backbones=("demo:decoder:0", "demo:decoder:1"))
    first, second = run.cells
    fewer = keeping(second, lambda arm: arm != Arm("chameleon", 1))
    run = replace(run, cells=[first, fewer])
    means = [float(scores_of(cell, "chameleon", "abs_error").mean()) for cell in run.cells]
    found = estimate(run.frame, "chameleon", "mae")
    assert means[0] != means[1]
    assert found.value == pytest.approx(np.mean(means)) and found.seeds == 3
    both = user_sums(pick(run.frame, method="chameleon"), "mae")
    assert both[:, 0].sum() / both[:, 1].sum() == pytest.approx(np.mean(means))


def test_a_row_that_one_seed_lacks_is_counted_on_the_others() -> None:
    run = planted_run(backbones=("demo:decoder:0", "demo:decoder:1"))
    first, second = run.cells
    fewer = keeping(second, lambda arm: arm.method != "answer_only")
    poorer = replace(run, cells=[first, fewer])
    assert methods_in(poorer.frame) == list(METHODS)
    alone = replace(run, cells=[first])
    assert estimate(poorer.frame, "answer_only", "mae", "instruct") == estimate(
        alone.frame, "answer_only", "mae", "instruct"
    )
    second_only = pick(poorer.frame, backbone="demo:decoder:1")
    assert "answer_only" not in {method.id for method in methods_in(second_only)}


def test_queries_without_a_margin_are_left_out_of_its_mean() -> None:
    run = planted_run({"chameleon": 1.0})
    same = agreeing(run, "LaMP_3")
    assert 0 < same.sum() < len(same)
    found = estimate(run.frame, "chameleon", "margin", "instruct")
    assert (found.n, found.seeds) == ((~same).sum(), SEEDS)
    assert estimate(run.frame, "chameleon", "margin").value == 1.0
    counted, _ = sums(pick(run.frame, method="chameleon"), "margin")
    assert counted[0][:, 1].tolist() == (~same).astype(float).tolist()
    none = without_margins(run)
    assert where_defined(estimate, none.frame, "chameleon", "margin", "instruct") is None
    assert where_defined(estimate, none.frame, "chameleon", "mae") == estimate(
        run.frame, "chameleon", "mae"
    )


def test_a_part_of_the_queries_can_be_looked_at_alone() -> None:
    run = planted_run({"chameleon": 1.0, "instruct": 0.0}, tasks=("LaMP_2",))
    same = agreeing_queries(run, "LaMP_2")
    found = estimate(pick(run.frame, query=same), "chameleon", "accuracy", "instruct")
    assert (found.value, found.n) == (1.0, len(same))


def test_a_task_has_its_official_metrics_first() -> None:
    frame = planted_run(tasks=TASKS).frame
    found = {task: metrics_of(pick(frame, task=task)) for task in TASKS}
    assert found["LaMP_3"] == ["mae", "rmse", "margin", "changed", "valid"]
    form = ["rouge1 stripped", "empty", "refusal", "preamble", "words"]
    rest = ["margin", "habits", "changed", "valid"]
    assert found["LaMP_7"] == ["rouge1", "rougeL", *form, *rest]
    assert found["LaMP_2"] == ["accuracy", "f1", "margin", "changed", "valid"]


def test_a_summary_has_a_row_per_place_and_method_with_titles_on_demand() -> None:
    run = planted_run({"fitted": 0.9}, tasks=("LaMP_2",), backbones=("demo:decoder:0",) * 1)
    table = summarise(run.frame, {"accuracy": "gain", "margin": "margin"}, against="instruct")
    assert len(table) == len(METHODS) - 1 and list(table.columns[-2:]) == ["n", "seeds"]
    row = table.set_index("method").loc["fitted"]
    assert row["gain"] == pytest.approx(0.5, abs=0.01) and row["margin n"] < row["n"] == 120
    shown = titled(table, "kind", "labels")
    assert list(shown.columns[:4]) == ["model", "method", "kind", "gold labels"]
    assert shown["model"].unique().tolist() == ["decoder (Mistral class)"]
    by = summarise(run.frame, ["f1"], by=("task", "backbone"), methods=METHODS[:2])
    assert by[["task", "backbone"]].drop_duplicates().values.tolist() == [
        ["LaMP_2", "demo:decoder:0"]
    ]
    assert by["method"].tolist() == [method.id for method in METHODS[:2]]


# --- contrasts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "margin"])
def test_a_contrast_of_two_arms_is_the_difference_of_the_tables(gain: Run, metric: str) -> None:
    mine = difference(gain.frame, "chameleon", "instruct", metric)
    other = estimate(gain.frame, "chameleon", metric, "instruct")
    assert (mine.n, mine.seeds) == (other.n, other.seeds)
    for name in ("value", "low", "high"):
        assert getattr(mine, name) == pytest.approx(getattr(other, name))
    assert mine.low > 0


def test_a_contrast_adds_up_its_arms_user_by_user(gain: Run) -> None:
    rows = {name: pick(gain.frame, method=name) for name in ("chameleon", "fitted", "instruct")}
    terms = [(0.5, rows["chameleon"]), (0.5, rows["fitted"]), (-1.0, rows["instruct"])]
    means = {name: scores_of(gain.cells[0], name, "accuracy").mean() for name in rows}
    expected = (means["chameleon"] + means["fitted"]) / 2 - means["instruct"]
    assert contrast(terms, "accuracy").value == pytest.approx(expected)
    same = contrast([(1, rows["fitted"]), (-1, rows["fitted"])], "accuracy")
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_no_mean_no_contrast_and_no_contrast_of_other_users(gain: Run) -> None:
    with pytest.raises(ValueError, match="no mean"):
        difference(gain.frame, "chameleon", "instruct", "f1")
    few = pick(gain.frame, method="instruct", query=values_of(gain.frame, "query")[:50])
    with pytest.raises(ValueError, match="value for the same queries"):
        contrast([(1, pick(gain.frame, method="fitted")), (-1, few)], "accuracy")


def test_a_bonferroni_width_is_the_ratio_of_normal_quantiles() -> None:
    found = Estimate(0.10, 0.06, 0.18, 120, 2)
    wide = widened(found, 10)  # 2.807 / 1.960 = 1.432
    assert wide.low == pytest.approx(0.10 - 1.4322 * 0.04, abs=1e-4)
    assert wide.high == pytest.approx(0.10 + 1.4322 * 0.08, abs=1e-4)
    assert widened(found, 1) == found
    assert (wide.value, wide.n, wide.seeds) == (0.10, 120, 2)


# --- the rule ----------------------------------------------------------------------------------

UP, ZERO, DOWN = (Estimate(m, m - 0.05, m + 0.05, 120, 2) for m in (0.2, 0.0, -0.2))


def judged(effect: Estimate | None, task: str = "LaMP_2", **changes: Any) -> Verdict:
    made: dict[str, Any] = {"own": False, "margins": {"other_arm": UP}, **changes}
    claim = Claim(task, "demo:decoder", "ours is better", effect, **made)
    [found] = judge([claim], section="4.2", notebook="01_per_user", csv="tables/{task}.csv")
    return found


@pytest.mark.parametrize(
    ("effect", "word", "own"),
    [(UP, REPRODUCED, HOLDS), (ZERO, NOT_REPRODUCED, DOES_NOT_HOLD), (DOWN, OPPOSITE, OPPOSITE)],
)
def test_the_word_follows_the_interval(effect: Estimate, word: str, own: str) -> None:
    assert judged(effect).status == word and judged(effect, own=True).status == own
    assert judged(effect, margins={"other_arm": ZERO}).status in (word, DIRECTION_ONLY)


def test_errors_point_down_and_a_claimed_loss_turns_the_sign() -> None:
    error = {"margins": {"other_arm": DOWN}, "task": "LaMP_3"}
    assert judged(DOWN, **error).status == REPRODUCED and judged(UP, **error).status == OPPOSITE
    assert judged(DOWN, margins={"other_arm": DOWN}, sign=-1).status == REPRODUCED
    assert judged(UP, task="LaMP_3", upwards=True).status == REPRODUCED


def test_the_record_says_what_was_compared_on_whom() -> None:
    found = judged(UP, remark="reading: no history")
    assert found.claim == "LaMP-2, decoder (Mistral class): ours is better (accuracy change)"
    assert found.note == "reading: no history; must also beat: other arm"
    assert (found.n, found.seeds, found.paper) == (120, 2, "not in the paper")
    assert found.csv == "tables/LaMP_2.csv" and found.plain and found.metric == "accuracy"
    slope = judged(UP, measure="margin slope", metric="margin", note="as steep")
    assert (slope.plain, slope.metric, slope.note) == (False, "margin", "as steep")
    assert judged(UP, margins={}).note == "no other control was run"
    missing = judged(None)
    assert (missing.status, missing.n, missing.seeds) == (NOT_RUN, 0, 0)


def test_official_users_are_called_so() -> None:
    run = planted_run()
    assert split_of(run, "LaMP_3") == "test users of the embedded world"
    official = {"LaMP_3": replace(run.data["LaMP_3"], truth=None)}
    assert split_of(replace(run, data=official), "LaMP_3") == "official dev users"


def test_an_empty_run_has_an_empty_frame() -> None:
    run = replace(planted_run(), cells=[])
    assert isinstance(run.frame, pd.DataFrame) and run.frame.empty and run.models == []
