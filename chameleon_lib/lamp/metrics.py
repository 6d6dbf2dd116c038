"""LaMP's metrics, re-implemented from the meaning of the official evaluator.

The official ROUGE figure is the median of unseeded bootstrap means; here it is the plain mean,
which agrees with it within 1e-3.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.tasks import TAGS, Task, get_task, is_valid_answer, parse_score

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_HIGHER_IS_BETTER: dict[str, bool] = {
    "accuracy": True,
    "f1": True,
    "rouge1": True,
    "rougeL": True,
    "valid_rate": True,
    "mae": False,
    "rmse": False,
    "abs_error": False,
    "squared_error": False,
}


def higher_is_better(metric: str) -> bool:
    """Say whether a larger value of `metric` is the better one.

    Raises:
        UserError: `metric` is unknown; guessing a direction would turn verdicts around.
    """
    if metric not in _HIGHER_IS_BETTER:
        raise UserError(f"Unknown metric {metric!r}: use one of {', '.join(_HIGHER_IS_BETTER)}.")
    return _HIGHER_IS_BETTER[metric]


def class_ids(texts: Sequence[str]) -> np.ndarray:
    """Map LaMP-2 texts to class ids (n,): index in the 15 tags after stripping, else -1."""
    index = {tag: i for i, tag in enumerate(TAGS)}
    return np.array([index.get(text.strip(), -1) for text in texts], dtype=np.int64)


def macro_f1(gold_ids: np.ndarray, pred_ids: np.ndarray) -> float:
    """Return LaMP-2's macro-F1 of two arrays of class ids (n,).

    The average always divides by 15: a class absent from both arrays counts 0. Class -1 has no F1
    of its own but is a miss for the gold class.
    """
    n = len(TAGS)
    golds = np.bincount(gold_ids[gold_ids >= 0], minlength=n)
    preds = np.bincount(pred_ids[pred_ids >= 0], minlength=n)
    hits = np.bincount(gold_ids[(gold_ids == pred_ids) & (gold_ids >= 0)], minlength=n)
    total = golds + preds  # (15,) = 2 TP + FP + FN
    return float(np.mean(np.where(total > 0, 2 * hits / np.maximum(total, 1), 0.0)))


def score_value(pred: str, gold: float) -> float:
    """Read a predicted score; an unparsable one goes to the end of the scale far from `gold`.

    No clamping and no rounding. "nan" and "inf" count as unparsable (the official run aborts).
    """
    value = parse_score(pred)
    if value is not None:
        return value
    return 1.0 if abs(1 - gold) > abs(5 - gold) else 5.0


@functools.cache
def _rouge_scorer() -> RougeScorer:
    # Imported on first use: the package loads nltk, more than a second that only LaMP-7 needs.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


def _rouge(golds: Sequence[str], preds: Sequence[str]) -> dict[str, np.ndarray]:
    scorer = _rouge_scorer()
    pairs = zip(golds, preds, strict=True)
    rows = [scorer.score(gold.strip(), pred.strip()) for gold, pred in pairs]
    names = ("rouge1", "rougeL")
    return {name: np.array([row[name].fmeasure for row in rows]) for name in names}


def check_golds(task: str | Task, golds: Sequence[str]) -> None:
    """Assert that every gold is on the task's label list; LaMP-7 has none.

    With a wrong label list, gold and prediction both map to -1 and count as correct.

    Raises:
        UserError: A gold is off the list.
    """
    chosen = get_task(task)
    allowed = set(chosen.labels)
    for position, gold in enumerate(golds):
        if allowed and gold.strip() not in allowed:
            raise UserError(
                f"Gold number {position} is {gold!r}, which is not a label of {chosen.name}: "
                "check that the outputs file belongs to this task."
            )


def _check_texts(golds: Sequence[str], preds: Sequence[str]) -> None:
    if len(golds) != len(preds):
        raise UserError(f"There are {len(golds)} golds but {len(preds)} predictions.")
    if not golds:
        raise UserError("There is nothing to score: the list of golds is empty.")
    for name, texts in (("Gold", golds), ("Prediction", preds)):
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"{name} number {position} is {text!r}; it must be a string.")


def per_sample_scores(
    task: str | Task, golds: Sequence[str], preds: Sequence[str]
) -> dict[str, np.ndarray]:
    """Score every sample; all arrays are (n,) float64.

    Args:
        task: Task or its name.
        golds: Gold outputs.
        preds: Predicted outputs in the same order.

    Returns:
        LaMP-2: "accuracy". LaMP-3: "abs_error", "squared_error" (score units, and their square).
        LaMP-7: "rouge1", "rougeL" (F).

    Raises:
        UserError: Lengths differ, nothing to score, a value is no string, or a gold is off list.
    """
    chosen = get_task(task)
    _check_texts(golds, preds)
    check_golds(chosen, golds)
    if chosen.name == "LaMP_2":
        return {"accuracy": (class_ids(golds) == class_ids(preds)).astype(np.float64)}
    if chosen.name == "LaMP_3":
        values = [float(gold) for gold in golds]
        guesses = [score_value(pred, value) for pred, value in zip(preds, values, strict=True)]
        error = np.array(guesses) - np.array(values)  # (n,)
        return {"abs_error": np.abs(error), "squared_error": error**2}
    return _rouge(golds, preds)


def evaluate(
    task: str | Task, golds: Sequence[str], preds: Sequence[str]
) -> dict[str, float]:
    """Return the official metrics of the task and `valid_rate`.

    Arguments and errors are those of `per_sample_scores`.

    Returns:
        LaMP-2: accuracy, f1. LaMP-3: mae, rmse. LaMP-7: rouge1, rougeL. Always valid_rate, the
        share of predictions of the form the task asks for.
    """
    chosen = get_task(task)
    scores = per_sample_scores(chosen, golds, preds)
    if chosen.name == "LaMP_3":
        result = {
            "mae": float(scores["abs_error"].mean()),
            "rmse": float(np.sqrt(scores["squared_error"].mean())),
        }
    else:
        result = {name: float(values.mean()) for name, values in scores.items()}
    if chosen.name == "LaMP_2":
        result["f1"] = macro_f1(class_ids(golds), class_ids(preds))
    result["valid_rate"] = float(np.mean([is_valid_answer(chosen, pred) for pred in preds]))
    return result


def label_histogram(task: str | Task, answers: Sequence[str]) -> dict[str, int]:
    """Count stripped answers per label, in official order, with "off list" last (LaMP-2/-3).

    Raises:
        UserError: The task has no label list.
    """
    chosen = get_task(task)
    if not chosen.labels:
        raise UserError(f"{chosen.name} answers are free text: there is no label histogram.")
    counts = Counter(answer.strip() for answer in answers)
    histogram = {label: counts[label] for label in chosen.labels}
    return {**histogram, "off list": len(answers) - sum(histogram.values())}
