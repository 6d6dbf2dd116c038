"""The golden cases are outputs of the official evaluator."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.lamp import (
    TAGS,
    class_ids,
    evaluate,
    higher_is_better,
    label_histogram,
    macro_f1,
    per_sample_scores,
)
from chameleon_lib.lamp.tasks import tokens

FLAG = "\U0001f389 привет 你好"


@pytest.mark.parametrize(
    ("golds", "preds", "accuracy", "f1"),
    [
        (
            ["comedy", "comedy", "action", "romance"],
            [" comedy ", "Comedy", "action.", "romance"],
            0.5,
            0.111111,
        ),
        (["comedy"] * 4, ["comedy"] * 4, 1.0, 0.066667),
    ],
)
def test_lamp_2_agrees_with_the_official_evaluator(
    golds: list[str], preds: list[str], accuracy: float, f1: float
) -> None:
    got = evaluate("LaMP_2", golds, preds)
    assert got["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert got["f1"] == pytest.approx(f1, abs=1e-6)


@pytest.mark.parametrize(
    ("golds", "preds", "mae", "rmse"),
    [
        (["4", "3", "2", "5", "1"], ["4 stars", "bad", "", "four", "n/a"], 3.2, 3.286335),
        (["5", "5"], ["10", "4.5"], 2.75, 3.553168),
        (["5", "5"], ["1_0", " 5\n"], 2.5, 3.535534),
        # The official run aborts on nan; here it goes to the far end: |1 - 5| and 0.
        (["5", "5"], ["nan", "5"], 2.0, 2.828427),
        (["1", "5"], ["inf", "-inf"], 4.0, 4.0),
    ],
)
def test_lamp_3_agrees_with_the_official_evaluator(
    golds: list[str], preds: list[str], mae: float, rmse: float
) -> None:
    got = evaluate("LaMP_3", golds, preds)
    assert got["mae"] == pytest.approx(mae, abs=1e-6)
    assert got["rmse"] == pytest.approx(rmse, abs=1e-6)


@pytest.mark.parametrize(
    ("golds", "preds", "rouge1", "rouge_l"),
    [
        (["Hello there world", "running fast"], ["hello, there", "run fast"], 0.65, 0.65),
        ([FLAG, "ok"], [FLAG, "ok"], 0.5, 0.5),
        (["don't stop @user http://t.co/x"], ["dont stop @user"], 0.363636, 0.363636),
    ],
)
def test_lamp_7_agrees_with_the_official_evaluator(
    golds: list[str], preds: list[str], rouge1: float, rouge_l: float
) -> None:
    got = evaluate("LaMP_7", golds, preds)
    assert got["rouge1"] == pytest.approx(rouge1, abs=1e-6)
    assert got["rougeL"] == pytest.approx(rouge_l, abs=1e-6)


def plain_rouge(gold: str, pred: str) -> tuple[float, float]:
    """ROUGE-1 and ROUGE-L F from the definition, over maximal runs of [a-z0-9]."""
    g, p = tokens(gold), tokens(pred)
    common = (Counter(g) & Counter(p)).total()
    row = [0] * (len(p) + 1)
    for word in g:
        before = row[:]
        for j, other in enumerate(p):
            row[j + 1] = before[j] + 1 if word == other else max(before[j + 1], row[j])

    def f(m: int) -> float:
        return 2 * m / (len(g) + len(p)) if m else 0.0

    return f(common), f(row[-1])


def test_rouge_follows_the_ascii_token_rule_without_stemming() -> None:
    rng = random.Random(0)
    words = ["Running", "runs", "don't", "naïve", "İstanbul", "x_1", "ok!"]
    words += ["ſize", "日本", "\u212a", "٣3"]  # the Kelvin sign lowers to an ASCII k
    texts = [" ".join(rng.choices(words, k=rng.randint(0, 8))) for _ in range(200)]
    golds, preds = texts[:100], texts[100:]
    got = per_sample_scores("LaMP_7", golds, preds)
    expected = np.array([plain_rouge(g, p) for g, p in zip(golds, preds, strict=True)])
    np.testing.assert_allclose(got["rouge1"], expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(got["rougeL"], expected[:, 1], atol=1e-12)
    assert 0 < expected.mean() < 1


def test_macro_f1_equals_its_definition_class_by_class() -> None:
    rng = np.random.default_rng(0)
    golds, preds = rng.integers(0, 15, 300), rng.integers(-1, 15, 300)
    scores = []
    for j in range(15):
        tp = np.sum((golds == j) & (preds == j))
        fp = np.sum((golds != j) & (preds == j))
        fn = np.sum((golds == j) & (preds != j))
        scores.append(2 * tp / (2 * tp + fp + fn))
    assert macro_f1(golds, preds) == pytest.approx(float(np.mean(scores)))


def test_a_perfect_answer_to_every_class_gives_f1_one() -> None:
    assert evaluate("LaMP_2", list(TAGS), list(TAGS)) == {
        "accuracy": 1.0,
        "f1": 1.0,
        "valid_rate": 1.0,
    }


def test_class_ids_are_the_official_indices_and_minus_one_off_the_list() -> None:
    assert class_ids([" sci-fi", "true story", "Comedy"]).tolist() == [0, 14, -1]


@pytest.mark.parametrize(
    ("task", "bad"), [("LaMP_2", "politics"), ("LaMP_3", "6"), ("LaMP_3", "five")]
)
def test_a_gold_off_the_label_list_raises_instead_of_scoring(task: str, bad: str) -> None:
    with pytest.raises(UserError, match=f"Gold number 0 is '{bad}'"):
        evaluate(task, [bad], [bad])


def test_per_sample_scores_average_to_the_metrics() -> None:
    golds, preds = ["1", "5", "3"], ["2", "4.5", "x"]
    scores = per_sample_scores("LaMP_3", golds, preds)
    assert scores["abs_error"].tolist() == [1.0, 0.5, 2.0]
    assert scores["squared_error"].tolist() == [1.0, 0.25, 4.0]
    got = evaluate("LaMP_3", golds, preds)
    assert got["mae"] == pytest.approx(3.5 / 3)
    assert got["rmse"] == pytest.approx((5.25 / 3) ** 0.5)
    assert got["valid_rate"] == pytest.approx(2 / 3)


def test_scoring_refuses_nothing_unequal_lengths_and_values_that_are_no_text() -> None:
    with pytest.raises(UserError, match="nothing to score"):
        evaluate("LaMP_7", [], [])
    with pytest.raises(UserError, match="2 golds but 1 predictions"):
        evaluate("LaMP_7", ["a", "b"], ["a"])
    with pytest.raises(UserError, match="Prediction number 0 is 5"):
        evaluate("LaMP_3", ["5"], [5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("accuracy", True),
        ("f1", True),
        ("rouge1", True),
        ("rougeL", True),
        ("valid_rate", True),
        ("mae", False),
        ("rmse", False),
        ("abs_error", False),
        ("squared_error", False),
    ],
)
def test_every_metric_knows_its_better_direction(metric: str, higher: bool) -> None:
    assert higher_is_better(metric) is higher


def test_an_unknown_metric_has_no_direction() -> None:
    with pytest.raises(UserError, match="bleu"):
        higher_is_better("bleu")


def test_the_histogram_counts_every_answer_once() -> None:
    got = label_histogram("LaMP_2", ["comedy", " comedy", "Comedy", "action"])
    assert list(got) == [*TAGS, "off list"]
    assert (got["comedy"], got["action"], got["off list"]) == (2, 1, 1)
    assert sum(got.values()) == 4
    with pytest.raises(UserError, match="free text"):
        label_histogram("LaMP_7", ["hi"])
