from __future__ import annotations

from dataclasses import replace

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
from chameleon_lib.sections.group_size.ladder import OTHER, OWN
from chameleon_lib.sections.group_size.verdicts import (
    claim_frame,
    claims,
    judged,
    paper_reading,
)
from chameleon_lib.sections.results import Run
from tests.sections.group_size.planted_sizes import CONDITIONS, Rates, planted_sizes

SINGLE = "CHAMELEON's edit from a single user's own pairs beats Instruct"
FEW = "CHAMELEON's edit from 20 users beats Instruct"
GROWTH = "CHAMELEON's edit from 100 users beats that from 20"
BEYOND_ONE = "CHAMELEON's edit from 100 users beats that from a single user"
FITTED = "beyond the paper, the fitted edit from 20 users beats Instruct"
FITTED_GROWTH = "beyond the paper, the fitted edit from 100 users beats that from 20"
GAIN: Rates = {
    OWN: {"chameleon": 0.6},
    "20 users": {"chameleon": 0.7, "fitted": 0.7},
    "100 users": {"chameleon": 0.9, "fitted": 0.9},
}


def words(run: Run) -> dict[str, str]:
    """Claim → verdict of a run with one task and family."""
    [task] = run.data
    found = claims(run, task)
    return {c.words: v.status for c, v in zip(found, judged(run, found, "x"), strict=True)}


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
def test_planted_gains_that_grow_are_reproduced_and_hold(task: str) -> None:
    assert words(planted_sizes(GAIN, tasks=(task,))) == {
        SINGLE: REPRODUCED,
        FEW: REPRODUCED,
        GROWTH: REPRODUCED,
        BEYOND_ONE: REPRODUCED,
        FITTED: HOLDS,
        FITTED_GROWTH: HOLDS,
    }


def test_no_effect_at_any_size_is_not_reproduced_and_does_not_hold() -> None:
    found = words(planted_sizes())
    own = {claim: status for claim, status in found.items() if "beyond" in claim}
    assert set(own.values()) == {DOES_NOT_HOLD} and len(own) == 2
    assert {found[claim] for claim in set(found) - set(own)} == {NOT_REPRODUCED}


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
def test_a_loss_that_grows_is_opposite_everywhere(task: str) -> None:
    loss = {
        OWN: {"instruct": 0.9, "chameleon": 0.7},
        "20 users": {"instruct": 0.9, "chameleon": 0.5, "fitted": 0.5},
        "100 users": {"instruct": 0.9, "chameleon": 0.1, "fitted": 0.1},
    }
    assert set(words(planted_sizes(loss, tasks=(task,))).values()) == {OPPOSITE}


def test_a_steady_gain_is_no_growth() -> None:
    steady = {name: {"chameleon": 0.8, "fitted": 0.8} for name in CONDITIONS if name != OTHER}
    found = words(planted_sizes(steady))
    assert (found[SINGLE], found[FEW], found[FITTED]) == (REPRODUCED, REPRODUCED, HOLDS)
    assert (found[GROWTH], found[BEYOND_ONE]) == (NOT_REPRODUCED, NOT_REPRODUCED)
    assert found[FITTED_GROWTH] == DOES_NOT_HOLD


@pytest.mark.parametrize(
    ("condition", "control"), [(OWN, "random"), (OTHER, "chameleon")]
)
def test_what_another_user_or_random_directions_give_as_well_is_not_the_users_own(
    condition: str, control: str
) -> None:
    rates: dict[str, dict[str, float]] = {OWN: {"chameleon": 0.8}, OTHER: {}}
    rates[condition][control] = 0.8
    assert words(planted_sizes(rates))[SINGLE] == DIRECTION_ONLY


@pytest.mark.parametrize(
    ("claim", "control"),
    [
        (FEW, "random"),
        (FEW, "from_neutral"),
        (FEW, "shuffled_pairs"),
        (FITTED, "random"),
        (FITTED, "fitted_shuffled"),
    ],
)
def test_a_gain_that_one_control_has_as_well_is_a_direction_only(claim: str, control: str) -> None:
    rates = {"20 users": {"chameleon": 0.8, "fitted": 0.8, control: 0.8}}
    assert words(planted_sizes(rates))[claim] == DIRECTION_ONLY


def test_growth_that_random_directions_have_as_well_is_a_direction_only() -> None:
    grows = {"100 users": {"chameleon": 0.8, "fitted": 0.8, "random": 0.8}}
    found = words(planted_sizes(grows))
    assert {found[claim] for claim in (GROWTH, BEYOND_ONE, FITTED_GROWTH)} == {DIRECTION_ONLY}


def test_growth_is_the_difference_of_the_two_levels() -> None:
    run = planted_sizes({"20 users": {"chameleon": 0.5}, "100 users": {"chameleon": 0.75}},
                        tasks=("LaMP_2",))  # fmt: skip
    [growth] = [claim for claim in claims(run, "LaMP_2") if claim.words == GROWTH]
    assert growth.effect is not None and growth.effect.value == pytest.approx(0.25)
    assert growth.margins["the growth of random"].value == pytest.approx(0.25)
    assert (growth.effect.n, growth.effect.seeds) == (120, 2)


def test_without_single_users_the_claim_is_not_run_and_says_no_numbers() -> None:
    groups = {name: size for name, size in CONDITIONS.items() if size > 1}
    run = planted_sizes(GAIN, conditions=groups)
    assert words(run)[SINGLE] == NOT_RUN and BEYOND_ONE not in words(run)
    single = judged(run, claims(run, "LaMP_3"), "x")[0]
    assert (single.ours, single.n, single.seeds) == (None, 0, 0)
    assert SINGLE not in " ".join(claim_frame(claims(run, "LaMP_3"))["claim"])


def test_with_one_group_no_growth_is_claimed() -> None:
    one = {name: CONDITIONS[name] for name in (OWN, OTHER, "20 users")}
    found = words(planted_sizes(GAIN, conditions=one))
    assert set(found) == {SINGLE, FEW, FITTED, BEYOND_ONE.replace("100", "20")}


def test_few_users_are_not_judged() -> None:
    assert set(words(planted_sizes(GAIN, n_users=60)).values()) == {TOO_FEW_USERS}


def test_the_papers_plot_is_shown_for_its_own_family_and_sizes_only() -> None:
    assert paper_reading("LaMP_2", "decoder", 0, 1) == "~+0.157 (plot reading)"
    assert paper_reading("LaMP_3", "decoder", 20, 100) == "~-0.024 (plot reading)"
    for task, family, few in (
        ("LaMP_2", "encoder-decoder", 0),
        ("LaMP_2", "decoder", 30),
        ("LaMP_7", "decoder", 0),
    ):
        assert paper_reading(task, family, few, 100) == "not shown in the paper"
    verdicts = judged(planted_sizes(), claims(planted_sizes(), "LaMP_3"), "03_group_size")
    assert {v.paper for v in verdicts if "beyond" in v.claim} == {"not in the paper"}
    assert all("plot reading" in v.paper for v in verdicts if "beyond" not in v.claim)
    assert {v.csv for v in verdicts} == {"tables/figure3_LaMP_3_claims.csv"}
    assert {v.split for v in verdicts} == {"test users of the embedded world"}


def test_a_claim_about_official_users_says_so() -> None:
    run = planted_sizes()
    data = {task: replace(part, truth=None) for task, part in run.data.items()}
    real = replace(run, data=data)
    assert {v.split for v in judged(real, claims(real, "LaMP_3"), "x")} == {"official dev users"}


def test_every_effect_has_its_controls_beside_it() -> None:
    both = ("demo:decoder:0", "demo:encdec:0")
    run = planted_sizes(GAIN, backbones=both)
    found = claims(run, "LaMP_3")
    frame = check_table(claim_frame(found), "claims", "demo", "control")
    assert len(frame) == sum(1 + len(claim.margins) for claim in found)
    assert frame.groupby("family").size().nunique() == 1 and len(set(frame["family"])) == 2
    first = frame[frame["claim"].str.startswith(SINGLE)].iloc[:3]
    assert list(first["minus the control"]) == ["(none)", "random", "another user's directions"]
    effect = found[0].effect
    assert effect is not None and first["value"].iloc[0] == effect.value
