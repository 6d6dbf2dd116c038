from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from chameleon_lib.core.task import User
from chameleon_lib.data.lamp import find_split, write_lamp
from chameleon_lib.data.users import load_users
from chameleon_lib.errors import UserError
from tests.data.helpers import (
    SHARED_DATA,
    needs_shared_data,
    raw_item,
    raw_sample,
    user,
    write_outputs,
    write_questions,
)

TASK_NAMES = ("LaMP_2", "LaMP_3", "LaMP_7")


def split_files(folder: Path, task: str, golds: dict[str, str]) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    records = [raw_sample(task, "1"), raw_sample(task, "2")]
    return (
        write_questions(folder / "dev_questions.json", records),
        write_outputs(folder / "dev_outputs.json", task, golds),
    )


def test_golds_are_joined_by_id_and_not_by_order(tmp_path: Path) -> None:
    questions, outputs = split_files(tmp_path, "LaMP_3", {"2": "2", "1": "1"})
    users = load_users(questions, outputs, "LaMP-3")
    assert [(u.id, u.task, u.queries[0].gold) for u in users] == [
        ("1", "LaMP_3", "1"),
        ("2", "LaMP_3", "2"),
    ]


def test_without_outputs_every_gold_is_none(tmp_path: Path) -> None:
    questions, _ = split_files(tmp_path, "LaMP_2", {"1": "comedy", "2": "comedy"})
    assert [q.gold for u in load_users(questions, None, "LaMP_2") for q in u.queries] == [None] * 2


def test_the_time_based_split_names_its_users_and_dates_its_items(tmp_path: Path) -> None:
    records = [raw_sample("LaMP_3", str(i)) for i in range(3)]
    for record, name in zip(records, ("A1", "B2", "A1"), strict=True):
        record["user_id"] = name
        for item in record["profile"]:
            item["date"] = "2014-07-23"
    users = load_users(write_questions(tmp_path / "q.json", records), None, "LaMP_3")
    assert [(u.id, [q.id for q in u.queries]) for u in users] == [("A1", ["0", "2"]), ("B2", ["1"])]
    records[1]["user_id"] = 7  # copies of the files have numbers, too
    users = load_users(write_questions(tmp_path / "q.json", records), None, "LaMP_3")
    assert [u.id for u in users] == ["A1", "7"]
    records[1]["user_id"] = None
    with pytest.raises(UserError, match="'user_id' = None"):
        load_users(write_questions(tmp_path / "q.json", records), None, "LaMP_3")


def test_a_repair_is_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = raw_sample("LaMP_2", "110")
    record["input"] = "x a quiet film"
    path = write_questions(tmp_path / "q.json", [record])
    with caplog.at_level(logging.WARNING):
        load_users(path, None, "LaMP_2")
    assert "instruction of 1 record" in caplog.text and str(path) in caplog.text


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("LaMP_2", "LaMP_2/new/dev"),
        ("LaMP_2", "LaMP_2/new"),
        ("LaMP_2", "LaMP-2/new/dev"),
        ("LaMP_2", "LaMP_2"),
        ("LaMP_2", "LaMP_2_movielens"),
        ("LaMP_3", "LaMP-3/dev"),
        ("LaMP_3", "LaMP_3"),
        ("LaMP_7", "LaMP-7-mine/dev"),
    ],
)
def test_a_split_is_found_in_the_usual_places(tmp_path: Path, task: str, folder: str) -> None:
    expected = split_files(tmp_path / folder, task, {})
    assert find_split(tmp_path, task, "dev") == expected
    expected[1].unlink()
    assert find_split(tmp_path, task, "dev") == (expected[0], None)


def test_a_split_is_not_found_in_the_folder_of_another_task(tmp_path: Path) -> None:
    split_files(tmp_path / "LaMP_21", "LaMP_2", {})
    with pytest.raises(UserError, match=r"no LaMP_2 dev split.*LaMP_2/new/dev/"):
        find_split(tmp_path, "LaMP_2", "dev")
    with pytest.raises(UserError, match="does not exist"):
        find_split(tmp_path / "absent", "LaMP_2", "dev")


def test_two_equally_good_places_raise_instead_of_guessing(tmp_path: Path) -> None:
    split_files(tmp_path / "LaMP_3_a", "LaMP_3", {})
    split_files(tmp_path / "LaMP_3_b", "LaMP_3", {})
    with pytest.raises(UserError, match="several LaMP_3 dev files.*LaMP_3_a.*LaMP_3_b"):
        find_split(tmp_path, "LaMP_3", "dev")


@pytest.mark.parametrize("task", TASK_NAMES)
def test_what_is_written_is_loaded_back_unchanged(tmp_path: Path, task: str) -> None:
    label, gold = {"LaMP_2": ("comedy", "action"), "LaMP_3": ("4", "5"), "LaMP_7": (None, "ok")}[
        task
    ]
    users = [user(str(i), task, (label,) * 4, gold, f"na\u00efve \u4f60 {i}") for i in range(3)]
    questions, outputs = write_lamp(users, tmp_path / "LaMP_X", "train")
    assert load_users(questions, outputs, task) == users


def test_the_written_layout_is_the_official_one(tmp_path: Path) -> None:
    questions, outputs = write_lamp([user("7", query="caf\u00e9")], tmp_path, "dev")
    assert outputs is not None
    assert (questions.name, outputs.name) == ("dev_questions.json", "dev_outputs.json")
    raw = questions.read_bytes()
    assert b"\r" not in raw and "caf\u00e9".encode() in raw and raw.endswith(b"]\n")
    [record] = json.loads(raw)
    assert list(record) == ["id", "input", "profile"]
    assert record["profile"][0] == raw_item("LaMP_3", "70", "text 0 of 7", "5")
    assert json.loads(outputs.read_bytes()) == {
        "task": "LaMP_3",
        "golds": [{"id": "7", "output": "5"}],
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dev_outputs.json", "dev_questions.json"]


def test_withheld_golds_write_no_outputs_file_and_remove_a_stale_one(tmp_path: Path) -> None:
    write_lamp([user("1")], tmp_path, "test")
    _, outputs = write_lamp([user("1", gold=None)], tmp_path, "test")
    assert outputs is None
    assert [p.name for p in tmp_path.iterdir()] == ["test_questions.json"]


def test_old_golds_never_stand_beside_new_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lamp([user("1", gold="4")], tmp_path, "dev")
    renames: list[Path] = []

    def killed_at_the_second(source: Path, target: Path) -> None:
        renames.append(target)
        if len(renames) == 2:
            raise KeyboardInterrupt
        source.rename(target)

    monkeypatch.setattr("chameleon_lib.kit.paths.os.replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_lamp([user("1", query="new", gold="5")], tmp_path, "dev")
    assert [path.name for path in renames] == ["dev_questions.json", "dev_outputs.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["dev_questions.json"]


def test_a_failure_before_the_new_questions_are_whole_keeps_the_old_files(tmp_path: Path) -> None:
    questions, outputs = write_lamp([user("1")], tmp_path, "dev")
    with pytest.raises(UserError, match="item '10' has no score"):
        write_lamp([user("1", labels=(None,))], tmp_path, "dev")
    assert load_users(questions, outputs, "LaMP_3") == [user("1")]


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([], "exactly one task"),
        ([user("1"), user("2", "LaMP_7", (None,), "ok")], "exactly one task"),
        ([user("1"), user("1")], "share an id"),
        ([user("1"), user("2", gold=None)], "1 of 2 queries.*no gold"),
        ([user("1", labels=(None,))], "item '10' has no score"),
    ],
)
def test_users_that_make_no_valid_file_raise_and_leave_nothing_behind(
    tmp_path: Path, users: list[User], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_lamp(users, tmp_path, "dev")
    assert list(tmp_path.iterdir()) == []


@needs_shared_data
@pytest.mark.parametrize(
    ("folder", "task", "split", "n_users", "n_queries"),
    [
        ("lamp", "LaMP_7", "dev", 1500, 1500),
        ("lamp", "LaMP_3", "dev", 6, 60),
        ("lamp_like", "LaMP_2", "train", 102, 102),
        ("lamp_like", "LaMP_2", "dev", 36, 36),
        ("lamp_like", "LaMP_3", "train", 146, 146),
        ("lamp_like", "LaMP_3", "test", 55, 55),
    ],
)
def test_real_files_load_with_the_known_numbers_of_users(
    folder: str, task: str, split: str, n_users: int, n_queries: int
) -> None:
    questions, outputs = find_split(SHARED_DATA / folder, task, split)
    users = load_users(questions, outputs, task)
    assert (len(users), sum(len(u.queries) for u in users)) == (n_users, n_queries)
    assert all(query.gold is not None for u in users for query in u.queries)
