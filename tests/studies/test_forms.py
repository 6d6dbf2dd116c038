"""The form of free-text answers beside their score, in the tables of every study that has some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chameleon_lib.core import task as task_module
from chameleon_lib.core.answers import FORM
from chameleon_lib.core.task import get_task, register, tokens
from chameleon_lib.data.floors import copy_input
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.errors import UserError
from chameleon_lib.kit.tables import check_table
from chameleon_lib.studies import explore, own_users, quickstart
from chameleon_lib.studies import s01_per_user as table1
from chameleon_lib.studies import s02_unseen_users as table2
from chameleon_lib.studies import s03_group_size as sizes
from chameleon_lib.studies.forms import form_of, measures_of, stripped, unstripped
from chameleon_lib.studies.frame import STATISTICS
from chameleon_lib.studies.methods import METHODS
from chameleon_lib.studies.quickstart import PAPER
from chameleon_lib.studies.run import Run
from tests.studies.planted import planted_run, planted_sizes, query_golds, scored
from tests.studies.small import small_kit, small_profile

TASK = "LaMP_7"
NAMES = ["rouge1 stripped", *FORM]
PREAMBLE = "Here's a paraphrased version of the tweet: "
REFUSAL = "I'm sorry, but I can't assist with that."
TITLES = {method.id: method.title for method in METHODS}


def spoken(run: Run, method: str, before: str = "", said: str = "") -> Run:
    """The run in which a method puts words before its answers, or says other words."""
    cells = []
    for cell in run.cells:
        golds, answers = query_golds(run, cell.task), dict(cell.answers)
        for arm, found in cell.answers.items():
            if arm.method == method:
                texts = [said or before + text for text in found.texts]
                answers[arm] = scored(cell.task, golds, texts, found.margin)
        cells.append(replace(cell, answers=answers))
    return replace(run, cells=cells)


@pytest.fixture(scope="module")
def run() -> Run:
    """Two tasks; the paper's edit puts a preamble before what Instruct says, another refuses."""
    done = planted_run({"chameleon": 0.5, "fitted": 0.5}, tasks=("LaMP_3", TASK))
    posts = replace(done, cells=[cell for cell in done.cells if cell.task == TASK])
    spoilt = spoken(spoken(posts, "chameleon", before=PREAMBLE), "fitted", said=REFUSAL)
    return replace(done, cells=[done.cells[0], *spoilt.cells])


def test_the_score_without_preambles_is_that_of_the_bare_answer() -> None:
    golds = ["my tram is late again", "so tired of the rain", "what a day", "ok"]
    bare = ["the tram is late", "so tired of rain", "hello", ""]
    said = [PREAMBLE + bare[0], f'Paraphrased tweet: "{bare[1]}"', bare[2], bare[3]]
    found = form_of(TASK, golds, said)
    expected = per_sample_scores(TASK, golds, bare)
    assert list(found) == measures_of(TASK) == NAMES
    np.testing.assert_allclose(found["rouge1 stripped"], expected["rouge1"])
    assert found["preamble"].tolist() == [1, 1, 0, 0] and found["empty"].tolist() == [0, 0, 0, 1]
    other = form_of(TASK, golds, said, "rougeL")
    np.testing.assert_allclose(other["rougeL stripped"], expected["rougeL"])


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
def test_answers_of_a_closed_list_have_no_form(task: str) -> None:
    label = get_task(task).labels[0]
    assert form_of(task, [label], [PREAMBLE + label]) == {} and measures_of(task) == []


def test_a_metric_without_preambles_is_counted_as_the_metric_is() -> None:
    assert STATISTICS["rougeL stripped"] == ("rougeL stripped", "mean")
    assert STATISTICS[stripped("rmse")] == ("squared_error stripped", "rmse")
    assert unstripped("rouge1") is None and unstripped(stripped("rouge1")) == "rouge1"
    with pytest.raises(KeyError, match="no such"):
        STATISTICS[stripped("no such")]
    with pytest.raises(UserError, match="has no score 'accuracy'"):
        form_of(TASK, ["a"], ["a"], "accuracy")


def levels(table: pd.DataFrame, method: str) -> pd.Series:
    [row] = table[table["method"] == TITLES[method]].to_dict("records")
    return pd.Series(row)


def test_the_form_stands_beside_the_levels_of_free_text_alone(run: Run) -> None:
    table = table1.results(run.frame, TASK)
    assert len(check_table(table, "some", "demo")) == len(METHODS)
    shown = [name for name in table if name in ("rouge1", "rougeL", *NAMES, "margin")]
    assert shown == ["rouge1", "rougeL", *NAMES, "margin"]
    edit, refusing, plain = (levels(table, name) for name in ("chameleon", "fitted", "instruct"))
    assert edit["preamble"] == 1 and plain["preamble"] == edit["refusal"] == 0
    assert edit["rouge1"] < edit["rouge1 stripped"] == pytest.approx(0.5, abs=0.02)
    assert plain["rouge1"] == plain["rouge1 stripped"] and edit["words"] > plain["words"]
    assert refusing["refusal"] == refusing["refusal_low"] == 1
    assert refusing["words"] == refusing["words_high"] == len(tokens(REFUSAL))
    assert not [name for name in table1.results(run.frame, "LaMP_3") if name in NAMES]


def test_effects_say_what_of_a_change_is_form(run: Run) -> None:
    table = table1.effects(run.frame, TASK)
    check_table(table, "some", "demo")
    edit = levels(table, "chameleon")
    assert edit["preamble change"] == edit["preamble change_low"] == 1
    assert edit["rouge1 change"] < edit["rouge1 stripped change"]
    assert list(table.columns[-2:]) == ["n", "seeds"]
    closed = table1.effects(run.frame, "LaMP_3").columns
    assert not [name for name in closed if "words" in name or "stripped" in name]


def test_unseen_users_have_the_same_columns() -> None:
    conditions = (table2.NO_HISTORY, table2.WITH_HISTORY)
    done = planted_run(tasks=(TASK,))
    cells = [replace(cell, condition=name) for name in conditions for cell in done.cells]
    both = spoken(replace(done, cells=cells), "aloe", before=PREAMBLE)
    table = table2.results([both], TASK)
    aloe = table[table["method"] == TITLES["aloe"]]
    assert aloe["preamble"].tolist() == [1, 1] and {*NAMES} <= {*table}
    assert {"preamble change"} <= {*table2.effects([both], TASK)}
    assert {*NAMES} <= {*table2.floors([both], TASK)}


def test_copying_the_input_stays_a_floor_and_has_a_form_too(run: Run) -> None:
    table = table1.floors(run, TASK)
    check_table(table, "some", "demo")
    users = run.data[TASK].chosen(run.test_users[TASK])
    copied = copy_input(users, [])
    form = form_of(TASK, query_golds(run, TASK), copied)
    of_test = table[table["users"] == "test users"].set_index("baseline")
    row = of_test.loc["copy input"]
    for name in NAMES:
        assert row[name] == pytest.approx(form[name].mean()), name
    expected = per_sample_scores(TASK, query_golds(run, TASK), copied)["rouge1"].mean()
    assert row["rouge1"] == pytest.approx(expected)
    assert not [name for name in table1.floors(run, "LaMP_3") if name in NAMES]


@pytest.mark.parametrize(("task", "shown"), [(TASK, NAMES), ("LaMP_3", [])])
def test_the_form_stands_beside_the_levels_of_group_sizes(task: str, shown: list[str]) -> None:
    done = spoken(planted_sizes(tasks=(task,)), "chameleon", before=PREAMBLE)
    table = sizes.levels(done, task)
    check_table(table, "some", "demo")
    assert [name for name in table if name in NAMES] == shown
    if shown:
        by_method = table.groupby("method")["preamble"].unique()
        assert by_method[TITLES["chameleon"]].tolist() == [1]
        assert by_method[TITLES["instruct"]].tolist() == [0]


def test_a_free_text_task_of_ones_own_is_measured_by_its_own_first_metric(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_module, "_registry", dict(task_module._registry))
    own = replace(get_task(TASK), name="Posts", measures=get_task(TASK).measures[::-1])
    register(own)
    assert measures_of("Posts") == ["rougeL stripped", *FORM]
    assert list(form_of("Posts", ["a b"], ["Answer: a b"])) == measures_of("Posts")


def test_a_readers_own_users_and_the_explore_cells_see_it_too(tmp_path: Path) -> None:
    with small_kit(tmp_path, quickstart):
        profile = small_profile(tasks=(TASK,))
        few = explore.sample(profile, backbone="demo:decoder:0", task=TASK, users=3)
        tried = explore.edited(few, {PAPER: few.edit})
        said = few.exam.answer({PAPER: ("instruct", few.edit)})[PAPER].texts
        held = own_users.held_out(few)
        unicode = own_users.held_out(few, "rouge1_unicode")
    form = form_of(TASK, few.data.golds({user.user.id for user in few.users}), said)
    row = tried.set_index("arm").loc[PAPER]
    assert tried.columns[1] == "rouge1" and form["words"].mean() > 0
    assert {name: row[name] for name in NAMES} == {n: form[n].mean().round(3) for n in NAMES}
    assert [name for name in check_table(held, "some", "demo") if name in NAMES] == NAMES
    assert (held["words"] > 0).all()
    assert "rouge1_unicode stripped" in unicode
