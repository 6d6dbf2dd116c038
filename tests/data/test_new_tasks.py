"""A task is one object: three of the benchmark beside the paper's, and a toy of this file's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.core import task as task_module
from chameleon_lib.core.task import (
    HistoryItem,
    Task,
    get_task,
    history_line,
    official_input,
    official_prompt,
    register,
)
from chameleon_lib.data.floors import floors_for
from chameleon_lib.data.importing import read_table, write_import
from chameleon_lib.data.lamp import find_split
from chameleon_lib.data.metrics import evaluate, higher_is_better
from chameleon_lib.data.users import load_users
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.studies.data import available_tasks, load_task_data
from tests.data.helpers import write_outputs, write_questions
from tests.data.tables import clean, write_table
from tests.test_opens import SHOUT

QUERIES = {
    "LaMP_1": '"A new paper", which reference is related? Just answer with [1] or [2] without '
    'explanation. [1]: "On cats" [2]: "On kites"',
    "LaMP_4": "The tower of the old mill fell in the storm.",
    "LaMP_5": "We measure how far a kite flies in a storm.",
}
KEYS = {"LaMP_1": "abstract", "LaMP_4": "text", "LaMP_5": "abstract"}
GOLDS = {"LaMP_1": "[2]", "LaMP_4": "Old mill falls", "LaMP_5": "How far a kite flies"}


def item(task: str, at: int) -> dict[str, str]:
    return {"id": f"{at}", "title": f"Title {at}", KEYS[task]: f"All about thing {at}."}


def write_dev(folder: Path, task: str, users: int = 30) -> None:
    """A small official dev split: users with three items and one question each."""
    target = folder / task / "dev"
    target.mkdir(parents=True)
    records = [
        {"id": f"{u}", "input": official_input(task, f"{QUERIES[task]} {u}"),
         "profile": [item(task, 10 * u + i) for i in range(3)]}
        for u in range(1, users + 1)
    ]  # fmt: skip
    write_questions(target / "dev_questions.json", records)
    golds = {str(r["id"]): GOLDS[task] for r in records}
    write_outputs(target / "dev_outputs.json", task, golds)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "LaMP_1",
            'For an author who has written the paper with the title, and "Title 1", and "Title 2" '
            '"A new paper", which reference is related? Just answer with [1] or [2] without '
            'explanation. [1]: "On cats" [2]: "On kites"',
        ),
        (
            "LaMP_4",
            '"Title 1" is the title for "All about thing 1." , and "Title 2" is the title for '
            '"All about thing 2." . Generate a headline for the following article: The tower of '
            "the old mill fell in the storm.",
        ),
        (
            "LaMP_5",
            '"Title 1" is a title for "All about thing 1." , and "Title 2" is a title for "All '
            'about thing 2." . Following the given patterns Generate a title for the following '
            "abstract of a paper: We measure how far a kite flies in a storm.",
        ),
    ],
)
def test_the_official_prompt_is_the_one_of_the_benchmark(task: str, expected: str) -> None:
    items = [HistoryItem(str(i), f"All about thing {i}.", f"Title {i}") for i in (1, 2)]
    asked = task_module.Query("1", QUERIES[task], official_input(task, QUERIES[task]), None)
    assert official_prompt(task, items, asked) == expected
    assert official_prompt(task, [], asked) == asked.input


@pytest.mark.parametrize("task", QUERIES)
def test_official_files_give_users_with_floors_and_scores(task: str, tmp_path: Path) -> None:
    write_dev(tmp_path, task)
    users = load_users(*find_split(tmp_path, task, "dev"), task)
    assert len(users) == 30 and users[0].queries[0].text == f"{QUERIES[task]} 1"
    assert users[0].history[0].label == "Title 10"
    assert "Title 10" in history_line(task, users[0].history[0])
    golds = [str(q.gold) for user in users for q in user.queries]
    assert all(floors_for(task).values())
    for name, floor in floors_for(task).items():
        found = evaluate(task, golds, floor(users, users))
        assert set(found) == {*get_task(task).metrics, "valid_rate"}, name
        assert found["valid_rate"] == 1 and all(higher_is_better(metric) for metric in found)
    right = evaluate(task, golds, golds)
    assert right[get_task(task).metrics[0]] == 1


@pytest.mark.parametrize("task", QUERIES)
def test_a_laptop_run_sees_the_files_of_a_folder(task: str, tmp_path: Path) -> None:
    write_dev(tmp_path, task)
    laptop = PROFILES["laptop"]
    found, missing = available_tasks(laptop, str(tmp_path))
    assert found == [task] and len(missing) == len(laptop.tasks)
    data = load_task_data(laptop, task, str(tmp_path))
    assert data.train and data.test and not {u.id for u in data.train} & {u.id for u in data.test}
    with pytest.raises(UserError, match=f"Profile demo has none of the tasks {task}"):
        available_tasks(PROFILES["demo"], "", "dev", [task])


def test_free_text_is_no_label_to_refuse_and_a_choice_of_two_is_one(tmp_path: Path) -> None:
    write_dev(tmp_path, "LaMP_4")
    outputs = tmp_path / "LaMP_4" / "dev" / "dev_outputs.json"
    content = json.loads(outputs.read_text(encoding="utf-8"))
    content["golds"][0]["output"] = "Anything at all"
    outputs.write_text(json.dumps(content), encoding="utf-8")
    assert load_users(*find_split(tmp_path, "LaMP_4", "dev"), "LaMP_4")
    write_dev(tmp_path, "LaMP_1")
    outputs = tmp_path / "LaMP_1" / "dev" / "dev_outputs.json"
    outputs.write_text(outputs.read_text(encoding="utf-8").replace("[2]", "[3]", 1), "utf-8")
    with pytest.raises(UserError, match=r"is '\[3\]', which is no label of LaMP_1"):
        load_users(*find_split(tmp_path, "LaMP_1", "dev"), "LaMP_1")
    assert evaluate("LaMP_1", ["[1]", "[2]"], ["[1]", " [1] "]) == pytest.approx(
        {"accuracy": 0.5, "f1": 1 / 3, "valid_rate": 1.0}
    )


def test_a_table_of_titles_is_imported_and_one_of_citations_is_refused(tmp_path: Path) -> None:
    rows = [row | {"label": f"A title, {i}"} for i, row in enumerate(map(dict, clean()))]
    table = write_table(tmp_path / "t.csv", rows)
    write_import(read_table(table, "LaMP_5"), tmp_path / "to")
    [ann, _] = load_users(*find_split(tmp_path / "to", "LaMP_5", "dev"), "LaMP_5")
    assert ann.history[0].label == "A title, 0" and ann.queries[0].gold == "A title, 4"
    assert ann.queries[0].input.startswith("Generate a title for the following abstract")
    with pytest.raises(UserError, match="LaMP_1 asks about more than a table"):
        read_table(table, "LaMP_1")


# --- a task of one's own ---------------------------------------------------------------------


@pytest.fixture
def toy() -> Iterator[Task]:
    yield register(SHOUT)
    task_module._registry.pop("Shout")


def test_a_name_that_no_file_could_have_is_refused_and_a_cell_may_run_twice(toy: Task) -> None:
    with pytest.raises(UserError, match="is no name of a task"):
        register(replace(SHOUT, name="Shout loud"))
    again = replace(SHOUT, title="Anew")
    assert register(again) is get_task("Shout") and toy.wording_digest == again.wording_digest
    assert replace(SHOUT, instruction="Cry:").wording_digest != SHOUT.wording_digest
