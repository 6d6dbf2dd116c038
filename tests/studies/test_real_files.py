"""The data part of notebooks 01, 03 and 05 on real files, which are never part of the checkout."""

from __future__ import annotations

import pytest

from chameleon_lib.data.floors import floors_for
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.data.users import load_users
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.studies import s03_group_size as group_size
from chameleon_lib.studies import s05_selections as conditions
from chameleon_lib.studies.data import available_tasks, load_task_data
from tests.data.helpers import SHARED_DATA, needs_shared_data

pytestmark = needs_shared_data
PROFILE = get_profile("demo-data")
LAMP, LIKE = str(SHARED_DATA / "lamp"), str(SHARED_DATA / "lamp_like")


@pytest.mark.parametrize(
    ("folder", "notebook", "tasks"),
    [
        (LAMP, (), ["LaMP_3", "LaMP_7"]),
        (LAMP, group_size.TASKS, ["LaMP_3"]),
        (LAMP, conditions.FULL.tasks, ["LaMP_3"]),
        (LIKE, (), ["LaMP_2", "LaMP_3"]),
        (LIKE, group_size.TASKS, ["LaMP_2", "LaMP_3"]),
    ],
)
def test_every_notebook_finds_its_tasks_and_names_what_is_missing(
    folder: str, notebook: tuple[str, ...], tasks: list[str]
) -> None:
    found, notes = available_tasks(PROFILE, folder, tasks=notebook)
    assert found == tasks
    wanted = [task for task in PROFILE.tasks if not notebook or task in notebook]
    assert len(notes) == len(wanted) - len(found) and all(note.endswith(".") for note in notes)
    for task in found:
        data = load_task_data(PROFILE, task, folder, 20)
        assert data.train and data.test and not {u.id for u in data.train} & {
            u.id for u in data.test
        }  # fmt: skip
        assert max(len(data.train), len(data.dev), len(data.test)) <= 20
        assert all(query.gold for user in data.test for query in user.queries)


def test_copying_all_of_lamp_7_scores_what_the_evaluator_gives_it() -> None:
    data = load_task_data(PROFILE, "LaMP_7", LAMP, 20)
    assert len(data.everyone) == 1500
    answers = floors_for("LaMP_7")["copy_input"](data.everyone, data.train)
    golds = [str(query.gold) for user in data.everyone for query in user.queries]
    scores = per_sample_scores("LaMP_7", golds, answers)
    assert scores["rouge1"].mean() == pytest.approx(0.4626, abs=1e-3)
    assert scores["rougeL"].mean() == pytest.approx(0.4062, abs=1e-3)


def test_the_old_news_task_is_refused_in_one_sentence() -> None:
    [file] = (SHARED_DATA / "lamp" / "LaMP_2_old_news").glob("*_questions.json")
    with pytest.raises(UserError, match="belongs to the old news task") as caught:
        load_users(file, None, "LaMP_2")
    assert "\n" not in str(caught.value) and file.name in str(caught.value)
