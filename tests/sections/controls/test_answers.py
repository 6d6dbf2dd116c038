from __future__ import annotations

from collections.abc import Mapping

import pytest

from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    OPPOSITE,
    TOO_FEW_USERS,
)
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.sections.controls import answers
from chameleon_lib.sections.controls import ledger as tables
from chameleon_lib.sections.controls.variants import DEFAULT
from chameleon_lib.sections.controls.verdicts import verdicts
from chameleon_lib.sections.per_user import tables as table1
from chameleon_lib.sections.results import Run
from tests.sections.planted import planted_run, swapped
from tests.sections.planted_conditions import conditions_run

ONE = ("demo:decoder:0",)
INSIGHT = "A13 insight in the prompt"
ALL, ORDER = "A11 positions: all", "B4 order: remove, then boost"
NULL = {DEFAULT: {"chameleon": 0.4}, ALL: {"chameleon": 0.4}, ORDER: {"chameleon": 0.4}}


def run_of(task: str = "LaMP_2", n_users: int = 120, **rates: float) -> Run:
    known = {name.replace("_and_", "+"): rate for name, rate in rates.items()}
    return planted_run(known, tasks=(task,), backbones=ONE, n_users=n_users)


def ledger_of(rates: Mapping[str, Mapping[str, float]] = NULL, task: str = "LaMP_2") -> Run:
    return conditions_run(rates, tasks=(task,), backbones=ONE)


def judged(table: Run, ledger: Run | None = None) -> list[Verdict]:
    """Verdicts: paper's edit personal, beyond the insight; the same of the fitted; the ledger's."""
    found = verdicts(table, ledger or ledger_of(), "06_controls")
    assert len({verdict.claim for verdict in found}) == len(found) == 5
    return found


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
def test_a_gain_of_its_own_with_and_without_the_insight_holds(task: str) -> None:
    run = run_of(task, chameleon=0.9, chameleon_and_insight=0.9)
    personal, beyond, fitted, *_ = judged(run)
    assert (personal.status, beyond.status) == (HOLDS, HOLDS)
    assert fitted.status == DOES_NOT_HOLD
    said = answers.direction_sentence(run)
    assert f"CHAMELEON (paper) beats Instruct in 1 of 1 ({task.replace('_', '-')} decoder)" in said
    assert "no direction that is nobody's gives any of its gains" in said
    assert "there is no gain whose direction could be personal" in said  # of the fitted edit
    assert "So it adds to the insight." in answers.insight_sentence(run)


@pytest.mark.parametrize("control", answers.COMMON["chameleon"])
def test_a_gain_that_a_common_direction_has_is_not_personal(control: str) -> None:
    run = run_of(**{"chameleon": 0.9, "chameleon_and_insight": 0.9, control: 0.9})
    personal, beyond, *_ = judged(run)
    assert personal.status == DIRECTION_ONLY and control.replace("_", " ") in personal.note
    assert beyond.status == HOLDS
    assert "some common direction gains as much" in answers.direction_sentence(run)


def test_a_gain_that_the_insight_has_as_well_is_nothing_beyond_it() -> None:
    run = run_of(insight=0.9, chameleon=0.9, chameleon_and_insight=0.9)
    personal, beyond, *_ = judged(run)
    # No control has the gain of the edit alone, so its direction is its own.
    assert (personal.status, beyond.status) == (HOLDS, DOES_NOT_HOLD)
    assert "insight" not in personal.note
    said = answers.insight_sentence(run)
    assert "without any edit, gains in 1 of 1" in said
    assert "It reaches LaMP-2 decoder 0.900 (the planted answers 0." in said
    assert "So it adds nothing to the insight." in said


def test_no_effect_holds_nothing_and_is_said_as_such() -> None:
    run = run_of()
    assert {verdict.status for verdict in judged(run)} == {DOES_NOT_HOLD}
    said = answers.direction_sentence(run)
    assert said.count("there is no gain whose direction could be personal") == 2
    assert answers.insight_sentence(run).count("gains in 0 of 1") == 3


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
def test_a_loss_is_opposite_and_is_said_as_such(task: str) -> None:
    rates = {"instruct": 0.8, "insight": 0.8, "chameleon": 0.2, "chameleon_and_insight": 0.2}
    run = run_of(task, **rates)
    personal, beyond, *_ = judged(run)
    assert (personal.status, beyond.status) == (OPPOSITE, OPPOSITE)
    assert "falls below it in 1 of 1" in answers.direction_sentence(run)
    said = answers.insight_sentence(run)
    assert "adds nothing to the insight and costs some of it" in said


def test_labels_shuffled_between_edit_and_instruct_reproduce_nothing() -> None:
    gain = run_of(chameleon=0.9, fitted=0.9, chameleon_and_insight=0.9, fitted_and_insight=0.9)
    assert [v.status for v in judged(gain)[:4]] == [HOLDS] * 4
    for number, edit in enumerate(("chameleon", "fitted")):
        shuffled = swapped(swapped(gain, edit, "instruct"), f"{edit}+insight", "insight")
        own = judged(shuffled)[2 * number : 2 * number + 2]
        assert [v.status for v in own] == [DOES_NOT_HOLD] * 2
    shuffled = swapped(gain, "chameleon", "instruct")
    [paper] = [v for v in table1.verdicts(shuffled, "01_per_user") if " Instruct (" in v.claim
               and "fitted" not in v.claim and "beyond" not in v.claim]  # fmt: skip
    assert paper.status == NOT_REPRODUCED


def test_few_users_are_not_judged() -> None:
    few = run_of(n_users=60, chameleon=0.9)
    found = verdicts(few, ledger_of(), "06_controls")
    assert {v.status for v in found[:4]} == {TOO_FEW_USERS}
    for said in (answers.direction_sentence(few), answers.insight_sentence(few)):
        assert said.startswith("demo profile, 60 test users (fewer than 100: too few to judge by)")


def test_a_reading_that_rescues_the_edit_is_named_with_its_width() -> None:
    rates = {**NULL, ALL: {"chameleon": 0.9}, ORDER: {"chameleon": 0.1}}
    for task in ("LaMP_2", "LaMP_3"):
        ledger = ledger_of(rates, task)
        *_, rescue = judged(run_of(), ledger)
        assert rescue.status == HOLDS and ALL in rescue.note and "2 comparisons" in rescue.note
        assert rescue.ours is not None and rescue.ours.low > 0
        assert not rescue.plain and "interval widened" in rescue.claim
        said = answers.ambiguity_sentence(ledger, tables.ledger_effects(ledger))
        assert "By chance alone 0.1 intervals" in said
        assert f"edited model is right moves in 2 at 95 % and in 2 at that width: {ALL} (" in said
        assert f"{ORDER} (decoder, " in said
        assert "some open points decide what the edit does" in said
        assert f"at that width: {ALL} (decoder)." in said


def test_a_better_prompt_rescues_no_edit() -> None:
    better = {**NULL, INSIGHT: {"insight": 0.9, "chameleon": 0.9}}
    ledger = ledger_of(better)
    *_, rescue = judged(run_of(), ledger)
    assert rescue.status == DOES_NOT_HOLD
    said = answers.ambiguity_sentence(ledger, tables.ledger_effects(ledger))
    assert f"in 1 at that width: {INSIGHT} (" in said and "at that width: none." in said
    assert "none was seen to decide what the edit does" in said


def test_a_reading_as_good_as_a_default_that_helps_rescues_nothing() -> None:
    good = {name: {"chameleon": 0.9} for name in NULL}
    ledger = ledger_of(good)
    *_, rescue = judged(run_of(), ledger)
    assert rescue.status == DIRECTION_ONLY
    said = answers.ambiguity_sentence(ledger, tables.ledger_effects(ledger))
    assert "no open point was seen to matter" in said and "at that width: none." in said


def test_readings_that_all_lose_are_opposite_and_none_that_change_anything_holds_nothing() -> None:
    bad = {name: {"instruct": 0.9, "chameleon": 0.2} for name in NULL}
    *_, rescue = judged(run_of(), ledger_of(bad))
    assert rescue.status == OPPOSITE
    *_, rescue = judged(run_of(), ledger_of())
    assert rescue.status == DOES_NOT_HOLD
