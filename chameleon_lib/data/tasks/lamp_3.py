"""LaMP-3: how many stars would this user give with a review?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chameleon_lib.core.task import Metric, Official, Task, Wording, agents, register
from chameleon_lib.data.floors import (
    constant,
    global_majority,
    user_majority,
    user_mean,
    user_mean_rounded,
)

SCORES: tuple[str, ...] = ("1", "2", "3", "4", "5")

# The evaluator casts scores to single precision, where anything larger is infinite.
_LARGEST_SCORE = 3.4028234663852886e38


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


def score_value(pred: str, gold: float) -> float:
    """Read a predicted score; an unparsable one goes to the end of the scale far from `gold`.

    No clamping and no rounding. "nan" and "inf" count as unparsable (the official run aborts).
    """
    value = parse_score(pred)
    if value is not None:
        return value
    return 1.0 if abs(1 - gold) > abs(5 - gold) else 5.0


def _scores(golds: Sequence[str], preds: Sequence[str]) -> dict[str, np.ndarray]:
    values = [float(gold) for gold in golds]
    guesses = [score_value(pred, value) for pred, value in zip(preds, values, strict=True)]
    error = np.array(guesses) - np.array(values)  # (n,) in score units
    return {"abs_error": np.abs(error), "squared_error": error**2}


def _valid(answer: str) -> bool:
    value = parse_score(answer)
    return value is not None and 1 <= value <= 5


def _read(text: str) -> str | None:
    value = parse_score(text)
    return str(int(value)) if value in (1, 2, 3, 4, 5) and value is not None else None


LAMP_3 = register(
    Task(
        name="LaMP_3",
        title="LaMP-3 Personalised Product Rating",
        labels=SCORES,
        label_key="score",
        # Lower-case "just" is how the official file spells it.
        instruction=(
            "What is the score of the following review on a scale of 1 to 5? "
            "just answer with 1, 2, 3, 4, or 5 without further explanation. review:"
        ),
        query_marker="review:",
        official_item='{label} is the score for "{text}" ',
        wording=Wording(
            opening=(
                "Suppose you are a user with the following user profile history of product rating "
                "based on the user's review of the product:"
            ),
            line='{label} is the rating score for product: "{text}".',
            query="Now, given a new review by the user:",
            question=(
                "Question: What is the rating score of the following review on a scale of 1 to 5? "
                "Just answer with 1, 2, 3, 4, or 5 without further explanation."
            ),
            # The neutral paragraph has no closing reminder, as printed.
            agents=agents(
                "You try to predict the rating of the product based on the user history ratings.",
                "Just answer with 1, 2, 3, 4, or 5 without further explanation.",
            ),
        ),
        noun="review",
        thing="product",
        measures=(
            Metric("mae", "abs_error", higher=False),
            Metric("rmse", "squared_error", "rmse", higher=False),
        ),
        score=_scores,
        valid=_valid,
        floors={
            "constant_5": constant("5"),
            "global_majority": global_majority,
            "user_mean": user_mean,
            "user_mean_rounded": user_mean_rounded,
            "user_mode": user_majority,
        },
        max_new_tokens=8,
        official=Official(
            first_digit=2,
            records={
                ("user", "train"): 20000, ("user", "dev"): 2500, ("user", "test"): -2500,
                ("time", "train"): -20000, ("time", "dev"): -2500, ("time", "test"): -2500,
            },
            bytes={"dev_questions.json": 401_034_862, "dev_outputs.json": 81_416},
        ),
        read_label=_read,
        label_refusal="score not 1 to 5",
    )
)  # fmt: skip
