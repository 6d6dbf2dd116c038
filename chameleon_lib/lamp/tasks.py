"""The three LaMP tasks: names, labels, official instructions and what counts as an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chameleon_lib.errors import UserError

# Official order: the index is the class id of macro-F1.
TAGS: tuple[str, ...] = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)
SCORES: tuple[str, ...] = ("1", "2", "3", "4", "5")

# The evaluator casts scores to single precision, where anything larger is infinite.
_LARGEST_SCORE = 3.4028234663852886e38

_TOKEN = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Task:
    """One LaMP task.

    Attributes:
        name: Name with an underscore, as in the files and the evaluator.
        title: Name for tables and captions.
        labels: Closed label list in official order, empty for free text.
        text_key: Key of the text in a profile item.
        label_key: Key of the label in a profile item, None for LaMP-7.
        instruction: The official ``input`` up to and including the query marker.
        query_marker: The query is the stripped text after its first occurrence.
        metrics: Official metrics, the primary one first.
        max_new_tokens: Default length limit of an answer, in new tokens.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    text_key: str
    label_key: str | None
    instruction: str
    query_marker: str
    metrics: tuple[str, ...]
    max_new_tokens: int


TASKS: dict[str, Task] = {
    "LaMP_2": Task(
        name="LaMP_2",
        title="LaMP-2 Personalised Movie Tagging",
        labels=TAGS,
        text_key="description",
        label_key="tag",
        instruction=(
            "Which tag does this movie relate to among the following tags? "
            "Just answer with the tag name without further explanation. "
            f"tags: [{', '.join(TAGS)}] description:"
        ),
        query_marker="description:",
        metrics=("accuracy", "f1"),
        max_new_tokens=16,
    ),
    "LaMP_3": Task(
        name="LaMP_3",
        title="LaMP-3 Personalised Product Rating",
        labels=SCORES,
        text_key="text",
        label_key="score",
        # Lower-case "just" is how the official file spells it.
        instruction=(
            "What is the score of the following review on a scale of 1 to 5? "
            "just answer with 1, 2, 3, 4, or 5 without further explanation. review:"
        ),
        query_marker="review:",
        metrics=("mae", "rmse"),
        max_new_tokens=8,
    ),
    "LaMP_7": Task(
        name="LaMP_7",
        title="LaMP-7 Personalised Tweet Paraphrasing",
        labels=(),
        text_key="text",
        label_key=None,
        instruction=("Paraphrase the following tweet without any explanation before or after it:"),
        query_marker=":",
        metrics=("rouge1", "rougeL"),
        max_new_tokens=128,
    ),
}


def get_task(name: str | Task) -> Task:
    """Return the task called `name`; ``LaMP-2`` and ``LaMP_2`` are the same task.

    Raises:
        UserError: `name` is none of the three tasks.
    """
    if isinstance(name, Task):
        return name
    task = TASKS.get(name.replace("-", "_"))
    if task is None:
        raise UserError(f"Unknown task {name!r}: use one of {', '.join(TASKS)}.")
    return task


def official_input(task: str | Task, text: str) -> str:
    """Return the official ``input`` field that asks about `text`."""
    return f"{get_task(task).instruction} {text}"


def tokens(text: str) -> list[str]:
    """Return the ROUGE tokens of `text`: maximal runs of [a-z0-9] in its lower-case form."""
    return _TOKEN.findall(text.lower())


def parse_score(answer: str) -> float | None:
    """Return the number written in `answer`, None where it is not a finite float.

    Python's float rules apply ("1e1" and "1_0" parse, "4 stars" does not), as in the official
    evaluator. "nan" and "inf" abort the official run, and so does what overflows single precision
    ("1e39"); here they are unparsable.
    """
    try:
        value = float(answer.strip())
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST_SCORE else None  # false for nan, too


def is_valid_answer(task: str | Task, answer: str) -> bool:
    """Say whether `answer` has the form the task asks for.

    LaMP-2: exact list membership; LaMP-3: a number in 1..5; LaMP-7: at least one ROUGE token.
    """
    chosen = get_task(task)
    if chosen.name == "LaMP_3":
        value = parse_score(answer)
        return value is not None and 1 <= value <= 5
    if chosen.labels:
        return answer.strip() in chosen.labels
    return bool(tokens(answer))
