from __future__ import annotations

import pytest

from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
    TOO_FEW_USERS,
)
from chameleon_lib.kit.tables import check_table
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.history_ablation import verdicts as history_verdicts
from chameleon_lib.sections.results import Run
from tests.sections.history_ablation.planted_history import (
    FEW,
    MANY,
    NEAREST,
    PAPER,
    PROMPTS_ONLY,
    RANDOM,
    RAW,
    RECENT,
    planted_history,
)

TASKS = ("LaMP_2", "LaMP_3")


def verdicts_of(run: Run) -> dict[str, Verdict]:
    """The verdicts of a run with one task and family, by what they are about."""
    [task] = run.data
    found = history_verdicts.judged(run, history_verdicts.claims(run, task), "05_x")
    names = ("more", "too much", "rule", "rule, prompt", "raw, prompt")
    return dict(zip(names, found, strict=True))


def ch(rate: float, instruct: float = 0.4) -> dict[str, float]:
    return {"chameleon": rate, "instruct": instruct}


# --- the number of items -------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_gains_up_to_the_papers_number_and_losses_beyond_are_reproduced(task: str) -> None:
    found = verdicts_of(planted_history({PAPER: ch(0.9), MANY: ch(0.4)}, tasks=(task,)))
    assert found["more"].status == REPRODUCED and found["too much"].status == REPRODUCED
    better = 1 if task == "LaMP_2" else -1
    assert found["more"].ours is not None and better * found["more"].ours.low > 0
    assert found["too much"].ours is not None and better * found["too much"].ours.high < 0


@pytest.mark.parametrize("task", TASKS)
def test_a_gain_that_the_prompt_has_as_well_is_a_direction_only(task: str) -> None:
    run = planted_history({PAPER: ch(0.9, 0.9), MANY: ch(0.4, 0.4)}, tasks=(task,))
    found = verdicts_of(run)
    assert found["more"].status == DIRECTION_ONLY and found["too much"].status == DIRECTION_ONLY
    assert "change of Instruct" in found["more"].note


@pytest.mark.parametrize("task", TASKS)
def test_the_same_level_at_every_number_is_not_reproduced(task: str) -> None:
    found = verdicts_of(planted_history(tasks=(task,)))
    assert found["more"].status == NOT_REPRODUCED and found["too much"].status == NOT_REPRODUCED
    ours = found["more"].ours
    assert ours is not None and ours.low < ours.high  # a null result, not the same answers


@pytest.mark.parametrize("task", TASKS)
def test_losses_up_to_the_papers_number_and_gains_beyond_are_opposite(task: str) -> None:
    rates = {FEW: ch(0.9), PAPER: ch(0.4), MANY: ch(0.9)}
    found = verdicts_of(planted_history(rates, tasks=(task,)))
    assert found["more"].status == OPPOSITE and found["too much"].status == OPPOSITE


# --- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_rule_that_beats_every_control_holds(task: str) -> None:
    rates = {PAPER: {"chameleon": 0.9, "insight": 0.9}, RAW: {"insight": 0.9}}
    found = verdicts_of(planted_history(rates, tasks=(task,)))
    statuses = [found[name].status for name in ("rule", "rule, prompt", "raw, prompt")]
    assert statuses == [HOLDS] * 3
    assert all("beyond the paper" in found[name].claim for name in ("rule", "raw, prompt"))


@pytest.mark.parametrize("control", [RECENT, NEAREST])
def test_a_rule_that_another_control_equals_is_a_direction_only(control: str) -> None:
    rates = {PAPER: ch(0.9), control: ch(0.9)}
    found = verdicts_of(planted_history(rates))["rule"]
    assert found.status == DIRECTION_ONLY and control.split(" ·")[0] in found.note


def test_a_rule_as_good_as_random_does_not_hold() -> None:
    found = verdicts_of(planted_history())
    for name in ("rule", "rule, prompt", "raw, prompt"):
        assert found[name].status == DOES_NOT_HOLD
    both = verdicts_of(planted_history({PAPER: ch(0.9), RANDOM: ch(0.9)}))
    assert both["rule"].status == DOES_NOT_HOLD


@pytest.mark.parametrize("task", TASKS)
def test_a_rule_worse_than_random_is_opposite(task: str) -> None:
    rates = {RANDOM: {"chameleon": 0.9, "insight": 0.9}}
    found = verdicts_of(planted_history(rates, tasks=(task,)))
    statuses = [found[name].status for name in ("rule", "rule, prompt", "raw, prompt")]
    assert statuses == [OPPOSITE] * 3


def test_a_rule_that_beats_random_items_holds_where_they_are_the_only_control() -> None:
    conditions = (FEW, PAPER, MANY, RAW, RANDOM)
    run = planted_history({PAPER: ch(0.9)}, conditions=conditions)
    found = verdicts_of(run)["rule"]
    assert found.status == HOLDS and found.note == "must also beat: random"
    nothing = planted_history({PAPER: ch(0.9), RANDOM: ch(0.9)}, conditions=conditions)
    assert verdicts_of(nothing)["rule"].status == DOES_NOT_HOLD


# --- what cannot be judged -----------------------------------------------------------------------


def test_few_users_are_not_judged() -> None:
    found = verdicts_of(planted_history({PAPER: ch(0.9)}, n_users=60))
    assert {v.status for v in found.values()} == {TOO_FEW_USERS}


def test_a_claim_without_its_conditions_was_not_run() -> None:
    run = planted_history(conditions=(PAPER, RANDOM))
    statuses = {name: v.status for name, v in verdicts_of(run).items()}
    assert statuses["more"] == statuses["too much"] == statuses["raw, prompt"] == NOT_RUN
    assert statuses["rule"] == statuses["rule, prompt"] == DOES_NOT_HOLD
    frame = history_verdicts.claim_frame(history_verdicts.claims(run, "LaMP_3"))
    assert set(frame["control"]) == {"the change itself", "minus random"} and len(frame) == 4


def test_a_rule_that_left_no_pair_is_not_judged_and_is_no_control() -> None:
    run = planted_history({PAPER: ch(0.9)}, without_pairs=(MANY, RECENT))
    found = verdicts_of(run)
    assert found["too much"].status == NOT_RUN and found["more"].status == REPRODUCED
    assert "nearest" in found["rule"].note and "recent" not in found["rule"].note
    none = verdicts_of(planted_history(without_pairs=(RANDOM,)))
    assert none["rule"].status == NOT_RUN and none["rule, prompt"].status == DOES_NOT_HOLD


# --- the frame behind the verdicts ---------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_claim_stands_in_the_table_with_its_controls(task: str) -> None:
    run = planted_history({PAPER: ch(0.9)}, tasks=(task,))
    claims = history_verdicts.claims(run, task)
    frame = check_table(history_verdicts.claim_frame(claims), "claims", "demo")
    assert set(frame["claim"]) == {claim.words for claim in claims}
    assert len(frame) == sum(1 + len(claim.margins) for claim in claims)
    first = frame[frame["claim"] == claims[0].words].set_index("control")["change"]
    score = get_task(task).metrics[0].replace("mae", "abs_error")
    level = {c.condition: c.scores for c in run.cells}
    gain = level[PAPER]["chameleon"][score].mean() - level[FEW]["chameleon"][score].mean()
    prompt = level[PAPER]["instruct"][score].mean() - level[FEW]["instruct"][score].mean()
    assert first["the change itself"] == pytest.approx(gain)
    assert first["minus the change of Instruct"] == pytest.approx(gain - prompt)
    assert PROMPTS_ONLY == (RAW,) and len(claims) == 5


def test_the_papers_reading_stands_beside_the_decoder_alone() -> None:
    claim = history_verdicts._number
    run = planted_history(backbones=("demo:decoder:0", "demo:encdec:0"), tasks=("LaMP_2",))
    papers = [claim(run, "LaMP_2", family, {}, 5, 10, 1).paper for family in run.families]
    assert papers == ["~+0.014 (plot reading)", "not shown in the paper"]
    assert claim(run, "LaMP_3", "decoder", {}, 10, 25, -1).paper == "~-0.101 (plot reading)"
    assert claim(run, "LaMP_2", "decoder", {}, 10, 30, -1).paper == "not shown in the paper"
