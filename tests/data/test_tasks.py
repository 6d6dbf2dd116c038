"""Tasks and their prompts; the literals are the paper's A.3 with its placeholders filled."""

from __future__ import annotations

import os.path

import pytest

from chameleon_lib.core.task import (
    HistoryItem,
    Query,
    answer_prompt,
    get_task,
    history_block,
    history_line,
    insight_prompt,
    official_input,
    official_prompt,
    query_line,
    registered,
    unseen_prompt,
)
from chameleon_lib.errors import UserError


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
    assert get_task("LaMP-2") is get_task("LaMP_2") is registered()["LaMP_2"]


def test_an_unknown_task_raises_and_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="LaMP_9.*LaMP_1, LaMP_2, LaMP_3, LaMP_4, LaMP_5, LaMP_7"):
        get_task("LaMP_9")


TASK_NAMES = ("LaMP_2", "LaMP_3", "LaMP_7")
ITEMS = {
    "LaMP_2": [
        HistoryItem("a", "A cat sails.", "fantasy"),
        HistoryItem("b", "Two spies.", "action"),
    ],
    "LaMP_3": [HistoryItem("a", "Broke at once.", "1"), HistoryItem("b", "Good pan.", "4")],
    "LaMP_7": [HistoryItem("a", "so tired lol", None), HistoryItem("b", "Monday again", None)],
}
HISTORY = {
    "LaMP_2": '1. The tag for movie: "A cat sails." is "fantasy".\n'
    '2. The tag for movie: "Two spies." is "action".',
    "LaMP_3": '1. 1 is the rating score for product: "Broke at once.".\n'
    '2. 4 is the rating score for product: "Good pan.".',
    "LaMP_7": "1. so tired lol\n2. Monday again",
}

A3_LAMP_2_P = """Suppose you are a user with the following user profile history of movie tagging: [HISTORY]
Now, given a new description: [QUERY]
Question: Which tag does this movie relate to among the following tags? Just answer with only ONE tag name without further explanation. tags: [sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, classic, psychology, fantasy, romance, thought-provoking, social commentary, violence, true story]
You are a helpfully personalized assistant. You try to predict the movie tagging that the user preferred based on their history. The user prefers [INSIGHT]. Answer only with one tag name (sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, classic, psychology, fantasy, romance, thought-provoking, social commentary, violence, true story).
Your answer:"""  # noqa: E501
A3_LAMP_2_N = """Suppose you are a user with the following user profile history of movie tagging: [HISTORY]
Now, given a new description: [QUERY]
Question: Which tag does this movie relate to among the following tags? Just answer with only ONE tag name without further explanation. tags: [sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, classic, psychology, fantasy, romance, thought-provoking, social commentary, violence, true story]
You are a generic and impersonal assistant. You do not consider the user's preferences or profile history when responding. Your answer shoulds [INSIGHT]. Answer only with one tag name (sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, classic, psychology, fantasy, romance, thought-provoking, social commentary, violence, true story).
Your answer:"""  # noqa: E501
A3_LAMP_3_P = """Suppose you are a user with the following user profile history of product rating based on the user's review of the product: [HISTORY]
Now, given a new review by the user: [QUERY]
Question: What is the rating score of the following review on a scale of 1 to 5? Just answer with 1, 2, 3, 4, or 5 without further explanation.
You are a helpfully personalized assistant. You try to predict the rating of the product based on the user history ratings. The user prefers [INSIGHT]. Just answer with 1, 2, 3, 4, or 5 without further explanation.
Your answer:"""  # noqa: E501
A3_LAMP_3_N = """Suppose you are a user with the following user profile history of product rating based on the user's review of the product: [HISTORY]
Now, given a new review by the user: [QUERY]
Question: What is the rating score of the following review on a scale of 1 to 5? Just answer with 1, 2, 3, 4, or 5 without further explanation.
You are a generic and impersonal assistant. You do not consider the user's preferences or profile history when responding. Your answer should [INSIGHT].
Your answer:"""  # noqa: E501
A3_LAMP_7_P = """Suppose you are a twitter user with the following user profile history that shows their preferred way of speaking: [HISTORY]
Now, given a new twitter post: [QUERY]
Question: Paraphrase the tweet in the style the user likes without any explanation before or after it.
You are a helpfully personalized assistant. You try to paraphrase the tweet in the style the user likes based on the history. The user prefers [INSIGHT].
Your answer:"""  # noqa: E501
A3_LAMP_7_N = """Suppose you are a twitter user with the following user profile history that shows their preferred way of speaking: [HISTORY]
Now, given a new twitter post: [QUERY]
Question: Paraphrase the tweet in the style the user likes without any explanation before or after it.
You are a generic and impersonal assistant. You do not consider the user's preferences or profile history when responding. Your answer should [INSIGHT].
Your answer:"""  # noqa: E501

A3 = {
    ("LaMP_2", "P"): A3_LAMP_2_P,
    ("LaMP_2", "N"): A3_LAMP_2_N,
    ("LaMP_3", "P"): A3_LAMP_3_P,
    ("LaMP_3", "N"): A3_LAMP_3_N,
    ("LaMP_7", "P"): A3_LAMP_7_P,
    ("LaMP_7", "N"): A3_LAMP_7_N,
}


def filled(task: str, role: str, insight: str = "odd things") -> str:
    text = A3[task, role].replace("[HISTORY]", HISTORY[task])
    return text.replace("[QUERY]", "THE QUERY").replace("[INSIGHT]", insight)


@pytest.mark.parametrize(("task", "role"), list(A3))
def test_the_answer_prompt_is_the_literal_template_of_the_paper(task: str, role: str) -> None:
    prompt = answer_prompt(task, ITEMS[task], "THE QUERY", role=role, insight="odd things")  # type: ignore[arg-type]
    assert prompt == filled(task, role)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_p_and_n_prompts_share_everything_up_to_the_agent_paragraph(task: str) -> None:
    p = answer_prompt(task, ITEMS[task], "THE QUERY", role="P", insight="odd things")
    n = answer_prompt(task, ITEMS[task], "THE QUERY", role="N", insight="odd things")
    shared = os.path.commonprefix([p, n])
    assert shared.endswith("\nYou are a ")
    assert shared.count("\n") == p.count("\n") - 1 == n.count("\n") - 1
    assert p.splitlines()[-1] == n.splitlines()[-1] == "Your answer:"


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_instruct_baseline_drops_only_the_sentence_that_holds_the_insight(task: str) -> None:
    expected = filled(task, "P").replace(" The user prefers odd things.", "")
    assert "prefers" not in expected
    for role in ("P", None):
        assert answer_prompt(task, ITEMS[task], "THE QUERY", role=role, insight=None) == expected


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_second_baseline_drops_the_whole_agent_paragraph(task: str) -> None:
    lines = filled(task, "P").splitlines()
    agent = [line for line in lines if line.startswith("You are a helpfully")]
    assert len(agent) == 1
    expected = "\n".join(line for line in lines if line not in agent)
    got = answer_prompt(
        task, ITEMS[task], "THE QUERY", role="P", insight=None, baseline="drop_agent_block"
    )
    assert got == expected


def test_the_misprint_stays_unless_it_is_to_be_fixed() -> None:
    def build(fix: bool) -> str:
        return answer_prompt(
            "LaMP_2", ITEMS["LaMP_2"], "THE QUERY", role="N", insight="odd", fix_typos=fix
        )

    assert "Your answer shoulds odd." in build(False)
    assert build(True) == build(False).replace("shoulds", "should")


def test_placeholders_inside_a_text_are_not_substituted() -> None:
    items = [HistoryItem("a", "[QUERY] [INSIGHT]", None)]
    got = answer_prompt("LaMP_7", items, "[INSIGHT] [HISTORY]", role="P", insight="[QUERY]")
    assert "1. [QUERY] [INSIGHT]\n" in got
    assert "post: [INSIGHT] [HISTORY]\n" in got
    assert "prefers [QUERY]." in got


@pytest.mark.parametrize("task", TASK_NAMES)
def test_insight_prompts_are_the_first_template_line_and_a_query(task: str) -> None:
    first = filled(task, "P").split("\nNow, given")[0]
    assert insight_prompt(task, ITEMS[task], "P") == (
        f"{first}\nConclude the user's characteristics and preference."
    )
    assert insight_prompt(task, ITEMS[task], "N") == (
        f"{first}\nDo not consider the user's preferences or profile history when responding. "
        "Conclude the style of your answer."
    )


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_blocks_of_a_pair_text_are_the_first_lines_of_the_prompt(task: str) -> None:
    both = f"{history_block(task, ITEMS[task])}\n{query_line(task, 'THE QUERY')}\n"
    assert filled(task, "P").startswith(both)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_unseen_prompt_is_instruct_without_its_history(task: str) -> None:
    instruct = answer_prompt(task, ITEMS[task], "THE QUERY", role="P", insight=None)
    got = unseen_prompt(task, "THE QUERY")
    assert got == instruct.removeprefix(f"{history_block(task, ITEMS[task])}\n")
    assert got.startswith("Now, given a new ")


def test_a_prompt_with_history_refuses_an_empty_history() -> None:
    with pytest.raises(UserError, match="unseen_prompt"):
        answer_prompt("LaMP_7", [], "q", role="P", insight=None)
    with pytest.raises(UserError, match="at least one item"):
        insight_prompt("LaMP_7", [], "P")


@pytest.mark.parametrize(
    ("role", "insight", "message"),
    [("N", None, "needs an insight"), (None, "x", "needs a role"), ("P", " \n", "is empty")],
)
def test_role_and_insight_must_fit(role: str, insight: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        answer_prompt("LaMP_7", ITEMS["LaMP_7"], "q", role=role, insight=insight)  # type: ignore[arg-type]


def test_a_history_item_without_its_label_raises() -> None:
    with pytest.raises(UserError, match="'a' has no tag"):
        history_line("LaMP_2", HistoryItem("a", "text", None))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "LaMP_2",
            'the tag for the movie: "A cat sails." is "fantasy" , and the tag for the movie: '
            '"Two spies." is "action" . INPUT',
        ),
        (
            "LaMP_3",
            '1 is the score for "Broke at once." , and 4 is the score for "Good pan." . INPUT',
        ),
        (
            "LaMP_7",
            '"so tired lol" , and "Monday again"  are written by a person. '
            "Following the given patterns INPUT",
        ),
    ],
)
def test_the_official_prompt_keeps_the_official_blanks(task: str, expected: str) -> None:
    query = Query("1", "q", "INPUT", None)
    assert official_prompt(task, ITEMS[task], query) == expected
    assert official_prompt(task, [], query) == "INPUT"


def test_an_answer_is_valid_only_in_the_form_the_task_asks_for() -> None:
    good = {"LaMP_2": [" comedy\n"], "LaMP_3": ["4.5", "1e0"], "LaMP_7": ["ok"]}
    bad = {
        "LaMP_2": ["Comedy", "action."],
        "LaMP_3": ["6", "4 stars", "nan", "inf", ""],
        "LaMP_7": ["\U0001f600 !", ""],
    }
    for task in TASK_NAMES:
        assert all(get_task(task).is_valid(answer) for answer in good[task])
        assert not any(get_task(task).is_valid(answer) for answer in bad[task])
