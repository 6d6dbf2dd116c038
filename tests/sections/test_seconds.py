"""Budgets of seconds under a clock that is turned by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core.preferences import PreferencePair
from chameleon_lib.errors import UserError
from chameleon_lib.sections import seconds as module
from chameleon_lib.sections.data import load_task_data, without_gold
from chameleon_lib.sections.seconds import Deadline, measured_rates, write_pairs
from tests.sections.small import small_profile, study_in, use_small_models


class Clock:
    """Goes on by ``step`` seconds whenever it is read."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 100.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_deadline_counts_from_its_making() -> None:
    clock = Clock()
    deadline = Deadline(5, clock)
    clock.now += 4.5
    assert not deadline.passed() and deadline.spent() == 4.5
    clock.now += 0.5
    assert deadline.passed()


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    use_small_models(monkeypatch)
    monkeypatch.setattr(module, "_CHUNK", 3)
    study = study_in(tmp_path)
    users, _ = study.prepare(without_gold(load_task_data(small_profile(), "LaMP_3").train))
    return study, users


def test_pairs_are_written_for_half_of_the_budget_and_for_one_lot_of_users_at_least(
    group: Any,
) -> None:
    study, users = group
    expected = {(p.query_id, p.answer_p, p.answer_n) for p in study.pairs(users)}
    for step, wanted in ((0.0, 12), (2.0, 9), (50.0, 3)):  # a budget of 12: half is 6
        pairs = write_pairs(study, users, 0, Deadline(12, Clock(step)))
        assert len({pair.user_id for pair in pairs}) == wanted
        assert {(p.query_id, p.answer_p, p.answer_n) for p in pairs} <= expected
    first = [pair.user_id for pair in write_pairs(study, users, 0, Deadline(1, Clock(9)))]
    other = [pair.user_id for pair in write_pairs(study, users, 1, Deadline(1, Clock(9)))]
    assert first != other


def test_a_group_without_any_contrast_is_refused(
    group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, users = group

    def same(_backbone: Any, part: Any, _settings: Any) -> list[PreferencePair]:
        return [PreferencePair(u.user.id, "q", "text", u.items, "4", "4") for u in part]

    monkeypatch.setattr(module, "answer_pairs", same)
    with pytest.raises(UserError, match="no two different answers"):
        write_pairs(study, users, 0, Deadline(1, Clock(9)))


def test_rates_are_seconds_per_pair_and_kept(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study, users = group
    clock = Clock(6.0)
    monkeypatch.setattr(module.time, "perf_counter", clock)
    pairs = len(study.pairs(users))
    before = clock.now
    rates = measured_rates(study, users)
    assert rates.writing == pytest.approx(6 / pairs) == rates.reading
    assert clock.now == before + 18
    assert measured_rates(study, users) == rates and clock.now == before + 18
