"""The wall-clock mode under a clock that goes on by one second whenever it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections import seconds as seconds_module
from chameleon_lib.sections.answering import Exam
from chameleon_lib.sections.data import load_task_data, without_gold
from chameleon_lib.sections.per_user.cell import with_gold
from chameleon_lib.sections.study import Study
from chameleon_lib.sections.time_budget import clock as module
from chameleon_lib.sections.time_budget import seconds as tables
from chameleon_lib.sections.time_budget.clock import measure, parse_budgets, run, within
from tests.sections.finished import units
from tests.sections.small import (
    BACKBONES,
    SETTINGS,
    reference_of,
    small_profile,
    use_small_models,
)
from tests.sections.test_seconds import Clock

PROFILE = small_profile(tasks=("LaMP_2",), backbones=BACKBONES[:1])
LONG = SETTINGS.with_(fit_steps=30, fit_patience=99)


@pytest.fixture(scope="module", params=BACKBONES)
def desk(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        patch.setattr(seconds_module, "_CHUNK", 4)
        store = ArtifactStore(tmp_path_factory.mktemp("units"))
        study = Study(PROFILE, request.param, "LaMP_2", LONG, store)
        data = load_task_data(PROFILE, "LaMP_2")
        group = with_gold(study.prepare(without_gold(data.train))[0], data.train)
        test, _ = study.prepare(without_gold(data.test))
        yield Exam(study, test, reference_of(test)), group


@pytest.mark.parametrize("method", ["fitted", "dpo", "aloe"])
def test_a_method_that_can_be_stopped_is_stopped(desk: Any, method: str) -> None:
    exam, group = desk
    steps = {}
    for budget in (0.5, 6, *[10_000] * (method == "fitted")):
        answers, log = within(exam, group, method, budget, 0, Clock(1.0))
        assert len(answers.texts) == len(exam.reference.personal)
        steps[budget] = log["steps"]
    assert steps[0.5] == 1  # at least one
    assert 1 < steps[6] <= 6
    if method == "fitted":
        assert steps[10_000] == 30


def test_a_small_budget_writes_fewer_pairs_and_aloe_needs_none(desk: Any) -> None:
    exam, group = desk
    written = {}
    for budget in (0.5, 10_000):
        _, log = within(exam, group, "chameleon", budget, 0, Clock(1.0))
        written[budget] = log["queries"]
        assert 0 < log["pairs"] <= log["queries"] and log["steps"] == LONG.ccs_epochs
        assert log["seconds"] > log["written"] > 0
    assert written == {0.5: 4, 10_000: len(group)}
    _, log = within(exam, group, "aloe", 0.5, 0, Clock(1.0))
    assert log["pairs"] == 0 and "written" not in log


def test_nothing_that_is_timed_is_taken_from_the_store_or_left_in_it(desk: Any) -> None:
    exam, group = desk
    exam.study.pairs(group)
    before = units(exam.study.store.root)
    within(exam, group, "fitted", 3, 1, Clock(1.0))
    within(exam, group, "fitted", 3, 1, Clock(1.0))
    new = set(units(exam.study.store.root)) - set(before)
    assert {path.parent.parent.name for path in new} == {"answers"}


def test_a_run_has_one_condition_per_budget_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    first = run(PROFILE, SETTINGS, (0.01, 30.0), store=ArtifactStore(tmp_path))
    assert first.conditions == ["0.01 s", "30 s"]
    before = units(tmp_path)
    lost = [path for path in before if path.parent.parent.name == "wall_clock"]
    assert len(lost) == 2 * 4
    monkeypatch.setattr(module, "within", None)  # nothing is measured a second time
    again = run(PROFILE, SETTINGS, (0.01, 30.0), store=ArtifactStore(tmp_path))
    assert units(tmp_path) == before
    frame = tables.wall_clock(first)
    assert frame.equals(tables.wall_clock(again)) and len(frame) == 2 * 4
    assert frame["budget"].tolist() == [0.01] * 4 + [30.0] * 4
    assert (frame["seconds"] > 0).all() and (frame["steps"] >= 1).all()
    early = frame[(frame["budget"] == 0.01) & frame["method"].str.contains("ALOE|DPO|fitted")]
    assert early["steps"].tolist() == [1.0] * 3


def test_budgets_are_read_from_words() -> None:
    demo, paper = PROFILES["demo"], PROFILES["paper"]
    assert parse_budgets("", demo) == (2, 4, 8)
    assert parse_budgets("", paper) == (600, 1200, 1800, 2400)
    assert parse_budgets("3, 1.5", paper) == (1.5, 3)
    for wrong in ("soon", "1,,2", "0,3", "-1", "nan", "inf"):
        with pytest.raises(UserError, match="give seconds divided by commas"):
            parse_budgets(wrong, demo)


def test_the_mode_decides_whether_the_clock_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    use_small_models(monkeypatch)
    store = ArtifactStore(tmp_path / "units")
    assert "Not run" in measure("fractions", "", PROFILE, SETTINGS, store=store)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="mode is 'later'"):
        measure("later", "", PROFILE, SETTINGS)
    words = measure("wall_clock", "0.01", PROFILE, SETTINGS, store=store)
    assert "0.01 s" in words and str(tmp_path) not in words
    folder = tmp_path / "demo"
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {"measured/04_wall_clock.csv", "measured/04_wall_clock.png"}
