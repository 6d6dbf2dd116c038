from __future__ import annotations

from dataclasses import replace

import pytest

from chameleon_lib.kit.tables import check_table
from chameleon_lib.sections.controls.ledger import (
    ledger as ledger_table,
)
from chameleon_lib.sections.controls.ledger import ledger_effects, ledger_tests, refused_readings
from chameleon_lib.sections.controls.variants import DEFAULT
from chameleon_lib.sections.results import FAMILY_TITLES, Run
from tests.sections.planted import without_margins
from tests.sections.planted_conditions import conditions_run

DECODER = FAMILY_TITLES["decoder"]
CHOSEN = ("A11 positions: all", "A8 confidence: as printed", "B4 order: remove, then boost")


@pytest.fixture(scope="module")
def ledger() -> Run:
    run = conditions_run(
        {
            DEFAULT: {"chameleon": 0.5},
            CHOSEN[0]: {"chameleon": 0.9},
            CHOSEN[1]: {"chameleon": 0.5},
            CHOSEN[2]: {"chameleon": 0.1},
        }
    )
    # In one group of one backbone the last reading gave no edit.
    last = run.cells[-1]
    cut = replace(
        last,
        answers={"instruct": last.answers["instruct"], "chameleon": last.answers["chameleon"][1:]},
        scores={
            **last.scores,
            "chameleon": {k: v[1:] for k, v in last.scores["chameleon"].items()},
        },
        draws=[{"draw": 0, "refused": "There is no layer left."}, last.draws[1]],
    )
    return replace(run, cells=[*run.cells[:-1], cut])


def test_a_reading_is_compared_with_the_default_and_with_instruct(ledger: Run) -> None:
    frame = ledger_effects(ledger).set_index(["family", "id"])
    up, same, down = (frame.loc[(DECODER, name)] for name in ("A11", "A8", "B4"))
    assert up["against the default"] == pytest.approx(0.4, abs=0.01)
    assert up["matters"] == "answers and edit"
    assert up["against Instruct"] == pytest.approx(0.5, abs=0.01)
    assert (same["against the default"], same["answers changed"], same["matters"]) == (0, 0, "no")
    assert down["against the default"] == pytest.approx(-0.4, abs=0.01)
    assert down["matters"] == "answers and edit" and down["answers changed"] > 0.3
    assert down["against the default, widened_low"] < down["against the default_low"]
    assert up["layers"] == "0 | 1"


def test_a_group_without_an_edit_is_left_out_of_both_sides(ledger: Run) -> None:
    frame = ledger_effects(ledger).set_index(["family", "id"])
    row = frame.loc[(FAMILY_TITLES["encoder-decoder"], "B4")]
    [variant] = [cell for cell in ledger.of("LaMP_2", "encoder-decoder", CHOSEN[2])]
    [default] = ledger.of("LaMP_2", "encoder-decoder", DEFAULT)
    expected = (
        variant.scores["chameleon"]["accuracy"].mean()
        - default.scores["chameleon"]["accuracy"][1].mean()
    )
    assert row["against the default"] == pytest.approx(expected) and row["layers"] == "1"
    [sentence] = refused_readings(ledger)
    assert "gave no edit in 1 of" in sentence and sentence.endswith("There is no layer left.")


def test_tests_are_counted_where_there_are_answers(ledger: Run) -> None:
    assert ledger_tests(ledger) == 2 * len(CHOSEN)
    none = [
        replace(cell, answers={"instruct": cell.answers["instruct"]},
                scores={"instruct": cell.scores["instruct"]})
        if cell.condition == CHOSEN[0] else cell
        for cell in ledger.cells
    ]  # fmt: skip
    assert ledger_tests(replace(ledger, cells=none)) == 2 * (len(CHOSEN) - 1)


def test_tables_may_be_saved(ledger: Run) -> None:
    frame = ledger_effects(ledger)
    assert len(check_table(frame, "ledger", "demo")) == len(frame) == 2 * len(CHOSEN)
    assert not frame.isna().any(axis=None) and list(frame.columns[-2:]) == ["n", "seeds"]
    assert len(check_table(ledger_table(ledger), "points", "demo", "diagnostic")) == 34


def test_a_better_prompt_moves_the_answers_and_not_what_the_edit_adds() -> None:
    """The default edit adds 0.1; under the other wording model and edit are both better by 0.4."""
    wording, insight = "B3 Instruct without the agent block", "A13 insight in the prompt"
    run = conditions_run(
        {
            DEFAULT: {"instruct": 0.4, "chameleon": 0.5},
            wording: {"instruct": 0.8, "chameleon": 0.9},
            insight: {"instruct": 0.4, "insight": 0.8, "chameleon": 0.9},
        }
    )
    frame = ledger_effects(run)
    frame = frame[frame["family"] == DECODER].set_index("id")
    for name in ("B3", "A13"):
        row = frame.loc[name]
        assert row["against the default"] == pytest.approx(0.4, abs=0.01)
        assert row["added"] == pytest.approx(0.1, abs=0.01)
        assert row["added, against the default"] == pytest.approx(0, abs=0.02)
        assert row["matters"] == "answers"
    assert frame.loc["B3", "against Instruct"] == pytest.approx(0.1, abs=0.01)
    assert frame.loc["A13", "against Instruct"] == pytest.approx(0.5, abs=0.01)


def test_a_margin_is_counted_on_those_who_have_one(ledger: Run) -> None:
    frame = ledger_effects(ledger)
    assert set(frame["n"]) == {120} and frame["added margin n"].between(1, 119).all()
    empty = check_table(ledger_effects(without_margins(ledger)), "ledger", "demo")
    assert empty["added margin"].isna().all() and set(empty["added margin n"]) == {0}
