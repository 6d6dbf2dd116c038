"""The form of free-text answers: what instruction-tuned models write around or instead of one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chameleon_lib.core.answers import (
    FORM,
    form_scores,
    is_echo,
    is_empty,
    is_refusal,
    preamble,
    without_preamble,
)
from tests.data.helpers import SHARED_DATA, needs_shared_data


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry for the confusion, but as an AI language model I have no preferences.",
        "I’m a helpful AI designed to assist people.",
        "I apologize for any misunderstanding.",
        "I'm sorry, but I can't assist with that.",
        '"I cannot paraphrase this text."',
        "I'm unable to provide a paraphrase of this tweet.",
        "I'd be happy to. Could you please provide the tweet you want?",
        "Hello! How can I help you today?",
    ],
)
def test_what_declines_or_asks_back_is_a_refusal(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry I missed it, the bus was late again",
        "Sorry, can't make it tonight!",
        "I am an early bird and my cat is not",
        "Finally. " * 40 + "As an AI language model I end here.",
        "",
    ],
)
def test_what_people_write_is_none(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("before", "answer"),
    [
        ("Sure! Here's a paraphrased version:\n\n", '"Late again."'),
        ("**Paraphrased tweet:** ", "late again"),
        ("Certainly!\n\n", "Late again"),
        ("The rewritten post is: ", '"Late again."'),
        ("Here’s a tweet in your style: ", "late again"),
        ("Answer: Tweet: ", "late again"),
        ("", "Here's my cat: late again"),
        ("", "Sure! Late again"),
        ("", "late: again"),
        ("", '"late" he said, "again"'),
    ],
)
def test_a_preamble_is_what_the_answer_stands_behind(before: str, answer: str) -> None:
    assert preamble(before + answer) == before
    whole = answer[1:-1] if answer == '"Late again."' else answer  # quotes around all of it go
    assert without_preamble(before + answer) == whole


def test_an_echo_repeats_the_source_up_to_case_and_marks() -> None:
    assert is_echo("Tweet: The bus was LATE.", "the bus was late")
    assert not is_echo("the bus is late", "the bus was late") and not is_echo("", "")


def test_scores_of_form_are_one_number_per_answer() -> None:
    scores = form_scores(["", "I can't assist with that.", "Answer: it's late", "ok"])
    assert tuple(scores) == FORM
    assert scores["empty"].tolist() == [1, 0, 0, 0]
    assert scores["refusal"].tolist() == [0, 1, 0, 0]
    assert scores["preamble"].tolist() == [0, 0, 1, 0]
    assert scores["words"].tolist() == [0, 6, 4, 1]
    assert is_empty("…") and all(values.dtype == np.float64 for values in scores.values())


@needs_shared_data
def test_almost_no_real_post_trips_the_rules() -> None:
    questions = json.loads((SHARED_DATA / "lamp/LaMP_7/dev_questions.json").read_text("utf-8"))
    posts = [item["text"] for record in questions for item in record["profile"]]
    assert len(posts) == 26464
    wrong = sum(is_refusal(post) or bool(preamble(post)) for post in posts)
    assert wrong / len(posts) < 0.0005
