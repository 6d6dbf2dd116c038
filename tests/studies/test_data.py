from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.core.task import HistoryItem, Query, User, official_input
from chameleon_lib.data.lamp import write_lamp
from chameleon_lib.data.users import Choice, declare
from chameleon_lib.demo.world import SPLITS, WorldSettings, build_world
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.studies.data import available_tasks, load_task_data, without_gold
from tests.studies.small import small_profile

LAPTOP = replace(PROFILES["laptop"], n_train=1000, n_dev=1000, n_test=1000)


def counted(users: Sequence[User]) -> list[object]:
    """What baselines that need no model see of users: labels and golds."""
    return [
        (u.id, [i.label for i in u.history], [(q.id, q.gold) for q in u.queries]) for u in users
    ]


def ids(users: tuple[User, ...]) -> list[str]:
    return [user.id for user in users]


def official(folder: Path, task: str, *splits: str, golds: bool = True) -> dict[str, list[User]]:
    """Write splits of a world as official files and return their users."""
    world = build_world(task, WorldSettings(users=(30, 40, 1), history=(4, 6)))
    users: dict[str, list[User]] = {s: world.users[s] for s in SPLITS if s in splits}
    for split, some in users.items():
        write_lamp(some if golds else without_gold(some), folder / task, split)
    return users


def test_the_demo_profile_gets_the_embedded_world_with_its_truth() -> None:
    data = load_task_data(small_profile(), "LaMP_2")
    assert [len(part) for part in (data.train, data.dev, data.test)] == [12, 4, 8]
    assert data.truth is not None and set(ids(data.everyone)) == set(data.truth)
    assert len(data.everyone) == 24 and "embedded world" in data.source
    assert not set(ids(data.train)) & set(ids(data.test))
    again = load_task_data(small_profile(), "LaMP_2")
    assert again == data and again.digest != load_task_data(small_profile(), "LaMP_3").digest


def test_a_profile_asks_a_test_user_so_many_queries_at_most_and_says_so() -> None:
    world = {"queries": 3}
    whole = load_task_data(small_profile(), "LaMP_3", world=world)
    few = load_task_data(replace(small_profile(), test_queries=2), "LaMP_3", world=world)
    assert {len(user.queries) for user in whole.test} == {3}
    assert [u.queries for u in few.test] == [user.queries[:2] for user in whole.test]
    assert few.train == whole.train and few.digest != whole.digest
    assert few.source.endswith("of a test user's queries the first 2")
    assert "queries the first" not in whole.source


@pytest.mark.parametrize("name", ["laptop", "paper"])
def test_a_profile_for_official_data_needs_a_folder(name: str) -> None:
    with pytest.raises(UserError, match=f"Profile {name} .*--data DIR"):
        load_task_data(PROFILES[name], "LaMP_2")


def test_a_cap_on_users_holds_for_every_part_and_moves_the_digest() -> None:
    whole, capped = (load_task_data(small_profile(), "LaMP_3", max_users=n) for n in (0, 3))
    assert [len(part) for part in (capped.train, capped.dev, capped.test)] == [3, 3, 3]
    assert capped.train == whole.train[:3] and capped.test == whole.test[:3]
    assert capped.digest != whole.digest
    larger = load_task_data(small_profile(), "LaMP_3", max_users=10)
    assert [len(part) for part in (larger.train, larger.dev, larger.test)] == [10, 4, 8]


def test_a_folder_with_dev_alone_is_divided_by_user(tmp_path: Path) -> None:
    users = official(tmp_path, "LaMP_3", "dev")["dev"]
    data = load_task_data(LAPTOP, "LaMP_3", str(tmp_path))
    parts = [ids(part) for part in (data.train, data.dev, data.test)]
    assert all(parts) and sorted(sum(parts, [])) == sorted(ids(tuple(users)))
    assert data.truth is None and "own split" in data.source
    assert load_task_data(LAPTOP, "LaMP_3", str(tmp_path)) == data
    small = load_task_data(LAPTOP, "LaMP_3", str(tmp_path), max_users=2)
    assert [len(part) for part in (small.train, small.dev, small.test)] == [2, 2, 2]
    # Of users in no part the labels are enough.
    assert counted(small.everyone) == counted(data.everyone)
    assert small.train == data.train[:2] and small.test == data.test[:2]


def test_with_a_train_file_its_users_fit_and_the_dev_users_are_scored(tmp_path: Path) -> None:
    users = official(tmp_path, "LaMP_7", "train", "dev")
    data = load_task_data(LAPTOP, "LaMP_7", str(tmp_path))
    assert ids(data.test) == ids(tuple(users["dev"]))
    assert sorted(ids(data.train) + ids(data.dev)) == sorted(ids(tuple(users["train"])))
    assert "own split" not in data.source


def test_several_train_files_are_answered_with_their_own_sentence(tmp_path: Path) -> None:
    official(tmp_path, "LaMP_3", "train", "dev")
    world = build_world("LaMP_3", WorldSettings(users=(3, 1, 1), history=(4, 6))).users
    write_lamp(world["train"], tmp_path / "LaMP_3" / "train", "train")
    with pytest.raises(UserError, match="several LaMP_3 train files .*keep one of them"):
        load_task_data(LAPTOP, "LaMP_3", str(tmp_path))
    custom = load_task_data(LAPTOP, "LaMP_3", str(tmp_path), eval_split="custom")
    assert "no train file is used" in custom.source


def test_a_train_file_in_a_place_of_its_own_is_named_and_not_passed_over(tmp_path: Path) -> None:
    official(tmp_path, "LaMP_3", "dev")
    world = build_world("LaMP_3", WorldSettings(users=(3, 1, 1), history=(4, 6))).users
    write_lamp(world["train"], tmp_path / "LaMP_3" / "old", "train")
    with pytest.raises(UserError, match="holds no LaMP_3 train split; put train_questions.json"):
        load_task_data(LAPTOP, "LaMP_3", str(tmp_path))


def test_a_train_file_that_is_broken_or_has_no_golds_is_refused(tmp_path: Path) -> None:
    official(tmp_path, "LaMP_3", "train", "dev")
    folder = tmp_path / "LaMP_3"
    (folder / "train_outputs.json").unlink()
    with pytest.raises(UserError, match="train_questions.json has no outputs file .*'custom'"):
        load_task_data(LAPTOP, "LaMP_3", str(tmp_path))
    (folder / "train_outputs.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="train_outputs.json"):
        load_task_data(LAPTOP, "LaMP_3", str(tmp_path))


def test_a_train_file_of_another_task_is_no_train_file(tmp_path: Path) -> None:
    official(tmp_path, "LaMP_3", "dev")
    official(tmp_path, "LaMP_7", "train")
    assert "own split" in load_task_data(LAPTOP, "LaMP_3", str(tmp_path)).source


def test_a_user_of_both_files_is_refused(tmp_path: Path) -> None:
    users = build_world("LaMP_3", WorldSettings(users=(6, 1, 1))).users["train"]
    write_lamp(users, tmp_path / "LaMP_3", "train")
    write_lamp(users, tmp_path / "LaMP_3", "dev")
    with pytest.raises(UserError, match="histories match"):
        load_task_data(LAPTOP, "LaMP_3", str(tmp_path))


def test_a_dev_file_without_golds_is_refused(tmp_path: Path) -> None:
    official(tmp_path, "LaMP_3", "dev", golds=False)
    with pytest.raises(UserError, match="nothing can be scored"):
        load_task_data(LAPTOP, "LaMP_3", str(tmp_path))


def test_tasks_without_files_are_left_out_and_named(tmp_path: Path) -> None:
    official(tmp_path, "LaMP_3", "dev")
    found, missing = available_tasks(LAPTOP, str(tmp_path))
    assert found == ["LaMP_3"] and len(missing) == 2
    assert "LaMP-2" in missing[0] and "LaMP-7" in missing[1]
    assert available_tasks(small_profile(), "") == (["LaMP_2", "LaMP_3", "LaMP_7"], [])


def test_an_unknown_or_empty_folder_is_answered_with_one_sentence(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    for folder, expected in ((absent, "There is no data folder"), (str(tmp_path), "none of")):
        with pytest.raises(UserError, match=expected) as caught:
            available_tasks(LAPTOP, folder)
        message = str(caught.value)
        assert folder in message and message.count(". ") == 0 and message.endswith(".")
    with pytest.raises(UserError, match="does not exist"):
        load_task_data(LAPTOP, "LaMP_3", absent)


def test_the_demo_takes_no_files_so_that_none_can_pass_for_its_world(tmp_path: Path) -> None:
    official(tmp_path, "LaMP_3", "dev")
    for load in (
        lambda profile: available_tasks(profile, str(tmp_path))[0],
        lambda profile: [load_task_data(profile, "LaMP_3", str(tmp_path)).task],
    ):
        with pytest.raises(UserError, match="choose profile demo-data") as caught:
            load(small_profile())
        assert str(caught.value).count(". ") == 0 and str(tmp_path) in str(caught.value)
        assert load(PROFILES["demo-data"]) == ["LaMP_3"]


def test_users_without_gold_are_the_same_users_otherwise() -> None:
    data = load_task_data(small_profile(), "LaMP_2")
    blind = without_gold(data.train)
    assert all(query.gold is None for user in blind for query in user.queries)
    for user, original in zip(blind, data.train, strict=True):
        golds = [query.gold for query in original.queries]
        queries = zip(user.queries, golds, strict=True)
        restored = tuple(replace(query, gold=gold) for query, gold in queries)
        assert replace(user, queries=restored) == original and all(golds)


def test_the_custom_split_divides_the_dev_users_and_leaves_a_train_file_alone(
    tmp_path: Path,
) -> None:
    users = official(tmp_path, "LaMP_7", "train", "dev")
    data = load_task_data(LAPTOP, "LaMP_7", str(tmp_path), eval_split="custom")
    parts = [ids(part) for part in (data.train, data.dev, data.test)]
    assert all(parts) and sorted(sum(parts, [])) == sorted(ids(tuple(users["dev"])))
    assert "dev users" in data.source and "no train file is used" in data.source
    assert data.digest != load_task_data(LAPTOP, "LaMP_7", str(tmp_path)).digest


def test_the_test_split_scores_the_users_of_its_own_file(tmp_path: Path) -> None:
    world = build_world("LaMP_7", WorldSettings(users=(9, 6, 7), history=(4, 6))).users
    for split in ("train", "dev", "test"):
        write_lamp(world[split], tmp_path / "LaMP_7", split)
    data = load_task_data(LAPTOP, "LaMP_7", str(tmp_path), eval_split="test")
    assert ids(data.test) == ids(tuple(world["test"])) and "test users are scored" in data.source
    assert sorted(ids(data.train) + ids(data.dev)) == sorted(ids(tuple(world["train"])))
    assert not set(ids(data.everyone)) & set(ids(tuple(world["dev"])))


def test_withheld_test_labels_are_answered_with_one_sentence(tmp_path: Path) -> None:
    users = build_world("LaMP_7", WorldSettings(users=(1, 1, 5), history=(4, 6))).users["test"]
    write_lamp(without_gold(users), tmp_path / "LaMP_7", "test")
    with pytest.raises(UserError, match="test_questions.json .*nothing can be scored"):
        load_task_data(LAPTOP, "LaMP_7", str(tmp_path), eval_split="test")


def test_tasks_are_looked_for_in_the_split_that_is_scored(tmp_path: Path) -> None:
    official(tmp_path, "LaMP_3", "dev")
    assert available_tasks(LAPTOP, str(tmp_path), "custom")[0] == ["LaMP_3"]
    with pytest.raises(UserError, match="holds a test split of none of .*test_outputs.json"):
        available_tasks(LAPTOP, str(tmp_path), "test")


def test_the_embedded_world_scores_its_test_users_whatever_the_split() -> None:
    found = [load_task_data(small_profile(), "LaMP_2", eval_split=s) for s in ("dev", "custom")]
    assert found[0] == found[1]


def movies(folder: Path, split: str = "dev", name: bool = False) -> int:
    """Thirty people with two films each to ask about, every profile without its own film only."""
    users = build_world("LaMP_2", WorldSettings(users=(30, 1, 1), history=(6, 9))).users["train"]
    singles = []
    for n, user in enumerate(users):
        first, last = user.history[0], user.history[-1]
        for item in (first, last):
            history = tuple(other for other in user.history if other != item)
            query = Query(
                f"{n}-{item.id}", item.text, official_input("LaMP_2", item.text), item.label
            )
            singles.append(User(query.id, "LaMP_2", history, (query,)))
    questions, _ = write_lamp(singles, folder / "LaMP_2", split)
    if name:
        records = json.loads(questions.read_text(encoding="utf-8"))
        for record in records:
            record["user_id"] = record["id"].partition("-")[0]
        questions.write_text(json.dumps(records), encoding="utf-8")
    return len(singles)


def people(users: tuple[User, ...]) -> set[str]:
    return {query.id.partition("-")[0] for user in users for query in user.queries}


def test_movie_users_are_rebuilt_and_the_source_says_how_sure_that_is(tmp_path: Path) -> None:
    movies(tmp_path)
    data = load_task_data(LAPTOP, "LaMP_2", str(tmp_path))
    assert len(data.everyone) == 30 and {len(user.queries) for user in data.everyone} == {2}
    assert "60 samples are 30 users by profiles that overlap by at least 0.5" in data.source


def test_samples_count_as_users_where_the_folder_declares_it(tmp_path: Path) -> None:
    movies(tmp_path)
    rebuilt = load_task_data(LAPTOP, "LaMP_2", str(tmp_path))
    declare(tmp_path, "LaMP_2", Choice("samples"))
    data = load_task_data(LAPTOP, "LaMP_2", str(tmp_path))
    assert len(data.everyone) == 60 and all(len(user.queries) == 1 for user in data.everyone)
    assert "each of the 60 samples counts as a user, as lamp_users.json declares" in data.source
    for part in ("train", "dev", "test"):
        assert people(getattr(data, part)) == people(getattr(rebuilt, part))
    assert data.digest != rebuilt.digest


def test_a_declared_overlap_reaches_the_rebuilding(tmp_path: Path) -> None:
    movies(tmp_path)
    declare(tmp_path, "LaMP_2", Choice("rebuilt", 0.99))
    data = load_task_data(LAPTOP, "LaMP_2", str(tmp_path))
    assert len(data.everyone) == 60 and "60 users by profiles that overlap by at least 0.99" in (
        data.source
    )


def test_a_time_based_train_file_fits_nothing_since_it_has_the_scored_users(
    tmp_path: Path,
) -> None:
    movies(tmp_path, "dev", name=True)
    movies(tmp_path, "train", name=True)
    data = load_task_data(LAPTOP, "LaMP_2", str(tmp_path))
    assert "the train file has 30 of the same users: a time-based split" in data.source
    assert len(data.everyone) == 30 and not people(data.train) & people(data.test)
    assert people(data.train) and people(data.test)


def test_questions_that_are_left_out_are_counted_in_the_source(tmp_path: Path) -> None:
    """One person's four films, each asked with the other three as profile."""
    films = [HistoryItem(str(i), f"A film about {i}.", "comedy") for i in range(4)]
    singles = [
        User(
            film.id,
            "LaMP_2",
            tuple(other for other in films if other != film),
            (Query(film.id, film.text, official_input("LaMP_2", film.text), film.label),),
        )
        for film in films
    ]
    write_lamp(singles, tmp_path / "LaMP_2", "dev")
    data = load_task_data(LAPTOP, "LaMP_2", str(tmp_path))
    assert [len(user.queries) for user in data.everyone] == [3]
    assert "1 questions are left out, or no history of their user would be left" in data.source
    declare(tmp_path, "LaMP_2", Choice("samples"))
    assert len(load_task_data(LAPTOP, "LaMP_2", str(tmp_path)).everyone) == 4
