"""A table of one's own users, from the file to a personalised answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chameleon_lib import cli, demo
from chameleon_lib.backbones import load_backbone
from chameleon_lib.core.task import User
from chameleon_lib.data.importing import REPORT, ImportOptions
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.studies import own_users, quickstart
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.own_users import TABLE
from tests.studies.small import small_kit

PROFILE = replace(PROFILES["demo-data"], backbones=("demo:decoder:0",), studied=("demo:decoder:0",))
TASK, QUERIES = "LaMP_2", 4
OPTIONS = ImportOptions(queries=QUERIES)
BACKBONE = "demo:decoder:0"


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_kit(tmp_path_factory.mktemp("cache"), quickstart) as folder:
        yield folder


@pytest.fixture(scope="module")
def folder(patched: Path) -> Path:
    report, found = own_users.imported(TABLE, TASK, OPTIONS)
    assert found.is_relative_to(patched) and len(report.curated.users) == 24
    return found


@pytest.fixture(scope="module")
def users(folder: Path) -> list[User]:
    return own_users.load_own(folder, TASK)


def test_an_imported_folder_is_what_data_dir_takes(folder: Path) -> None:
    data = load_task_data(PROFILE, TASK, str(folder))
    assert data.imported and data.truth is None and "imported table" in data.source
    assert len(data.everyone) == 24 and data.train and data.test
    (folder / TASK / REPORT).rename(folder / "aside")
    try:
        official = load_task_data(PROFILE, TASK, str(folder))
    finally:
        (folder / "aside").rename(folder / TASK / REPORT)
    assert not official.imported and "official LaMP dev" in official.source
    assert official.digest == data.digest


def test_nobody_who_is_asked_takes_part_in_the_fit(users: list[User]) -> None:
    for user in (users[0], users[7]):
        rest = own_users.everyone_else(PROFILE, users, user)
        assert (len(rest.train), rest.test) == (23, (user,))
        half = own_users.halves(PROFILE, users, user)
        assert half.test[0] == user and 8 <= len(half.train) <= 16
        assert len(half.train) + len(half.test) == 24
        assert not {u.id for u in half.train} & {u.id for u in half.test}


def test_a_user_is_found_by_name_and_a_stranger_is_refused(users: list[User]) -> None:
    assert own_users.find_user(users, "olga").id == "olga"
    assert own_users.find_user(users, "") == users[0]
    with pytest.raises(UserError, match="no user 'quentin' among 24 users .*import report"):
        own_users.find_user(users, "quentin")


def test_one_user_alone_is_refused_before_anything_is_loaded(users: list[User]) -> None:
    with pytest.raises(UserError, match="Only 1 user .* more users"):
        own_users.everyone_else(PROFILE, users[:1], users[0])


@pytest.mark.parametrize("text", ["", "A spell haunts a chase in Oslo"])
def test_a_query_is_answered_with_and_without_the_edit(users: list[User], text: str) -> None:
    user = users[3]
    asked = own_users.ask(PROFILE, BACKBONE, own_users.halves(PROFILE, users, user), user, text)
    table = quickstart.before_and_after(asked)
    assert set(table["query"]) == {text or user.queries[0].text} and len(table) == 6
    assert user.id not in {pair.user_id for pair in asked.case.pairs}
    (personal,) = set(table["user's answer"])
    if text:
        assert "under the user's insight" in asked.compared
    else:
        assert "held-out" in asked.compared and personal == user.queries[0].gold


def test_the_query_of_ones_own_reaches_neither_fit_nor_history(users: list[User]) -> None:
    data = own_users.everyone_else(PROFILE, users, users[3])
    one, other = (own_users.ask(PROFILE, BACKBONE, data, users[3], t) for t in ("a", "b"))
    np.testing.assert_array_equal(one.fitted.theta_p, other.fitted.theta_p)
    assert one.user.items == other.user.items


def test_the_held_out_rows_of_all_scored_users_are_counted(users: list[User]) -> None:
    data = own_users.halves(PROFILE, users, users[3])
    asked = own_users.ask(PROFILE, BACKBONE, data, users[3])
    found = own_users.held_out(asked)
    assert found["prompt and edit"].iloc[0] == "Instruct" and len(found) == 4
    assert set(found["n"]) == {len(data.test)}
    assert set(found["queries"]) == {QUERIES * len(data.test)}
    assert found["accuracy"].between(0, 1).all()
    assert found.loc[0, ["accuracy_change", "margin_change"]].tolist() == [0, 0]
    assert (found["accuracy_change_low"] <= found["accuracy_change_high"]).all()
    assert found["margin_change n"].between(1, len(data.test)).all()
    assert own_users.effects(found, TASK) == ["", "", "", ""]  # too few users for a word


@pytest.mark.parametrize(
    ("task", "score", "low", "high", "word"),
    [
        ("LaMP_2", "accuracy", 0.1, 0.2, "helps"),
        ("LaMP_2", "accuracy", -0.1, 0.1, "no effect shown"),
        ("LaMP_3", "abs_error", 0.1, 0.2, "hurts"),
        ("LaMP_7", "rouge1", 0.0, 0.1, "no effect shown"),
    ],
)
def test_the_words_follow_from_the_intervals(
    task: str, score: str, low: float, high: float, word: str
) -> None:
    row = {f"{score}_change_low": low, f"{score}_change_high": high}
    found = pd.DataFrame([{"n": 200, **row}] * 2)
    assert own_users.effects(found, task) == ["", word]
    assert own_users.effects(found.assign(n=99), task) == ["", ""]


def test_the_control_tokens_that_a_user_spells_are_counted() -> None:
    backbone = load_backbone(demo.checkpoint("decoder", "0"), dtype="float32")
    texts = ["a <s>bad</s> good lamp", "fine"]
    assert own_users.control_marks(backbone, texts) == ["<s>", "</s>"]


def answer(*words: str) -> int:
    return cli.main(["answer", "--task", TASK, *words])


@pytest.mark.usefixtures("patched")
def test_one_command_leads_from_a_table_to_an_answer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "A spell haunts a chase in Oslo"
    words = ["--user", "ada", "--query", f" {query}\n"]
    assert answer("--csv", str(TABLE), "--queries", str(QUERIES), *words) == 0
    from_table = capsys.readouterr().out
    assert answer("--data", str(folder), *words) == 0
    from_folder = capsys.readouterr().out
    assert from_table.endswith(from_folder) and "dropped 8 rows" in from_table
    assert PROFILES["demo-data"].banner in from_folder and f"query: {query}\n" in from_folder
    for start in ("history: 3 of ", "insight: ", "neutral insight: ", "pairs: ", "Instruct  "):
        assert any(line.startswith(start) for line in from_folder.splitlines()), start
    assert from_folder.count("    - ") == 3


MISUSE = {
    "no users": ([], "Give either --data DIR or --csv FILE."),
    "two": (["--data", "d", "--csv", "c"], "Give either --data DIR or --csv FILE."),
    "no folder": (["--data", "gone"], "The data folder gone does not exist"),
    "empty folder": (["--data", "."], ". holds no LaMP_2 dev split"),
    "no table": (["--csv", "gone.csv"], "gone.csv cannot be read"),
    "column": (["--csv", str(TABLE), "--label-column", "tag"], f"{TABLE} has no column 'tag'"),
    "stranger": (["--csv", str(TABLE), "--user", "quentin"], "There is no user 'quentin'"),
    "blank query": (["--csv", str(TABLE), "--query", "  "], "--query holds blanks alone"),
    "profile": (["--csv", str(TABLE), "--profile", "huge"], "Invalid value for '--profile'"),
    "other task": (["--csv", str(TABLE), "--task", "LaMP_3"], f"{TABLE} is not read yet"),
}


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("name", MISUSE)
def test_misuse_of_the_command_is_answered_in_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, start = MISUSE[name]
    monkeypatch.chdir(tmp_path)
    assert answer(*words) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and said.startswith(start)
    assert not list(tmp_path.iterdir())
