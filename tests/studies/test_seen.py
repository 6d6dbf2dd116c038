"""What a rival gains on its own training users, and when it has learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.arms import with_gold
from chameleon_lib.studies.data import load_task_data, without_gold
from chameleon_lib.studies.rivals import change_on_seen, has_learned, quarters, said, seen_scores
from chameleon_lib.studies.study import Study
from tests.studies.small import SETTINGS, small_profile, use_small_models

FALLS = (3.0, 2.0, 2.0, 1.0)


def _log(after: list[float], before: list[float], loss: tuple[float, ...] = FALLS) -> Any:
    return {"loss": loss, "seen": {"users": list("abcd"), "after": after, "before": before}}


def test_scores_are_those_of_the_first_metric_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    profile = small_profile()
    data = load_task_data(profile, "LaMP_3")
    study = Study(profile, "demo:decoder:0", "LaMP_3", SETTINGS, ArtifactStore(tmp_path))
    blind, _ = study.prepare(without_gold(data.train))
    users = with_gold(blind, data.train)
    answers = said(study, users, "instruct")
    queries = [query for user in users for query in user.user.queries]
    assert list(answers) == [query.id for query in queries]
    right = {query.id: str(query.gold) for query in queries}
    off = {q.id: "1" if str(q.gold) != "1" else "3" for q in queries}
    scores = seen_scores("LaMP_3", users, right, off)
    assert scores["users"] == [user.user.id for user in users for _ in user.user.queries]
    assert scores["after"] == [0.0] * len(queries)
    wrong = [abs(int(off[q.id]) - int(str(q.gold))) for q in queries]
    assert scores["before"] == wrong and min(wrong) >= 1


@pytest.mark.parametrize(
    ("task", "after", "before", "learned"),
    [
        ("LaMP_2", 1.0, 0.0, True),
        ("LaMP_2", 0.0, 1.0, False),
        ("LaMP_2", 1.0, 1.0, False),  # no gain is no learning
        ("LaMP_3", 0.0, 1.0, True),  # an error falls
        ("LaMP_3", 1.0, 0.0, False),
    ],
)
def test_learning_needs_a_gain_on_the_better_side(
    task: str, after: float, before: float, learned: bool
) -> None:
    logs = [_log([after] * 4, [before] * 4)] * 2
    gain = change_on_seen(logs)
    assert gain.value == after - before and (gain.n, gain.seeds) == (4, 2)
    assert has_learned(task, logs, gain) is learned


def test_a_user_of_several_groups_counts_once_with_the_mean_of_them() -> None:
    first = _log([1.0, 0.0, 0.0, 0.0], [0.0] * 4)
    second = {"seen": {"users": ["a", "e", "e"], "after": [0.0, 1.0, 1.0], "before": [0.0] * 3}}
    gain = change_on_seen([first, second, second])
    # a has the mean 1 / 3 of one query in three trainings; e has two queries in two of them.
    assert gain.value == pytest.approx((1 / 3 + 2) / (4 + 2)) and (gain.n, gain.seeds) == (5, 3)


def test_one_loss_that_does_not_fall_is_no_learning() -> None:
    good = _log([1.0] * 4, [0.0] * 4)
    gain = change_on_seen([good])
    assert has_learned("LaMP_2", [good], gain)
    assert not has_learned("LaMP_2", [good, {**good, "loss": (1.0, 1.0, 1.0, 1.0)}], gain)


def test_an_interval_across_zero_is_no_learning() -> None:
    logs = [_log([1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0])]
    gain = change_on_seen(logs)
    assert gain.low < 0 < gain.high and not has_learned("LaMP_2", logs, gain)
    assert has_learned("LaMP_2", logs, replace(gain, low=0.1))


def test_quarters_of_a_short_training_are_its_ends() -> None:
    assert quarters((3.0, 1.0)) == (3.0, 1.0)
    assert quarters((4.0, 2.0, 9.0, 9.0, 9.0, 9.0, 1.0, 3.0)) == (3.0, 2.0)
