from __future__ import annotations

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.lamp import TAGS, TASKS, get_task, is_valid_answer, official_input, parse_score


def test_the_fifteen_tags_come_in_official_order() -> None:
    assert ", ".join(TAGS) == (
        "sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, classic, "
        "psychology, fantasy, romance, thought-provoking, social commentary, violence, true story"
    )


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "LaMP_2",
            "Which tag does this movie relate to among the following tags? Just answer with the "
            "tag name without further explanation. tags: [sci-fi, based on a book, comedy, "
            "action, twist ending, dystopia, dark comedy, classic, psychology, fantasy, romance, "
            "thought-provoking, social commentary, violence, true story] description: THE TEXT",
        ),
        (
            "LaMP_3",
            "What is the score of the following review on a scale of 1 to 5? just answer with 1, "
            "2, 3, 4, or 5 without further explanation. review: THE TEXT",
        ),
        (
            "LaMP_7",
            "Paraphrase the following tweet without any explanation before or after it: THE TEXT",
        ),
    ],
)
def test_the_official_input_is_the_exact_string_of_the_files(task: str, expected: str) -> None:
    assert official_input(task, "THE TEXT") == expected


def test_both_spellings_of_a_task_name_are_one_task() -> None:
    assert get_task("LaMP-2") is get_task("LaMP_2") is TASKS["LaMP_2"]


def test_an_unknown_task_raises_and_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="LaMP_4.*LaMP_2, LaMP_3, LaMP_7"):
        get_task("LaMP_4")


@pytest.mark.parametrize(
    ("task", "answer", "valid"),
    [
        ("LaMP_2", " comedy\n", True),
        ("LaMP_2", "Comedy", False),
        ("LaMP_2", "action.", False),
        ("LaMP_3", "4.5", True),
        ("LaMP_3", "6", False),
        ("LaMP_3", "4 stars", False),
        ("LaMP_3", "nan", False),
        ("LaMP_3", "inf", False),
        ("LaMP_7", "ok", True),
        ("LaMP_7", "\U0001f600 !", False),
        ("LaMP_7", "", False),
    ],
)
def test_an_answer_is_valid_only_in_the_form_the_task_asks_for(
    task: str, answer: str, valid: bool
) -> None:
    assert is_valid_answer(task, answer) is valid


def test_scores_parse_by_python_float_rules_but_stay_finite() -> None:
    assert [parse_score(text) for text in ("1_0", " 5\n", "1e1", "٥")] == [10, 5, 10, 5]
    assert [parse_score(text) for text in ("", "nan", "-inf", "five")] == [None] * 4
