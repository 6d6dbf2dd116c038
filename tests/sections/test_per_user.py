from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.data import write_lamp
from chameleon_lib.sections import arms as arms_module
from chameleon_lib.sections import cells as cells_module
from chameleon_lib.sections import per_user
from chameleon_lib.sections.data import TaskData, load_task_data
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.per_user import (
    Plan,
    Run,
    agreeing,
    query_golds,
    query_users,
    run,
    stacked,
)
from tests.sections.small import BACKBONES, SETTINGS, small_profile, use_small_models

TASKS = ("LaMP_3", "LaMP_7")
PROFILE = small_profile(tasks=TASKS)
OWN_SCORES = {"LaMP_3": {"abs_error", "squared_error"}, "LaMP_7": {"rouge1", "rougeL", "habits"}}


def units(folder: Path) -> dict[Path, int]:
    """Every stored unit with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.unit")}


@dataclass
class Watch:
    """What reached a fit: groups of users, contrasts and pair texts."""

    groups: list[list[PreparedUser]] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)


def watched(patch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    build, fit = cells_module.build_draw, arms_module.fit_by_preference

    def build_draw(study: Any, group: Any, pairs: Any, *rest: Any) -> Any:
        watch.groups.append(list(group))
        watch.queries += [pair.query for pair in pairs]
        return build(study, group, pairs, *rest)

    def fit_by_preference(backbone: Any, contrasts: Sequence[Contrast], *a: Any, **k: Any) -> Any:
        watch.contrasts += contrasts
        return fit(backbone, contrasts, *a, **k)

    patch.setattr(cells_module, "build_draw", build_draw)
    patch.setattr(arms_module, "fit_by_preference", fit_by_preference)
    return watch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("units")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Iterator[tuple[Run, Watch]]:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        watch = watched(patch)
        yield run(PROFILE, SETTINGS, store=ArtifactStore(folder)), watch


def test_every_cell_has_every_method_with_one_score_per_seed_and_query(
    finished: tuple[Run, Watch],
) -> None:
    done, _ = finished
    assert [(c.task, c.backbone) for c in done.cells] == [(t, b) for t in TASKS for b in BACKBONES]
    assert done.families == ["decoder", "encoder-decoder"]
    seeds = {method.id: 1 for method in METHODS} | {"random": SETTINGS.controls_random_draws}
    for cell in done.cells:
        n = len(query_users(done, cell.task))
        assert list(cell.answers) == list(cell.scores) == [method.id for method in METHODS]
        assert 0 < n <= 8 and cell.counts["users"] == 8
        for method, scores in cell.scores.items():
            assert set(scores) == {"valid", "changed", "margin", *OWN_SCORES[cell.task]}
            assert {values.shape for values in scores.values()} == {(seeds[method], n)}
            assert all(len(answer.texts) == n for answer in cell.answers[method])
    two = stacked(done.cells[:2], "random", "valid")
    assert two.shape == (2 * SETTINGS.controls_random_draws, len(query_users(done, "LaMP_3")))


def test_a_margin_is_undefined_where_user_and_anyone_agree_and_nowhere_else(
    finished: tuple[Run, Watch],
) -> None:
    done, _ = finished
    for cell in done.cells:
        assert not cell.scores["instruct"]["changed"].any()
        undefined = np.isnan(cell.scores["chameleon"]["margin"][0])
        assert undefined.tolist() == agreeing(done, cell.task).tolist()


def test_some_edit_changes_some_answer(finished: tuple[Run, Watch]) -> None:
    for cell in finished[0].cells:
        assert cell.scores["chameleon"]["changed"].any() or cell.scores["random"]["changed"].any()


def test_no_test_user_is_in_a_group_and_no_test_text_reaches_a_fit(
    finished: tuple[Run, Watch],
) -> None:
    done, watch = finished
    assert len(watch.groups) == len(done.cells) and len(watch.contrasts) > 12
    for group in watch.groups:
        task = group[0].user.task
        ids = {user.user.id for user in group}
        assert len(ids) == len(group) == 8
        assert ids <= {user.id for user in done.data[task].train}
        assert not ids & {user.id for user in done.data[task].test}
    users = [user for data in done.data.values() for user in (*data.test, *data.dev)]
    texts = [t for u in users for t in (*(i.text for i in u.history), *(q.text for q in u.queries))]
    read = "\n".join([*(c.prompt for c in watch.contrasts), *watch.queries])
    assert not [text for text in texts if text in read]
    ids = {user.id for user in users}
    assert not {contrast.user_id for contrast in watch.contrasts} & ids


def test_golds_of_train_users_reach_the_positive_control_alone(
    folder: Path, finished: tuple[Run, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other train golds: everything comes from the store but the fit on gold pairs."""
    use_small_models(monkeypatch)
    monkeypatch.setattr(per_user, "load_task_data", _with_golds("train"))
    before = units(folder)
    profile = small_profile(tasks=("LaMP_3",), backbones=BACKBONES[:1])
    done = run(profile, SETTINGS, store=ArtifactStore(folder))
    assert before.items() <= units(folder).items()
    new = [path.relative_to(folder).parts[0] for path in units(folder) if path not in before]
    assert sorted(new) == ["answers", "fit"]  # the fit on gold pairs, and what its edit says
    mine, other = finished[0].cells[0].answers, done.cells[0].answers
    for method in other:
        same = [a.texts for a in mine[method]] == [a.texts for a in other[method]]
        assert same or method == "fitted_gold"


def test_golds_of_test_users_change_scores_and_nothing_else(
    folder: Path, finished: tuple[Run, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(per_user, "load_task_data", _with_golds("test"))
    before = units(folder)
    profile = small_profile(tasks=("LaMP_3",), backbones=BACKBONES[:1])
    done = run(profile, SETTINGS, store=ArtifactStore(folder))
    assert units(folder) == before
    assert set(query_golds(done, "LaMP_3")) == {"1"} != set(query_golds(finished[0], "LaMP_3"))


def _with_golds(part: str) -> Any:
    """``load_task_data`` with every gold of one part replaced."""

    def load(*args: Any) -> TaskData:
        data = load_task_data(*args)
        users = tuple(
            replace(u, queries=tuple(replace(query, gold="1") for query in u.queries))
            for u in getattr(data, part)
        )
        changes: dict[str, Any] = {part: users}
        return replace(data, **changes)

    return load


def test_the_same_run_again_computes_nothing(
    folder: Path, finished: tuple[Run, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    before = units(folder)
    again = run(PROFILE, SETTINGS, store=ArtifactStore(folder))
    assert units(folder) == before and len(before) > 100
    for mine, other in zip(finished[0].cells, again.cells, strict=True):
        assert mine.draws == other.draws and mine.counts == other.counts
        for method, scores in mine.scores.items():
            for name, values in scores.items():
                np.testing.assert_array_equal(values, other.scores[method][name])


def test_all_backbones_are_scored_on_the_same_users(finished: tuple[Run, Watch]) -> None:
    done, _ = finished
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
    study_type, lost = per_user.Study, load_task_data(PROFILE, "LaMP_3").test[2].id

    class Picky(study_type):  # type: ignore[misc, valid-type]
        def prepare(self, users: Any) -> Any:
            prepared, counts = super().prepare(users)
            if self.backbone_id == BACKBONES[0]:
                prepared = [user for user in prepared if user.user.id != lost]
            return prepared, counts

    monkeypatch.setattr(per_user, "Study", Picky)
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
    profile = small_profile(tasks=TASKS, backbones=BACKBONES[:1])
    store = ArtifactStore(tmp_path / "units")
    strict = SETTINGS.with_(pairs_on_too_few="error")
    done = run(profile, strict, data_dir=str(tmp_path / "data"), max_users=6, store=store)
    assert list(done.data) == ["LaMP_3"] and len(done.notes) == 1 and "LaMP-7" in done.notes[0]
    assert done.settings.pairs_on_too_few == "warn"
    [cell] = done.cells
    assert list(cell.scores) == [method.id for method in METHODS]
    assert not agreeing(done, "LaMP_3").any() and "personal_right" not in cell.draws[0]
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


def test_the_groups_are_drawn_by_the_seeds_that_the_settings_or_the_call_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plans: list[Plan] = []

    def compute(plan: Plan, _backbone: str) -> Any:
        plans.append(plan)

    monkeypatch.setattr(per_user, "_compute", compute)
    monkeypatch.setattr(Plan, "common_users", lambda _self: set())
    seeded = SETTINGS.with_(group_draws=2, group_seeds=(4, 9))
    for draws in (0, 3):
        run(PROFILE, seeded, draws=draws, store=ArtifactStore(tmp_path))
    assert [plan.draws for plan in plans] == [(4, 9)] * 4 + [(0, 1, 2)] * 4
    assert pickle.loads(pickle.dumps(plans[0])) == plans[0]


def test_several_workers_fill_the_store_stage_by_stage_and_the_longest_task_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    warmed: list[tuple[str, list[tuple[str, str]], int, int]] = []

    def warm(work: Any, units: Any, *, workers: int, threads: int, label: str) -> None:
        assert work.__module__ == per_user.__name__  # a worker has to import it by name
        warmed.append((label, [(p.task, name) for p, name in units], workers, threads))

    monkeypatch.setattr(per_user, "warm", warm)
    monkeypatch.setattr(per_user, "_compute", _compute_nothing)
    monkeypatch.setattr(Plan, "common_users", lambda _self: set())
    run(PROFILE, SETTINGS, store=ArtifactStore(tmp_path), workers=2)
    every = [(task, name) for task in reversed(TASKS) for name in BACKBONES]
    once = [(task, BACKBONES[0]) for task in reversed(TASKS)]
    assert warmed == [
        ("history selection", once, 2, 1), ("insights", every, 2, 1), ("cells", every, 2, 1),
    ]  # fmt: skip
    run(PROFILE, SETTINGS, store=ArtifactStore(tmp_path), workers=1)
    assert len(warmed) == 3


def _compute_nothing(_plan: Plan, _backbone: str) -> None:
    return None


_compute_nothing.__module__ = per_user.__name__
