"""The study and its ladder of nested groups, on tiny random models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.preferences import PreferencePair
from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections import fits as fits_module
from chameleon_lib.sections import grid
from chameleon_lib.sections.arms import draw_group
from chameleon_lib.sections.data import TaskData, load_task_data, without_gold
from chameleon_lib.sections.group_size import ladder as ladder_module
from chameleon_lib.sections.group_size.ladder import OTHER, OWN, build_ladder, random_order
from chameleon_lib.sections.group_size.study import SIZES, parse_sizes, run
from chameleon_lib.sections.group_size.tables import cells_of
from chameleon_lib.sections.per_user import study as per_user
from chameleon_lib.sections.results import Run
from tests.sections.finished import units
from tests.sections.small import BACKBONES, SETTINGS, small_profile, study_in, use_small_models

PROFILE = small_profile(n_train=12, n_test=5, studied=BACKBONES)
SMALL = SETTINGS.with_(group_draws=2, group_seeds=(0, 1), controls_random_draws=2)
CONDITIONS = [OWN, OTHER, "4 users", "6 users", "8 users"]
ENDS = ["chameleon", "fitted", "random", "from_neutral", "shuffled_pairs", "fitted_shuffled"]


@dataclass(frozen=True)
class Made:
    """A finished run, what reached its fits, and its store."""

    run: Run
    contrasts: list[Contrast]
    singles: list[list[PreferencePair]]
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("units")
    contrasts: list[Contrast] = []
    singles: list[list[PreferencePair]] = []
    fit, single = fits_module.fit_by_preference, ladder_module.single_users

    def fit_by_preference(backbone: Any, shown: Sequence[Contrast], *a: Any, **k: Any) -> Any:
        contrasts.extend(shown)
        return fit(backbone, shown, *a, **k)

    def single_users(study: Any, pairs: Sequence[PreferencePair], seed: int) -> Any:
        singles.append(list(pairs))
        return single(study, pairs, seed)

    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        patch.setattr(fits_module, "fit_by_preference", fit_by_preference)
        patch.setattr(ladder_module, "single_users", single_users)
        done = run(PROFILE, SMALL, sizes="1,4,6,8", tasks=("LaMP_3",), store=ArtifactStore(folder))
    return Made(done, contrasts, singles, folder)


def test_sizes_are_read_from_the_parameter_and_nonsense_is_refused() -> None:
    assert parse_sizes("100, 1,20,20") == (1, 20, 100)
    assert parse_sizes(",".join(map(str, SIZES))) == SIZES
    for text in ("", "a", "0,20", "-1,5", "1", "20;40"):
        with pytest.raises(UserError, match="sizes"):
            parse_sizes(text)


@pytest.mark.parametrize("index", range(4))
def test_groups_are_nested_and_the_largest_is_that_of_table_1(index: int) -> None:
    users: Any = [f"user {number}" for number in range(150)]
    order = random_order(users, 100, index)
    largest = draw_group(users, 100, index)
    assert sorted(largest) == sorted(users[at] for at in order) and len(set(order)) == 100
    assert random_order(users, 1000, index)[:5] != sorted(order)[:5]
    assert len(random_order(users, 1000, index)) == 150


def test_every_size_has_a_cell_with_its_methods_and_seeds(made: Made) -> None:
    done = made.run
    assert not done.notes and done.conditions == CONDITIONS
    assert len(done.cells) == len(CONDITIONS) * len(BACKBONES)
    for family in done.families:
        cells = {name: one for name, [one] in cells_of(done, "LaMP_3", family).items()}
        assert list(cells) == CONDITIONS
        for name in (OWN, OTHER):
            assert list(cells[name].answers) == ["instruct", "chameleon", "random"]
        assert list(cells["6 users"].answers) == ["instruct", "chameleon", "random"]
        for name in ("4 users", "8 users"):
            assert set(cells[name].answers) == {"instruct", *ENDS}
        for cell in cells.values():
            n = len(done.test_users["LaMP_3"])
            seeds = {method: len(found) for method, found in cell.answers.items()}
            # A user's own edit has nothing to do with the draw, so it counts once.
            once = ["instruct", "chameleon"] if cell.condition == OWN else ["instruct"]
            assert seeds == {method: 1 if method in once else 2 for method in seeds}
            shapes = {scores["valid"].shape for scores in cell.scores.values()}
            assert shapes == {(1, n), (2, n)} and n > 1
        sizes = {name: cell.draws[0]["size"] for name, cell in cells.items()}
        assert sizes == {OWN: 1, OTHER: 1, "4 users": 4, "6 users": 6, "8 users": 8}


def test_the_agreement_of_the_largest_group_with_itself_is_whole(made: Made) -> None:
    for cell in made.run.cells:
        for log in cell.draws:
            own = [c["own draw"] for thetas in log["agreement"].values() for c in thetas.values()]
            other = [v["other draws"] for t in log["agreement"].values() for v in t.values()]
            assert (min(own) > 0.999) == (cell.condition == "8 users")
            assert all(0 <= value <= 1 for value in own + other)
            assert ("fitted" in log["agreement"]) == (cell.condition in ("4 users", "8 users"))
            assert 0 <= log["shared"] <= 1 and (log["shared"] == 0) == (cell.condition == OWN)


def test_smaller_groups_have_other_directions_of_fewer_pairs(made: Made) -> None:
    for family in made.run.families:
        cells = {name: one for name, [one] in cells_of(made.run, "LaMP_3", family).items()}
        kept = [cells[name].draws[0]["kept"] for name in CONDITIONS[2:]]
        assert kept == sorted(kept) and kept[0] < kept[-1] <= 8
        assert [cells[name].draws[0]["users"] for name in CONDITIONS[2:]] == [4, 6, 8]
        margins = [cells[name].scores["fitted"]["margin"] for name in ("4 users", "8 users")]
        assert not np.allclose(*margins, equal_nan=True)


def test_test_users_reach_their_own_edit_alone_and_golds_reach_none(made: Made) -> None:
    data = made.run.data["LaMP_3"]
    test = {user.id for user in data.test}
    texts = [q.text for user in (*data.test, *data.dev) for q in user.queries]
    assert made.contrasts and not {c.user_id for c in made.contrasts} & test
    assert not [text for text in texts if any(text in c.prompt for c in made.contrasts)]
    owners = [{pair.user_id for pair in pairs} for pairs in made.singles]
    assert [bool(ids & test) for ids in owners] == [True, False] * (len(owners) // 2)
    assert all(ids <= test or not ids & test for ids in owners)
    assert {len(ids) for ids in owners[1::2]} == {4}  # the smallest group lends


def test_other_golds_compute_nothing_anew(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(grid, "load_task_data", _other_golds)
    before = units(made.folder)
    store = ArtifactStore(made.folder)
    again = run(PROFILE, SMALL, sizes="1,4,6,8", tasks=("LaMP_3",), store=store)
    assert units(made.folder) == before and len(before) > 50
    for mine, other in zip(made.run.cells, again.cells, strict=True):
        assert mine.draws == other.draws
        for method, answers in mine.answers.items():
            assert [a.texts for a in answers] == [a.texts for a in other.answers[method]]


def _other_golds(*args: Any) -> TaskData:
    data = load_task_data(*args)
    changed = {
        part: tuple(
            replace(u, queries=tuple(replace(q, gold="1") for q in u.queries))
            for u in getattr(data, part)
        )
        for part in ("train", "test")
    }
    return replace(data, **changed)  # type: ignore[arg-type]


def test_after_table_1_the_largest_group_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    # Without rivals, which this study does not have; with as many groups as it has.
    profile = small_profile(n_test=4, backbones=BACKBONES[:1], studied=(), repeats=2)
    store = ArtifactStore(tmp_path)
    first = per_user.run(profile, SMALL, tasks=("LaMP_3",), store=store)
    before = units(tmp_path)
    then = run(
        replace(profile, studied=BACKBONES[:1]), SMALL, sizes="8", tasks=("LaMP_3",), store=store
    )
    assert units(tmp_path) == before
    [table], [top] = first.cells, then.cells
    for method in top.answers:
        texts = [answer.texts for answer in table.answers[method]]
        assert [answer.texts for answer in top.answers[method]] == texts


def test_sizes_above_the_train_users_become_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    profile = small_profile(n_test=3, studied=BACKBONES[:1])
    store = ArtifactStore(tmp_path)
    done = run(profile, SMALL, sizes="10,40,60", tasks=("LaMP_3",), draws=1, store=store)
    assert done.conditions == ["10 users", "12 users"]
    assert len(done.notes) == 1 and "12 train users are all there are" in done.notes[0]


def test_a_group_without_a_contrast_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    study = study_in(tmp_path, SMALL)
    users, _ = study.prepare(without_gold(load_task_data(small_profile(), "LaMP_3").train))
    same = [replace(pair, answer_p="4", answer_n="4") for pair in study.pairs(users)]
    first = random_order(users, 8, 0)[0]
    options: dict[str, Any] = {"first": True, "n_random": 1, "fit_between": False}
    with pytest.raises(UserError, match="no pair of two different answers in a group"):
        build_ladder(study, users, same, [], (2, 8), 0, **options)
    far = [
        replace(pair, answer_p="5") if pair.user_id not in _first_two(users, first) else pair
        for pair in same
    ]
    with pytest.raises(UserError, match="2 users have no pair"):
        build_ladder(study, users, far, [], (2, 8), 0, **options)


def _first_two(users: Sequence[Any], first: int) -> set[str]:
    order = random_order(users, 8, 0)
    assert order[0] == first
    return {users[at].user.id for at in order[:2]}
