from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lib.backbones.demo.world import WorldSettings, common_taste
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.data import write_lamp
from chameleon_lib.lamp.prompts import unseen_prompt
from chameleon_lib.sections import fits as fits_module
from chameleon_lib.sections import grid
from chameleon_lib.sections.answering import Exam
from chameleon_lib.sections.data import TaskData, load_task_data
from chameleon_lib.sections.results import Run
from chameleon_lib.sections.study import Study
from chameleon_lib.sections.unseen_users import common as unseen_common
from chameleon_lib.sections.unseen_users import study as unseen_users
from chameleon_lib.sections.unseen_users.common import COMMON_TASTE, FITTED_BARE
from chameleon_lib.sections.unseen_users.groups import groups, refuse_leaks
from chameleon_lib.sections.unseen_users.study import NO_HISTORY, WITH_HISTORY
from tests.sections.finished import PROFILE, Finished, units
from tests.sections.small import SETTINGS, small_profile, use_small_models

IN_ALL = {"instruct", "chameleon", "random", "from_neutral", "shuffled_pairs", "fitted"}


@dataclass
class Unseen:
    """Both runs, what was asked and fitted on the way, and the units that were new."""

    runs: list[Run]
    new: list[tuple[str, ...]]
    asked: dict[str, list[str]] = field(default_factory=dict)
    contrasts: list[Contrast] = field(default_factory=list)


@pytest.fixture(scope="module")
def unseen(finished: Finished) -> Iterator[Unseen]:
    """The study after Table 1, on its store."""
    found = Unseen([], [])
    before = units(finished.folder).keys()
    fit, add = fits_module.fit_by_preference, Exam.add_prompts

    def fit_by_preference(backbone: Any, contrasts: Sequence[Contrast], *a: Any, **k: Any) -> Any:
        found.contrasts += contrasts
        return fit(backbone, contrasts, *a, **k)

    def add_prompts(exam: Exam, kind: str, texts: Sequence[str]) -> None:
        found.asked.setdefault(kind, []).extend(texts)
        add(exam, kind, texts)

    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        patch.setattr(fits_module, "fit_by_preference", fit_by_preference)
        patch.setattr(Exam, "add_prompts", add_prompts)
        store = ArtifactStore(finished.folder)
        found.runs = unseen_users.run(PROFILE, SETTINGS, store=store)
    new = units(finished.folder).keys() - before
    found.new = [path.relative_to(finished.folder).parts for path in new]
    yield found


def test_both_readings_are_asked_of_the_studied_backbones(unseen: Unseen) -> None:
    main, common = unseen.runs
    assert [(c.task, c.condition) for c in main.cells] == [
        (task, name) for task in ("LaMP_3", "LaMP_7") for name in (NO_HISTORY, WITH_HISTORY)
    ]
    assert {c.backbone for c in [*main.cells, *common.cells]} == set(PROFILE.studied)
    assert [(c.task, c.condition) for c in common.cells] == [
        ("LaMP_3", COMMON_TASTE), ("LaMP_3", FITTED_BARE),
    ]  # fmt: skip
    for cell in main.cells:
        assert set(cell.scores) == IN_ALL | {"fitted_shuffled", "fitted_gold", "aloe", "dpo"}
        assert {len(found) for found in cell.answers.values()} == {1}
    assert [set(cell.scores) for cell in common.cells] == [IN_ALL, IN_ALL | {"fitted_shuffled"}]
    for run, n_groups in zip(unseen.runs, (2, 1), strict=True):
        assert f"none of the {n_groups} groups" in run.notes[-1]


def test_a_user_without_history_is_asked_the_question_alone(unseen: Unseen) -> None:
    main, common = unseen.runs
    written = [
        item.text for run in (main, common) for d in run.data.values() for u in d.test
        for item in u.history
    ]  # fmt: skip
    alone = "\n".join(unseen.asked["unseen"])
    assert not [text for text in written if text in alone]
    for run in (main, common):
        for task, data in run.data.items():
            for user in data.test:
                assert unseen_prompt(task, user.queries[0].text) in unseen.asked["unseen"]
    assert any(text in "\n".join(unseen.asked["instruct"]) for text in written)


def test_the_reading_with_history_is_table_1_and_costs_nothing(
    unseen: Unseen, finished: Finished
) -> None:
    main, _ = unseen.runs
    for cell in main.cells:
        [first] = [c for c in finished.run.cells
                   if (c.task, c.backbone) == (cell.task, cell.backbone)]  # fmt: skip
        for name, answers in cell.answers.items():
            same = answers[0].texts == first.answers[name][0].texts
            assert same or cell.condition == NO_HISTORY
    fresh = [parts[0] for parts in unseen.new]
    assert not {"aloe", "dpo"} & set(fresh)
    # Per task, Instruct and every shown arm without history; then what the common taste adds.
    in_main = 2 * (1 + len(unseen_users.SHOWN) + 2)
    in_common = 1 + len(IN_ALL | {"fitted_shuffled"}) - 1 + len(IN_ALL) - 1
    assert fresh.count("answers") <= in_main + in_common
    assert fresh.count("fit") == 3  # the common world's own


def test_the_common_world_is_fitted_with_and_without_histories(unseen: Unseen) -> None:
    _, common = unseen.runs
    data = common.data["LaMP_3"]
    assert data.truth is not None
    one = common_taste("LaMP_3", WorldSettings())
    having = [data.truth[user.id].taste == one for user in data.everyone]
    assert 0.5 < np.mean(having) <= 1
    assert common.settings.selection_rule == "recent"
    assert common.settings.fit_steps <= SETTINGS.fit_steps
    ids = {user.id for user in data.train}
    alone = {unseen_prompt("LaMP_3", q.text) for u in data.train for q in u.queries}
    bare = [c for c in unseen.contrasts if c.prompt in alone]
    full = [c for c in unseen.contrasts if c.prompt not in alone]
    assert len(bare) == 2 * len(full) > 4 and {c.user_id for c in unseen.contrasts} <= ids
    [with_history, without] = common.cells
    assert with_history.answers["instruct"][0].texts == without.answers["instruct"][0].texts
    for name in ("chameleon", "fitted"):
        one_way, other = (cell.scores[name]["margin"] for cell in common.cells)
        assert not np.allclose(one_way, other, equal_nan=True)


def test_no_test_text_reaches_a_fit(unseen: Unseen) -> None:
    read = "\n".join(contrast.prompt for contrast in unseen.contrasts)
    for run in unseen.runs:
        users = run.data["LaMP_3"].test
        texts = [t for u in users for t in (*(i.text for i in u.history), u.queries[0].text)]
        assert texts and not [text for text in texts if text in read]


def test_the_same_study_again_computes_nothing(
    unseen: Unseen, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    before = units(finished.folder)
    again = unseen_users.run(PROFILE, SETTINGS, store=ArtifactStore(finished.folder))
    assert units(finished.folder) == before
    for mine, other in zip(unseen.runs, again, strict=True):
        assert mine.test_users == other.test_users
        for one, two in zip(mine.cells, other.cells, strict=True):
            assert one.draws == two.draws
            for name, answers in one.answers.items():
                assert [a.texts for a in answers] == [a.texts for a in two.answers[name]]


def test_a_task_without_a_common_world_has_no_such_run(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert unseen_common.run(PROFILE, SETTINGS, tasks=["LaMP_7"], store=store) == []
    assert not units(tmp_path)


def test_real_users_are_read_both_ways_and_share_no_planted_taste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    users = load_task_data(small_profile(n_dev=30), "LaMP_3").dev
    write_lamp(users, tmp_path / "data" / "LaMP_3", "dev")
    profile = small_profile(name="demo-data", data="lamp", tasks=("LaMP_3",))
    store = ArtifactStore(tmp_path / "units")
    [done] = unseen_users.run(
        profile, SETTINGS, data_dir=str(tmp_path / "data"), max_users=6, store=store
    )
    assert done.conditions == [NO_HISTORY, WITH_HISTORY]
    assert any("common-taste" in note for note in done.notes)


# --- leaks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, TaskData, Any]]:
    """A study of LaMP-3 with its users and one group."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        store = ArtifactStore(tmp_path_factory.mktemp("units"))
        study = Study(small_profile(), "demo:decoder:0", "LaMP_3", SETTINGS, store)
        data = load_task_data(study.profile, "LaMP_3")
        yield study, data, next(groups(study, data, (0,)))


def test_a_group_of_train_users_leaks_nothing(made: tuple[Study, TaskData, Any]) -> None:
    _, data, (index, group, pairs) = made
    assert index == 0 and len(group) == SETTINGS.group_size
    assert {pair.user_id for pair in pairs} == {user.user.id for user in group}
    refuse_leaks(group, pairs, data)


def test_a_test_user_in_a_group_or_among_the_pairs_is_refused_by_name(
    made: tuple[Study, TaskData, Any],
) -> None:
    _, data, (_, group, pairs) = made
    victim = data.test[3]
    taken = replace(group[0], user=victim)
    with pytest.raises(UserError, match=f"Test user '{victim.id}' would reach a fit"):
        refuse_leaks([taken, *group[1:]], pairs, data)
    with pytest.raises(UserError, match=f"Test user '{victim.id}' would reach a fit"):
        refuse_leaks(group, [replace(pairs[0], user_id=victim.id), *pairs[1:]], data)


def test_a_test_user_under_another_name_is_refused(made: tuple[Study, TaskData, Any]) -> None:
    _, data, (_, group, pairs) = made
    victim = data.test[3]
    renamed = replace(group[0], user=replace(group[0].user, history=victim.history))
    for truth in (data.truth, None):  # whole histories are told apart in real files as well
        with pytest.raises(UserError, match=repr(victim.id)):
            refuse_leaks([renamed, *group[1:]], pairs, replace(data, truth=truth))


def test_one_text_of_a_test_user_is_refused_in_the_embedded_world(
    made: tuple[Study, TaskData, Any],
) -> None:
    _, data, (_, group, pairs) = made
    victim = data.test[3]
    query, item = victim.queries[0].text, victim.history[2]
    for leaked in (
        replace(pairs[0], query=query),
        replace(pairs[0], query=item.text),
        replace(pairs[0], items=(*pairs[0].items, item)),
    ):
        with pytest.raises(UserError, match=f"A text of test user '{victim.id}'"):
            refuse_leaks(group, [leaked, *pairs[1:]], data)
        refuse_leaks(group, [leaked, *pairs[1:]], replace(data, truth=None))  # two may tag a film
    asked = replace(group[0].user, queries=victim.queries)
    with pytest.raises(UserError, match=f"A text of test user '{victim.id}'"):
        refuse_leaks([replace(group[0], user=asked), *group[1:]], pairs, data)


def test_a_post_that_two_people_write_is_no_leak_but_a_query_is(
    made: tuple[Study, TaskData, Any],
) -> None:
    _, data, (_, group, pairs) = made
    posts = replace(data, task="LaMP_7")
    victim = data.test[3]
    refuse_leaks(group, [replace(pairs[0], query=victim.history[2].text)], posts)
    with pytest.raises(UserError, match=repr(victim.id)):
        refuse_leaks(group, [replace(pairs[0], query=victim.queries[0].text)], posts)


@pytest.mark.parametrize("study", [unseen_users, unseen_common])
def test_the_study_stops_before_any_fit_when_users_overlap(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)

    def overlapping(*args: Any) -> TaskData:
        data = load_task_data(*args)
        stolen = replace(data.train[0], queries=data.test[1].queries)
        return replace(data, train=(stolen, *data.train[1:]))

    monkeypatch.setattr(grid, "load_task_data", overlapping)
    every = SETTINGS.with_(group_size=12)  # all train users
    profile = small_profile(tasks=("LaMP_3",), backbones=PROFILE.studied)
    victim = load_task_data(profile, "LaMP_3").test[1]
    with pytest.raises(UserError, match=f"A text of test user '{victim.id}'"):
        study.run(profile, every, tasks=["LaMP_3"], store=ArtifactStore(tmp_path))
    stages = {path.relative_to(tmp_path).parts[0] for path in units(tmp_path)}
    assert not stages & {"activations", "directions", "fit", "aloe", "dpo"}
