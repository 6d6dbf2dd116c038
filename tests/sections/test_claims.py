"""The words of a claim, and the one rule behind them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

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
from chameleon_lib.sections.claims import judged_claim, split_of
from tests.sections.planted import planted_run

UP, ZERO, DOWN = (Estimate(m, m - 0.05, m + 0.05, 120, 2) for m in (0.2, 0.0, -0.2))


def judged(effect: Estimate | None, task: str = "LaMP_2", **changes: Any) -> Verdict:
    margins = changes.pop("margins", {"other_arm": UP})
    return judged_claim(
        planted_run(tasks=(task,)), task, "decoder", "ours is better", effect, margins,
        section="4.2", notebook="01_per_user", csv="tables/x.csv", **changes,
    )  # fmt: skip


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


def test_the_record_says_what_was_compared_on_whom() -> None:
    found = judged(UP, remark="reading: no history")
    assert found.claim == "LaMP-2, decoder (Mistral class): ours is better (accuracy change)"
    assert found.note == "reading: no history; must also beat: other arm"
    assert (found.n, found.seeds, found.paper) == (120, 2, "not in the paper")
    assert judged(UP, margins={}).note == "no other control was run"
    missing = judged(None)
    assert (missing.status, missing.n, missing.seeds) == (NOT_RUN, 0, 0)


def test_official_users_are_called_so() -> None:
    run = planted_run()
    assert split_of(run, "LaMP_3") == "test users of the embedded world"
    official = {"LaMP_3": replace(run.data["LaMP_3"], truth=None)}
    assert split_of(replace(run, data=official), "LaMP_3") == "official dev users"
