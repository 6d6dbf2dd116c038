"""LaMP's metrics, re-implemented from the meaning of the official evaluator.

The official ROUGE figure is the median of unseeded bootstrap means; here it is the plain mean,
which agrees with it within 1e-3.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import regex

from chameleon_lib.core.task import Metric, Scores, Task, get_task, registered, tokens
from chameleon_lib.errors import UserError

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


UNICODE_ROUGE = ("rouge1_unicode", "rougeL_unicode")  # declared beside the official ones


def known_metrics() -> dict[str, Metric]:
    """The metrics of all tasks by name: what each sums up, how, and which way is better."""
    return {metric.name: metric for task in registered().values() for metric in task.measures}


def higher_is_better(metric: str) -> bool:
    """Say whether a larger value of `metric` is the better one.

    Args:
        metric: A metric of a task, a score per sample that one sums up, or "valid_rate".

    Raises:
        UserError: `metric` is unknown; guessing a direction would turn verdicts around.
    """
    metrics = known_metrics()
    known = {"valid_rate": True, **{one.of: one.higher for one in metrics.values()}}
    known |= dict.fromkeys(UNICODE_ROUGE, True)
    known |= {name: one.higher for name, one in metrics.items()}
    if metric not in known:
        raise UserError(f"Unknown metric {metric!r}: use one of {', '.join(known)}.")
    return known[metric]


def class_ids(texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Map texts to class ids (n,): index in `labels` after stripping, else -1."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index.get(text.strip(), -1) for text in texts], dtype=np.int64)


def macro_f1(gold_ids: np.ndarray, pred_ids: np.ndarray, n: int) -> float:
    """Return the macro-F1 over `n` classes of two arrays of class ids.

    The average always divides by n: a class absent from both arrays counts 0. Class -1 has no F1
    of its own but is a miss for the gold class.
    """
    golds = np.bincount(gold_ids[gold_ids >= 0], minlength=n)
    preds = np.bincount(pred_ids[pred_ids >= 0], minlength=n)
    hits = np.bincount(gold_ids[(gold_ids == pred_ids) & (gold_ids >= 0)], minlength=n)
    total = golds + preds  # (n,) = 2 TP + FP + FN
    return float(np.mean(np.where(total > 0, 2 * hits / np.maximum(total, 1), 0.0)))


def class_scores(labels: Sequence[str]) -> Scores:
    """Score answers from a closed list by whether they are the gold one: "accuracy"."""

    def score(golds: Sequence[str], preds: Sequence[str]) -> dict[str, np.ndarray]:
        same = class_ids(golds, labels) == class_ids(preds, labels)
        return {"accuracy": same.astype(np.float64)}

    return score


class _Tokens:
    """Tokens of any script, for ROUGE's scorer; its own know Latin letters and digits alone.

    Runs of letters, marks and digits in their case-folded compatibility form are words. Scripts
    that put no blanks between words give single characters, and so do symbols and emoji.
    """

    _single = regex.compile(
        r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
        r"|[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}"
        r"\p{Myanmar}]])*|[\p{So}\p{Sk}]",
        regex.V1,
    )

    def tokenize(self, text: str) -> list[str]:
        return self._single.findall(unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def _rouge_scorer(unicode: bool = False) -> RougeScorer:
    # Imported on first use: the package loads nltk, more than a second that only free text needs.
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = _Tokens() if unicode else None
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=False, tokenizer=tokenizer)


def rouge_scores(golds: Sequence[str], preds: Sequence[str]) -> dict[str, np.ndarray]:
    """Score free text by F of ROUGE-1 and ROUGE-L, without stemming."""
    return _rouge(golds, preds, _rouge_scorer())


def unicode_rouge_scores(golds: Sequence[str], preds: Sequence[str]) -> dict[str, np.ndarray]:
    """Score free text of any script: "rouge1_unicode" and "rougeL_unicode".

    This is no official metric: the official tokens are runs of [a-z0-9], so that text without any
    has ROUGE 0 even against itself. Compare these numbers with no others.
    """
    scores = _rouge(golds, preds, _rouge_scorer(unicode=True))
    return {f"{name}_unicode": values for name, values in scores.items()}


def _rouge(
    golds: Sequence[str], preds: Sequence[str], scorer: RougeScorer
) -> dict[str, np.ndarray]:
    pairs = zip(golds, preds, strict=True)
    rows = [scorer.score(gold.strip(), pred.strip()) for gold, pred in pairs]
    names = ("rouge1", "rougeL")
    return {name: np.array([row[name].fmeasure for row in rows]) for name in names}


def without_tokens(task: Task, golds: Sequence[str]) -> str:
    """Say that some golds of a task score 0 whatever is answered; empty where none does."""
    if task.score is not rouge_scores:
        return ""
    mute = [gold for gold in golds if not tokens(gold)]
    if not mute:
        return ""
    return (
        f"{len(mute)} of {len(golds)} golds have no Latin letter and no digit, so that their ROUGE "
        "is 0 whatever the answer, even the gold itself; rouge1_unicode and rougeL_unicode, which "
        "are not official, know all scripts."
    )


def _check(task: Task, golds: Sequence[str], preds: Sequence[str]) -> None:
    if len(golds) != len(preds):
        raise UserError(f"There are {len(golds)} golds but {len(preds)} predictions.")
    if not golds:
        raise UserError("There is nothing to score: the list of golds is empty.")
    for name, texts in (("Gold", golds), ("Prediction", preds)):
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"{name} number {position} is {text!r}; it must be a string.")
    # With a wrong label list, gold and prediction would both map to -1 and count as correct.
    for position, gold in enumerate(golds):
        if task.labels and gold.strip() not in task.labels:
            raise UserError(
                f"Gold number {position} is {gold!r}, which is not a label of {task.name}: "
                "check that the outputs file belongs to this task."
            )


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
    _check(chosen, golds, preds)
    return chosen.score(golds, preds)


def sample_scores(
    task: str | Task, score: str, golds: Sequence[str], preds: Sequence[str]
) -> np.ndarray:
    """One score of every sample (n,): of `per_sample_scores` or of `unicode_rouge_scores`.

    Raises:
        UserError: As `per_sample_scores`, or the task has no such score.
    """
    found = per_sample_scores(task, golds, preds)
    if score in UNICODE_ROUGE and get_task(task).score is rouge_scores:
        found = unicode_rouge_scores(golds, preds)
    if score not in found:
        raise UserError(f"{get_task(task).name} has no score {score!r}: use {', '.join(found)}.")
    return found[score]


def evaluate(task: str | Task, golds: Sequence[str], preds: Sequence[str]) -> dict[str, float]:
    """Return the official metrics of the task and `valid_rate`.

    Arguments and errors are those of `per_sample_scores`.

    Returns:
        LaMP-2: accuracy, f1. LaMP-3: mae, rmse. LaMP-7: rouge1, rougeL. Always valid_rate, the
        share of predictions of the form the task asks for.
    """
    chosen = get_task(task)
    scores = per_sample_scores(chosen, golds, preds)
    result: dict[str, float] = {}
    for metric in chosen.measures:
        if metric.statistic == "macro_f1":
            gold, said = (class_ids(texts, chosen.labels) for texts in (golds, preds))
            result[metric.name] = macro_f1(gold, said, len(chosen.labels))
        else:
            mean = float(scores[metric.of].mean())
            result[metric.name] = mean if metric.statistic == "mean" else float(np.sqrt(mean))
    result["valid_rate"] = float(np.mean([chosen.is_valid(pred) for pred in preds]))
    return result
