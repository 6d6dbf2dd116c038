from __future__ import annotations

import pytest

from chameleon_lib.core.task import User
from chameleon_lib.data.floors import constant, floors_for
from chameleon_lib.data.lamp import find_split
from chameleon_lib.data.metrics import evaluate
from chameleon_lib.data.users import load_users
from chameleon_lib.errors import UserError
from tests.data.helpers import SHARED_DATA, needs_shared_data, user


def answers(task: str, name: str, users: list[User], train: list[User] | None = None) -> list[str]:
    return floors_for(task)[name](users, train or [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant_5", ["5", "5"]),
        ("user_mode", ["4", "2"]),
        ("user_mean", ["3.3333333333333335", "2.5"]),
        ("user_mean_rounded", ["3", "3"]),
        ("global_majority", ["1", "1"]),
    ],
)
def test_rating_baselines_on_two_small_users(name: str, expected: list[str]) -> None:
    users = [user("1", labels=("4", "2", "4")), user("2", labels=("2", "3"))]
    train = [user("3", labels=("1", "1", "5"))]
    assert answers("LaMP_3", name, users, train) == expected


def test_ties_go_to_the_label_met_first() -> None:
    tied = [user("1", "LaMP_2", ("action", "comedy", "comedy", "action"))]
    assert answers("LaMP_2", "user_majority", tied) == ["action"]


def test_no_baseline_reads_the_gold() -> None:
    for task, labels in (("LaMP_2", ("comedy",)), ("LaMP_3", ("4",)), ("LaMP_7", (None,))):
        for baseline in floors_for(task).values():
            seen, hidden = user("1", task, labels, "5"), user("1", task, labels, None)
            assert baseline([seen], [seen]) == baseline([hidden], [hidden])


def test_a_majority_without_labels_raises() -> None:
    with pytest.raises(UserError, match="set of train users"):
        answers("LaMP_3", "global_majority", [user("1")], [])
    with pytest.raises(UserError, match="User '1'"):
        answers("LaMP_3", "user_mean", [user("1", labels=(None,))])


def real(folder: str, task: str, split: str) -> tuple[list[User], list[str]]:
    questions, outputs = find_split(SHARED_DATA / folder, task, split)
    users = load_users(questions, outputs, task)
    return users, [str(query.gold) for u in users for query in u.queries]


REGRESSION = [
    ("lamp", "LaMP_7", "dev", "copy_input", 0.46264, 0.40620),
    ("lamp", "LaMP_7", "dev", "copy_input_field", 0.36087, 0.30993),
    ("lamp", "LaMP_7", "dev", "last_item", 0.09709, 0.08250),
    ("lamp", "LaMP_3", "dev", "constant_5", 0.6500, 1.1475),
    ("lamp", "LaMP_3", "dev", "user_mean", 0.4982, 0.8376),
    ("lamp", "LaMP_3", "dev", "user_mean_rounded", 0.4167, 0.8466),
    ("lamp", "LaMP_3", "dev", "user_mode", 0.4833, 1.0567),
    ("lamp_like", "LaMP_2", "train", "user_majority", 0.4510, 0.4222),
    ("lamp_like", "LaMP_2", "dev", "user_majority", 0.4444, 0.3611),
    ("lamp_like", "LaMP_2", "test", "user_majority", 0.4412, 0.3405),
    ("lamp_like", "LaMP_3", "dev", "constant_5", 0.5500, 0.9220),
    ("lamp_like", "LaMP_3", "dev", "user_mean", 0.5289, 0.7179),
    ("lamp_like", "LaMP_3", "dev", "user_mode", 0.4500, 0.7746),
    ("lamp_like", "LaMP_3", "test", "constant_5", 0.5636, 1.0180),
    ("lamp_like", "LaMP_3", "test", "user_mean", 0.6832, 0.9418),
    ("lamp_like", "LaMP_3", "test", "user_mode", 0.6545, 1.0617),
]


@needs_shared_data
@pytest.mark.parametrize(("folder", "task", "split", "name", "first", "second"), REGRESSION)
def test_baselines_on_real_files_keep_their_known_values(
    folder: str, task: str, split: str, name: str, first: float, second: float
) -> None:
    users, golds = real(folder, task, split)
    result = evaluate(task, golds, answers(task, name, users))
    tolerance = 6e-6 if task == "LaMP_7" else 6e-5
    assert list(result.values())[:2] == pytest.approx([first, second], abs=tolerance)


@needs_shared_data
@pytest.mark.parametrize(
    ("folder", "task", "answer", "first", "second"),
    [
        ("lamp", "LaMP_3", "4", 0.7167, 1.0083),
        ("lamp_like", "LaMP_2", "comedy", 0.1389, 0.0163),
    ],
)
def test_constants_on_real_files_keep_their_known_values(
    folder: str, task: str, answer: str, first: float, second: float
) -> None:
    users, golds = real(folder, task, "dev")
    result = evaluate(task, golds, constant(answer)(users, []))
    assert list(result.values())[:2] == pytest.approx([first, second], abs=6e-5)
