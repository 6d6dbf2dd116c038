"""From a table to a folder that a run takes, and back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from chameleon_lib import cli
from chameleon_lib.data.importing import DROPPED, REPORT, ImportOptions, read_table, write_import
from chameleon_lib.data.lamp import find_split
from chameleon_lib.data.source import Columns
from chameleon_lib.data.users import load_users
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.studies.data import load_task_data
from tests.data.helpers import raw_sample, write_questions
from tests.data.tables import clean, record, write_table

LABELS = {"LaMP_2": "comedy", "LaMP_3": 4, "LaMP_7": "a neutral wording"}


@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_an_imported_folder_loads_back_as_the_users_of_the_table(
    task: str, suffix: str, tmp_path: Path
) -> None:
    table = write_table(tmp_path / f"t.{suffix}", clean(("ann", "bob", "7"), 6, LABELS[task]))
    report = read_table(table, task, ImportOptions(queries=2))
    assert write_import(report, tmp_path / "to") == tmp_path / "to" / task
    users = load_users(*find_split(tmp_path / "to", task, "dev"), task)
    assert users == report.curated.users
    assert [u.id for u in users] == ["ann", "bob", "7"]
    assert {(len(u.history), len(u.queries)) for u in users} == {(4, 2)}
    assert all(query.gold for u in users for query in u.queries)


def test_the_report_counts_what_was_dropped_and_says_what_was_done(tmp_path: Path) -> None:
    rows = [*clean(), record("ann", 9, "horror"), record("ann", 8, "Comedy"), record("eve", 1)]
    report = read_table(write_table(tmp_path / "t.csv", rows), "LaMP_2")
    folder = write_import(report, tmp_path)
    text = report.text()
    assert text.startswith("t.csv: 13 rows of 3 ids, 3 users after normalisation; kept 9 history ")
    assert "unknown label         1      1  row 12: 'horror'" in text
    assert "ordered by the column 'time'" in text and "Labels written another way" in text
    stored = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    assert (stored["rows"], stored["dropped_rows"]) == (13, 2)
    assert stored["kept"] == {"users": 2, "history_items": 9, "queries": 2}
    assert [entry["reason"] for entry in stored["dropped"]] == [
        "unknown label",
        "history too short",
    ]
    with (folder / DROPPED).open(encoding="utf-8", newline="") as file:
        dropped = list(csv.DictReader(file))
    assert [(d["row"], d["user"], d["reason"]) for d in dropped] == [
        ("12", "ann", "unknown label"),
        ("14", "eve", "history too short"),
    ]


def test_a_second_import_replaces_the_first_and_leaves_nothing_else(tmp_path: Path) -> None:
    for names in (("ann", "bob"), ("cem",)):
        table = write_table(tmp_path / "t.csv", clean(names))
        write_import(read_table(table, "LaMP_2"), tmp_path / "to")
    users = load_users(*find_split(tmp_path / "to", "LaMP_2", "dev"), "LaMP_2")
    assert [u.id for u in users] == ["cem"]
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["LaMP_2"]


@pytest.mark.parametrize("moves", [1, 2, 3])
def test_a_second_import_killed_between_its_moves_is_no_data_and_can_be_repeated(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_table(write_table(tmp_path / "t.csv", clean(label="comedy")), "LaMP_2")
    again = read_table(write_table(tmp_path / "t.csv", clean(label="action")), "LaMP_2")
    write_import(first, tmp_path / "to")
    moved: list[Path] = []

    def killed(source: Path, target: Path) -> None:
        if target.parent == tmp_path / "to" / "LaMP_2":
            moved.append(target)
            if len(moved) > moves:
                raise KeyboardInterrupt
        source.rename(target)

    with monkeypatch.context() as patched:
        patched.setattr("chameleon_lib.data.importing.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_import(again, tmp_path / "to")
    with pytest.raises(UserError, match="has no outputs file beside it"):
        load_task_data(get_profile("demo-data"), "LaMP_2", str(tmp_path / "to"))
    write_import(again, tmp_path / "to")
    users = load_users(*find_split(tmp_path / "to", "LaMP_2", "dev"), "LaMP_2")
    assert users == again.curated.users


@pytest.mark.parametrize("place", ["LaMP_2/dev", "LaMP_2/new/dev", "LaMP-2", "LaMP_2_own"])
def test_files_that_no_import_wrote_are_never_replaced_nor_shadowed(
    place: str, tmp_path: Path
) -> None:
    report = read_table(write_table(tmp_path / "t.csv", clean()), "LaMP_2")
    folder = tmp_path / "to" / place
    folder.mkdir(parents=True)
    write_questions(folder / "train_questions.json", [raw_sample("LaMP_2", "1")])
    with pytest.raises(UserError, match=f"already holds {place}.*give another folder"):
        write_import(report, tmp_path / "to")
    assert len([path for path in (tmp_path / "to").rglob("*") if path.is_file()]) == 1


def test_nothing_is_left_behind_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = read_table(write_table(tmp_path / "t.csv", clean()), "LaMP_2")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chameleon_lib.data.importing.write_lamp", full)
    with pytest.raises(UserError, match="cannot be written \\(No space left"):
        write_import(report, tmp_path / "to")
    assert not [path for path in (tmp_path / "to").rglob("*") if path.is_file()]
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["LaMP_2"]


def call(*words: str) -> int:
    return cli.main(["data", *words])


def test_the_command_writes_the_files_and_prints_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"who": r["user"], "said": r["text"], "stars": "5"} for r in clean()]
    table = write_table(tmp_path / "t.csv", rows, ";")
    options = "--user who --text said --label stars --delimiter ; --queries 2 --min-items 2"
    words = [str(table), "--task", "LaMP-3", "--to", str(tmp_path), *options.split()]
    assert call("import", *words) == 0
    out = capsys.readouterr().out
    assert "kept 6 history items and 4 queries of 2 users" in out
    assert f"next: ./run_all.sh --only 01 --data {tmp_path}" in out
    assert (tmp_path / "LaMP_3" / "dev_outputs.json").is_file()


MISUSE = {
    "task": (["import", "t.csv", "--task", "LaMP_9", "--to", "x"], "Unknown task 'LaMP_9'"),
    "no table task": (["import", "t.csv", "--task", "LaMP_1", "--to", "x"], "LaMP_1 asks about"),
    "file": (["import", "gone.csv", "--task", "LaMP_2", "--to", "x"], "gone.csv cannot be read"),
    "time column": (
        ["import", "t.csv", "--task", "LaMP_2", "--to", "x", "--time", "when"],
        "t.csv has no column 'when'",
    ),
    "other task": (
        ["import", "t.csv", "--task", "LaMP_3", "--to", "x"],
        "t.csv is not read yet: 10 of 10 scores are no whole numbers from 1 to 5 ('comedy')",
    ),
    "to is a file": (["import", "t.csv", "--task", "LaMP_2", "--to", "t.csv"], "t.csv/LaMP_2 can"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_ends_in_one_sentence_exit_code_2_and_no_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, start = MISUSE[name]
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "t.csv", clean())
    assert call(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_time_format_needs_a_column_of_times(tmp_path: Path) -> None:
    rows = [{k: v for k, v in r.items() if k != "time"} for r in clean()]
    table = write_table(tmp_path / "t.csv", rows)
    with pytest.raises(UserError, match="no column of times"):
        read_table(table, "LaMP_2", ImportOptions(Columns(), time_format="%Y"))


FORMULAS = ("=HYPERLINK(1)", "+cheap rug", "-1+1|cmd", "@SUM(1)")


def test_the_list_of_dropped_rows_holds_no_live_formula(tmp_path: Path) -> None:
    rows = [*clean(label=4), *(record(cell, i, 9) for i, cell in enumerate(FORMULAS[:2], start=1))]
    rows += [record("", i, 5) | {"text": cell} for i, cell in enumerate(FORMULAS, start=1)]
    report = read_table(write_table(tmp_path / "t.csv", rows), "LaMP_3")
    cells = [cell for row in csv.reader(report.csv_text().splitlines()) for cell in row]
    assert {f"'{cell}" for cell in FORMULAS} <= set(cells)
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@")]


def test_check_draws_what_an_import_would_do_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [record(user, i, i % 5 + 1) for user in ("ann", "Ann", "bob") for i in range(1, 9)]
    rows += [record("bob", 3, 4), record("nan", 1, 4)]
    table = write_table(tmp_path / "t.csv", rows)
    assert call("check", str(table), "--task", "LaMP_3") == 0
    out = capsys.readouterr().out
    for said in (
        "t.csv: 26 rows of 3 ids, 3 users after normalisation; kept 21 history items and 3 queries "
        "of 3 users, dropped 2 rows.",
        "rows     per user 8 to 9, median 8",
        "alike    1 groups of ids: 'ann', 'Ann'",
        "times    time (ISO 8601): 2024-01-01 to 2024-01-08",
        "order    oldest first for 2 users, newest first for 0, mixed for 1; 1 rows share a time",
        "twice    1 rows",
        "  4                         ",
        "\u2588",
        "nan 1",
        "--ids folded",
        "--score-scale",
    ):
        assert said in out, said
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_check_says_all_that_is_asked_and_import_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        record(user, i, 2 * i) | {"time": f"0{i}/02/2023"}
        for user in ("1.5E+17", "bob") for i in range(1, 6)
    ]  # fmt: skip
    table = write_table(tmp_path / "t.csv", rows)
    assert call("check", str(table), "--task", "LaMP_3") == 2
    asked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("? ")]
    assert len(asked) == 3
    assert call("import", str(table), "--task", "LaMP_3", "--to", str(tmp_path / "to")) == 2
    assert "--ids exact" in capsys.readouterr().err and not (tmp_path / "to").exists()
    options = "--ids exact --score-scale 0,10 --time-format %d/%m/%Y"
    words = [str(table), "--task", "LaMP_3", "--to", str(tmp_path / "to"), *options.split()]
    assert call("import", *words) == 0
    assert "2 is 2, 4 is 3, 6 is 3, 8 is 4, 10 is 5" in capsys.readouterr().out
    report = read_table(table, "LaMP_3", ImportOptions().with_words(options))
    assert [user.id for user in report.curated.users] == ["1.5E+17", "bob"]
    with pytest.raises(UserError, match="'--colour' is no option of a table"):
        ImportOptions().with_words("--colour red")


def test_golds_that_no_answer_can_match_are_said_at_import(tmp_path: Path) -> None:
    rows = [record("ann", i, "ровно") | {"text": f"тихий вечер {'я' * i}"} for i in range(1, 7)]
    report = read_table(write_table(tmp_path / "t.csv", rows), "LaMP_7")
    assert "1 of 1 golds have no Latin letter and no digit" in report.text()
