"""What a fit is allowed to see: train users without golds, and no test user at all."""

from __future__ import annotations

import pytest

from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies import run as grid
from chameleon_lib.studies.s01_per_user import run
from tests.studies.finished import Finished, units, with_golds
from tests.studies.planted import query_golds, texts_of
from tests.studies.small import BACKBONES, SETTINGS, small_profile, use_small_models


def test_no_test_user_is_in_a_group_and_no_test_text_reaches_a_fit(
    finished: Finished,
) -> None:
    done, watch = finished.run, finished.watch
    assert len(watch.groups) == len(done.cells) and len(watch.contrasts) > 12
    for group in watch.groups:
        task = group[0].user.task
        ids = {user.user.id for user in group}
        assert len(ids) == len(group) == 8
        assert ids <= {user.id for user in done.data[task].train}
        assert not ids & {user.id for user in done.data[task].test}
    users = [user for data in done.data.values() for user in (*data.test, *data.dev)]
    texts = [t for u in users for t in (*(i.text for i in u.history), *(q.text for q in u.queries))]
    trained = [example.prompt for example in watch.examples]
    assert trained and watch.preferences
    read = "\n".join([*(c.prompt for c in watch.contrasts), *watch.queries, *trained])
    assert not [text for text in texts if text in read]
    ids = {user.id for user in users}
    assert not {seen.user_id for seen in [*watch.contrasts, *watch.preferences]} & ids
    assert not {example.user_id for example in watch.examples} & ids


def test_golds_of_train_users_reach_aloe_and_the_positive_control_alone(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other train golds: everything comes from the store but what is fitted to gold answers."""
    use_small_models(monkeypatch)
    monkeypatch.setattr(grid, "load_task_data", with_golds("train"))
    before = units(finished.folder)
    profile = small_profile(tasks=("LaMP_3",), backbones=BACKBONES[:1])
    done = run(profile, SETTINGS, store=ArtifactStore(finished.folder))
    assert before.items() <= units(finished.folder).items()
    new = units(finished.folder).keys() - before
    stages = [path.relative_to(finished.folder).parts[0] for path in new]
    # Answers of the positive control, and of ALOE to test users and to those it was trained on.
    assert sorted(stages) == ["aloe", "answers", "answers", "answers", "fit"]
    mine, other = texts_of(finished.run.cells[0]), texts_of(done.cells[0])
    changed = {arm.method for arm in other if mine[arm] != other[arm]}
    assert changed <= {"aloe", "fitted_gold"}


def test_golds_of_test_users_change_scores_and_nothing_else(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(grid, "load_task_data", with_golds("test"))
    before = units(finished.folder)
    profile = small_profile(tasks=("LaMP_3",), backbones=BACKBONES[:1])
    done = run(profile, SETTINGS, store=ArtifactStore(finished.folder))
    assert units(finished.folder) == before
    assert set(query_golds(done, "LaMP_3")) == {"1"} != set(query_golds(finished.run, "LaMP_3"))
