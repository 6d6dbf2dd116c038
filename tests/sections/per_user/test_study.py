from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.data import write_lamp
from chameleon_lib.sections import grid
from chameleon_lib.sections.data import load_task_data
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.per_user.study import run
from chameleon_lib.sections.results import agreeing, query_golds, query_users, stacked
from tests.sections.finished import PROFILE, TASKS, Finished, units
from tests.sections.small import BACKBONES, SETTINGS, methods_of, small_profile, use_small_models

OWN_SCORES = {"LaMP_3": {"abs_error", "squared_error"}, "LaMP_7": {"rouge1", "rougeL", "habits"}}


def test_every_cell_has_every_method_with_one_score_per_seed_and_query(
    finished: Finished,
) -> None:
    done = finished.run
    assert [(c.task, c.backbone) for c in done.cells] == [(t, b) for t in TASKS for b in BACKBONES]
    assert done.families == ["decoder", "encoder-decoder"]
    seeds = {method.id: 1 for method in METHODS} | {"random": SETTINGS.controls_random_draws}
    for cell in done.cells:
        n = len(query_users(done, cell.task))
        assert list(cell.answers) == list(cell.scores) == methods_of(cell.backbone, cell.task)
        assert 0 < n <= 8 and cell.counts["users"] == 8
        for method, scores in cell.scores.items():
            assert set(scores) == {"valid", "changed", "margin", *OWN_SCORES[cell.task]}
            assert {values.shape for values in scores.values()} == {(seeds[method], n)}
            assert all(len(answer.texts) == n for answer in cell.answers[method])
    two = stacked(done.cells[:2], "random", "valid")
    assert two.shape == (2 * SETTINGS.controls_random_draws, len(query_users(done, "LaMP_3")))


def test_a_margin_is_undefined_where_user_and_anyone_agree_and_nowhere_else(
    finished: Finished,
) -> None:
    done = finished.run
    for cell in done.cells:
        assert not cell.scores["instruct"]["changed"].any()
        undefined = np.isnan(cell.scores["chameleon"]["margin"][0])
        assert undefined.tolist() == agreeing(done, cell.task).tolist()


def test_some_edit_changes_some_answer(finished: Finished) -> None:
    for cell in finished.run.cells:
        assert cell.scores["chameleon"]["changed"].any() or cell.scores["random"]["changed"].any()


def test_the_same_run_again_computes_nothing(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    before = units(finished.folder)
    again = run(PROFILE, SETTINGS, store=ArtifactStore(finished.folder))
    assert units(finished.folder) == before and len(before) > 100
    for mine, other in zip(finished.run.cells, again.cells, strict=True):
        assert mine.draws == other.draws and mine.counts == other.counts
        for method, scores in mine.scores.items():
            for name, values in scores.items():
                np.testing.assert_array_equal(values, other.scores[method][name])


def test_all_backbones_are_scored_on_the_same_users(finished: Finished) -> None:
    done = finished.run
    for task in TASKS:
        users = query_users(done, task)
        assert users == done.test_users[task]  # one query per user in this world
        assert len(query_golds(done, task)) == len(agreeing(done, task)) == len(users)
        planted = done.data[task].truth
        assert planted is not None and set(users) <= set(planted)


def test_a_user_one_backbone_cannot_use_is_left_out_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    study_type, lost = grid.Study, load_task_data(PROFILE, "LaMP_3").test[2].id

    class Picky(study_type):  # type: ignore[misc, valid-type]
        def prepare(self, users: Any) -> Any:
            prepared, counts = super().prepare(users)
            if self.backbone_id == BACKBONES[0]:
                prepared = [user for user in prepared if user.user.id != lost]
            return prepared, counts

    monkeypatch.setattr(grid, "Study", Picky)
    profile = small_profile(tasks=("LaMP_3",), n_test=4)
    done = run(profile, SETTINGS, store=ArtifactStore(tmp_path))
    assert lost not in done.test_users["LaMP_3"] and done.test_users["LaMP_3"]
    sizes = {cell.scores["instruct"]["valid"].shape[1] for cell in done.cells}
    assert sizes == {len(done.test_users["LaMP_3"])} <= {1, 2, 3}


def test_official_files_run_without_planted_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    users = load_task_data(small_profile(n_dev=30), "LaMP_3").dev
    write_lamp(users, tmp_path / "data" / "LaMP_3", "dev")
    profile = small_profile(
        name="demo-data", data="lamp", tasks=TASKS, backbones=BACKBONES[:1]
    )
    store = ArtifactStore(tmp_path / "units")
    strict = SETTINGS.with_(pairs_on_too_few="error")
    done = run(profile, strict, data_dir=str(tmp_path / "data"), max_users=6, store=store)
    assert list(done.data) == ["LaMP_3"] and len(done.notes) == 1 and "LaMP-7" in done.notes[0]
    assert done.settings.pairs_on_too_few == "warn"
    [cell] = done.cells
    assert list(cell.scores) == methods_of(cell.backbone, cell.task)
    assert not agreeing(done, "LaMP_3").any() and "right" not in cell.draws[0]
    golds, neutral = query_golds(done, "LaMP_3"), cell.answers["neutral"][0].texts
    same = [gold == said for gold, said in zip(golds, neutral, strict=True)]
    assert np.isnan(cell.scores["instruct"]["margin"][0]).tolist() == same


def test_two_runs_with_stores_of_their_own_give_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    profile = small_profile(tasks=("LaMP_3",), backbones=BACKBONES[:1], n_train=8, n_test=3)
    one, two = (
        run(profile, SETTINGS, store=ArtifactStore(tmp_path / name), workers=1)
        for name in ("one", "two")
    )
    first, second = units(tmp_path / "one"), units(tmp_path / "two")
    assert len(first) == len(second) > 20  # the second run read nothing of the first
    [mine], [other] = one.cells, two.cells
    assert mine.draws == other.draws and list(mine.answers) == list(other.answers)
    for method, scores in mine.scores.items():
        texts = [answer.texts for answer in mine.answers[method]]
        assert texts == [answer.texts for answer in other.answers[method]]
        for name, values in scores.items():
            np.testing.assert_array_equal(values, other.scores[method][name])
