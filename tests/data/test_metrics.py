"""What the official evaluator counts: its own outputs, and its rules written down by hand.

The golden cases are outputs of the official evaluator. Each table behind them says what its rules
(strip, then exact tag; strip, then Python's float; lower case, then runs of a-z and 0-9) make of
one odd prediction. The expected scores are worked out here from those facts with fractions; nothing
of the code under test takes part in them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import pytest

from chameleon_lib.core.task import get_task
from chameleon_lib.data.metrics import (
    class_ids,
    evaluate,
    higher_is_better,
    per_sample_scores,
    sample_scores,
    without_tokens,
)
from chameleon_lib.data.tasks.lamp_2 import TAGS
from chameleon_lib.errors import UserError

FLAG = "\U0001f389 привет 你好"
# (task, golds, predictions, the metrics of the evaluator)
GOLDEN: list[tuple[str, list[str], list[str], list[float]]] = [
    ("LaMP_2", ["comedy", "comedy", "action", "romance"],
     [" comedy ", "Comedy", "action.", "romance"], [0.5, 0.111111]),
    ("LaMP_2", ["comedy"] * 4, ["comedy"] * 4, [1.0, 0.066667]),
    ("LaMP_2", list(TAGS), list(TAGS), [1.0, 1.0]),
    ("LaMP_3", ["4", "3", "2", "5", "1"], ["4 stars", "bad", "", "four", "n/a"], [3.2, 3.286335]),
    ("LaMP_3", ["5", "5"], ["10", "4.5"], [2.75, 3.553168]),
    ("LaMP_3", ["5", "5"], ["1_0", " 5\n"], [2.5, 3.535534]),
    # The official run aborts on nan; here it goes to the far end: |1 - 5| and 0.
    ("LaMP_3", ["5", "5"], ["nan", "5"], [2.0, 2.828427]),
    ("LaMP_3", ["1", "5"], ["inf", "-inf"], [4.0, 4.0]),
    ("LaMP_7", ["Hello there world", "running fast"], ["hello, there", "run fast"], [0.65, 0.65]),
    ("LaMP_7", [FLAG, "ok"], [FLAG, "ok"], [0.5, 0.5]),
    ("LaMP_7", ["don't stop @user http://t.co/x"], ["dont stop @user"], [0.363636, 0.363636]),
]  # fmt: skip


@pytest.mark.parametrize(("task", "golds", "preds", "metrics"), GOLDEN)
def test_the_metrics_agree_with_the_official_evaluator(
    task: str, golds: list[str], preds: list[str], metrics: list[float]
) -> None:
    got = evaluate(task, golds, preds)
    assert list(got) == [*get_task(task).metrics, "valid_rate"]
    assert list(got.values())[:2] == pytest.approx(metrics, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "bad"), [("LaMP_2", "politics"), ("LaMP_3", "6"), ("LaMP_3", "five")]
)
def test_a_gold_off_the_label_list_raises_instead_of_scoring(task: str, bad: str) -> None:
    with pytest.raises(UserError, match=f"Gold number 0 is '{bad}'"):
        evaluate(task, [bad], [bad])


def test_scoring_refuses_nothing_unequal_lengths_and_values_that_are_no_text() -> None:
    with pytest.raises(UserError, match="nothing to score"):
        evaluate("LaMP_7", [], [])
    with pytest.raises(UserError, match="2 golds but 1 predictions"):
        evaluate("LaMP_7", ["a", "b"], ["a"])
    with pytest.raises(UserError, match="Prediction number 0 is 5"):
        evaluate("LaMP_3", ["5"], [5])  # type: ignore[list-item]


def test_every_metric_knows_its_better_direction() -> None:
    assert all(map(higher_is_better, ("accuracy", "f1", "rouge1", "rougeL", "valid_rate")))
    assert not any(map(higher_is_better, ("mae", "rmse", "abs_error", "squared_error")))
    with pytest.raises(UserError, match="bleu"):
        higher_is_better("bleu")


# --- LaMP-2: what is done to the right tag, and whether the evaluator still sees that tag ---------

CYRILLIC = str.maketrans("aeio", "\u0430\u0435\u0456\u043e")
STILL_THE_TAG: dict[str, Callable[[str], str]] = {
    "as it is": lambda tag: tag,
    "a blank before": lambda tag: f" {tag}",
    "line break behind": lambda tag: f"{tag}\n",
    "Windows line break": lambda tag: f"{tag}\r\n",
    "tabs around": lambda tag: f"\t{tag}\t\t",
    "no-break space": lambda tag: f"{tag}\u00a0",
    "ideographic space": lambda tag: f"\u3000{tag}",
    "line separator": lambda tag: f"{tag}\u2028",
    "next line, form feed": lambda tag: f"\x85{tag}\f\v",
    "unit separator": lambda tag: f"{tag}\x1f",
}
OFF_THE_LIST: dict[str, Callable[[str], str]] = {
    "capital": lambda tag: tag.capitalize(),
    "capitals": lambda tag: tag.upper(),
    "full stop": lambda tag: f"{tag}.",
    "comma": lambda tag: f"{tag},",
    "double quotes": lambda tag: f'"{tag}"',
    "single quotes": lambda tag: f"'{tag}'",
    "brackets": lambda tag: f"[{tag}]",
    "bold": lambda tag: f"**{tag}**",
    "in a sentence": lambda tag: f"The tag is {tag}",
    "cue repeated": lambda tag: f"tag: {tag}",
    "said twice": lambda tag: f"{tag} {tag}",
    "two tags": lambda tag: f"{tag}, classic",
    "two lines": lambda tag: f"{tag}\naction",
    "end token": lambda tag: f"{tag}</s>",
    "zero-width space": lambda tag: f"\u200b{tag}",
    "byte order mark": lambda tag: f"\ufeff{tag}",
    "soft hyphen": lambda tag: f"{tag}\u00ad",
    "null": lambda tag: f"{tag}\0",
    "emoji": lambda tag: f"{tag} \U0001f3ac",
    "combining accent": lambda tag: f"{tag}\u0301",
    "Cyrillic vowels": lambda tag: tag.translate(CYRILLIC),
    "full-width letters": lambda tag: "".join(
        chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in tag
    ),
    "plural": lambda tag: f"{tag}s",
    "cut off": lambda tag: tag[:-1],
    "class number": lambda tag: str(TAGS.index(tag)),
    "empty": lambda _tag: "",
    "blanks alone": lambda _tag: " \n ",
    "news label": lambda _tag: "politics",
}
INSIDE = ("based_on_a_book", "dark  comedy", "sci fi", "sci\u2011fi", "true\nstory")

TAG_FACTS: list[tuple[str, str, int]] = [  # (gold, prediction, class the evaluator counts)
    *[(tag, change(tag), j) for j, tag in enumerate(TAGS) for change in STILL_THE_TAG.values()],
    *[(tag, change(tag), -1) for tag in TAGS for change in OFF_THE_LIST.values()],
    *[("comedy", text, -1) for text in INSIDE],
    # A right word for the wrong film: a miss of one class and a false alarm of another.
    *[(tag, f" {TAGS[j - 1]}\n", (j - 1) % 15) for j, tag in enumerate(TAGS) if j % 2],
]


def expected_tagging(facts: list[tuple[str, str, int]]) -> tuple[Fraction, Fraction]:
    """Accuracy and macro-F1 from the definition; -1 has no F1 but is a miss for its gold."""
    rows = [(TAGS.index(gold) if gold in TAGS else -1, seen) for gold, _, seen in facts]
    accuracy = Fraction(sum(gold == seen for gold, seen in rows), len(rows))
    total = Fraction(0)
    for j in range(15):
        tp = sum(gold == j == seen for gold, seen in rows)
        fp = sum(seen == j != gold for gold, seen in rows)
        fn = sum(gold == j != seen for gold, seen in rows)
        total += Fraction(2 * tp, 2 * tp + fp + fn) if tp + fp + fn else 0
    return accuracy, total / 15


def test_the_evaluator_sees_the_tags_that_the_table_names() -> None:
    assert len(TAG_FACTS) >= 200 and len({(gold, pred) for gold, pred, _ in TAG_FACTS}) >= 200
    wrong = [
        (pred, seen) for _, pred, seen in TAG_FACTS if class_ids([pred], TAGS).tolist() != [seen]
    ]
    assert wrong == []


@pytest.mark.parametrize("part", [slice(None), slice(0, 150), slice(150, 400), slice(7, None, 11)])
def test_accuracy_and_f1_follow_from_the_tags_seen(part: slice) -> None:
    facts = TAG_FACTS[part]
    accuracy, f1 = expected_tagging(facts)
    got = evaluate("LaMP_2", [gold for gold, _, _ in facts], [pred for _, pred, _ in facts])
    assert got["accuracy"] == pytest.approx(float(accuracy), abs=1e-12)
    assert got["f1"] == pytest.approx(float(f1), abs=1e-12)
    assert got["valid_rate"] == pytest.approx(sum(seen >= 0 for *_, seen in facts) / len(facts))


# --- LaMP-3: the number that Python's float reads, or None where it reads none --------------------

READ_AS: dict[str, str | None] = {
    # as they stand
    "1": "1", "2": "2", "3": "3", "4": "4", "5": "5", "0": "0", "6": "6", "10": "10", "-3": "-3",
    "4.5": "4.5", "4.0": "4", "4.": "4", ".5": "0.5", "+4": "4", "-0": "0", "04": "4", "0005": "5",
    "1e1": "10", "4E0": "4", "5e-1": "0.5", "1_0": "10", "1_0.5": "10.5", "40e-1": "4",
    "3.9999999": "3.9999999", "1000000": "1000000",
    # stripped
    " 4 ": "4", "5\n": "5", "\t3\r\n": "3", "\u00a02": "2", "\u30001\u3000": "1", "\x1f4": "4",
    "\u20284\x85": "4",
    # decimal digits of any script
    "\uff14": "4", "\uff11\uff10": "10", "\u0664": "4", "\u096a": "4", "\u06f5": "5",
    "\uff14.5": "4.5", "\U0001d7d2": "4",
    # no number
    "": None, " ": None, "\n\t": None, "four": None, "4 stars": None, "4/5": None, "4,5": None,
    "4.5.": None, "4 5": None, "score: 4": None, "**4**": None, '"4"': None, "4!": None,
    "(4)": None, "[5]": None, "4</s>": None, "4%": None, "#4": None, "4e": None, "e4": None,
    "1__0": None, "_4": None, "4_": None, "--4": None, "+ 4": None, "0x4": None, "4j": None,
    "4f": None, "\u22124": None, "\u2074": None, "\u2463": None, "\u00bd": None, "\u2163": None,
    "\u56db": None, "\uff14\uff0e5": None, "\u200b4": None, "\ufeff4": None, "4\u200b": None,
    "4\0": None, "4\u20e3": None, "\u2605\u2605\u2605\u2605": None, "\U0001f44d": None,
    "n/a": None, "None": None, "True": None, "-": None, ".": None, "4-5": None, "1\n5": None,
}  # fmt: skip
# The official run aborts on these; here they count as unreadable. The last ones overflow the
# single precision that the official path casts to.
ABORTS = (
    "nan", "NaN", " nan\n", "-nan", "+NAN", "inf", "Inf", "-inf", "infinity", "+Infinity",
    "1e400", "-1e400", "9" * 400, "1e39", "-3.5e38",
)  # fmt: skip
FAR_END = {"1": 5, "2": 5, "3": 5, "4": 1, "5": 1}  # gold -> what an unreadable answer counts as

SCORE_FACTS: list[tuple[str, str, Fraction]] = [  # (gold, prediction, signed error)
    (gold, pred, Fraction(FAR_END[gold] if value is None else value) - int(gold))
    for pred, value in [*READ_AS.items(), *[(text, None) for text in ABORTS]]
    for gold in FAR_END
]


def test_every_prediction_is_as_far_from_the_gold_as_the_table_says() -> None:
    assert len(SCORE_FACTS) >= 400
    golds, preds = [g for g, _, _ in SCORE_FACTS], [p for _, p, _ in SCORE_FACTS]
    got = per_sample_scores("LaMP_3", golds, preds)
    for i, (gold, pred, error) in enumerate(SCORE_FACTS):
        assert got["abs_error"][i] == pytest.approx(float(abs(error)), rel=1e-12), (gold, pred)
        assert got["squared_error"][i] == pytest.approx(float(error**2), rel=1e-12), (gold, pred)


@pytest.mark.parametrize("part", [slice(None), slice(0, 190), slice(190, None), slice(3, None, 7)])
def test_mae_and_rmse_follow_from_the_errors(part: slice) -> None:
    facts = SCORE_FACTS[part]
    n = len(facts)
    mae = sum((abs(error) for *_, error in facts), Fraction(0)) / n
    mse = sum((error**2 for *_, error in facts), Fraction(0)) / n
    got = evaluate("LaMP_3", [g for g, _, _ in facts], [p for _, p, _ in facts])
    assert got["mae"] == pytest.approx(float(mae), rel=1e-12)
    assert got["rmse"] == pytest.approx(math.sqrt(mse), rel=1e-12)


# --- LaMP-7: the words that the evaluator finds in a text --------------------------------------

WORDS: dict[str, str] = {
    "Hello there world": "hello there world",
    "hello, there": "hello there",
    "HELLO...THERE!!! world": "hello there world",
    "there world hello": "there world hello",
    "hello hello hello there": "hello hello hello there",
    "running fast": "running fast",
    "run fast": "run fast",
    "don't stop": "don t stop",
    "dont stop": "dont stop",
    "don\u2019t stop": "don t stop",
    "@user_1 don't stop http://t.co/x": "user 1 don t stop http t co x",
    "#stop #fast": "stop fast",
    "re-run the world": "re run the world",
    " \n hello\tworld \r\n": "hello world",
    "na\u00efve caf\u00e9": "na ve caf",
    "na\u0308ive": "na ive",
    "\u0130stanbul": "i stanbul",
    "\u017fize": "ize",
    "\u212aids run": "kids run",
    "\ufb01ne": "ne",
    "\uff48ello": "ello",
    "\uff21\uff22\uff23": "",
    "\u0663 3 \uff13": "3",
    "4.5 stars": "4 5 stars",
    "he\u200dllo": "he llo",
    "ok": "ok",
    "OK ok": "ok ok",
    "lol \U0001f602\U0001f602": "lol",
    "\U0001f389": "",
    "\u043f\u0440\u0438\u0432\u0435\u0442": "",
    "\u4f60\u597d world": "world",
    "": "",
    "  \n": "",
    "?!": "",
    "x" * 300: "x" * 300,
    "a b a b a b": "a b a b a b",
    "b a b a": "b a b a",
}


def overlap(gold: list[str], pred: list[str]) -> int:
    return sum((Counter(gold) & Counter(pred)).values())


def common_subsequence(gold: list[str], pred: list[str]) -> int:
    """Length of the longest common subsequence, by its recursive definition."""

    @cache
    def longest(i: int, j: int) -> int:
        if i == len(gold) or j == len(pred):
            return 0
        if gold[i] == pred[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


def f_measure(m: int, gold: list[str], pred: list[str]) -> Fraction:
    if m == 0:
        return Fraction(0)
    precision, recall = Fraction(m, len(pred)), Fraction(m, len(gold))
    return 2 * precision * recall / (precision + recall)


def test_rouge_follows_from_the_words_for_every_pair_of_texts() -> None:
    pairs = [(gold, pred) for gold in WORDS for pred in WORDS]
    assert len(pairs) >= 1000
    golds, preds = [g for g, _ in pairs], [p for _, p in pairs]
    got = per_sample_scores("LaMP_7", golds, preds)
    rouge1, rouge_l = [], []
    for i, (gold, pred) in enumerate(pairs):
        g, p = WORDS[gold].split(), WORDS[pred].split()
        rouge1.append(f_measure(overlap(g, p), g, p))
        rouge_l.append(f_measure(common_subsequence(g, p), g, p))
        assert got["rouge1"][i] == pytest.approx(float(rouge1[-1]), abs=1e-12), (gold, pred)
        assert got["rougeL"][i] == pytest.approx(float(rouge_l[-1]), abs=1e-12), (gold, pred)
    means = evaluate("LaMP_7", golds, preds)
    assert means["rouge1"] == pytest.approx(float(sum(rouge1) / len(pairs)), abs=1e-3)
    assert means["rougeL"] == pytest.approx(float(sum(rouge_l) / len(pairs)), abs=1e-3)
    with_words = sum(bool(WORDS[pred]) for pred in preds)
    assert means["valid_rate"] == pytest.approx(with_words / len(preds))


SCRIPTS = {
    "Arabic": ("القهوة ساخنة جدا", "القهوة باردة جدا", 2 / 3),
    "Hebrew": ("הקפה חם מאוד", "הקפה קר מאוד", 2 / 3),
    "Cyrillic": ("Кофе очень горячий", "кофе очень холодный", 2 / 3),
    "Hindi, with marks": ("कॉफ़ी बहुत गरम", "कॉफ़ी बहुत ठंडी", 2 / 3),
    "Chinese, by characters": ("我爱咖啡", "我爱茶", 4 / 7),
    "Japanese": ("コーヒー", "コーヒー", 1.0),
    "Thai": ("กาแฟ", "กาแฟ", 1.0),
    "emoji": ("🎉🎉☕", "🎉☕", 0.8),
    "Latin": ("Don't stop, É", "dont stop é", 4 / 7),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_declared_metric_knows_every_script_and_the_official_one_says_where_it_does_not(
    name: str,
) -> None:
    gold, pred, f = SCRIPTS[name]
    for text, score in ((gold, 1.0), (pred, f)):
        [value] = sample_scores("LaMP_7", "rouge1_unicode", [gold], [text])
        assert value == pytest.approx(score)
    mute = without_tokens(get_task("LaMP_7"), [gold, "ok"])
    if name == "Latin":
        assert mute == ""
    else:
        assert mute.startswith("1 of 2 golds have no Latin letter") and "rouge1_unicode" in mute
        assert sample_scores("LaMP_7", "rouge1", [gold], [gold]) == [0.0]
    assert without_tokens(get_task("LaMP_3"), ["5"]) == "" and higher_is_better("rouge1_unicode")
    with pytest.raises(UserError, match="LaMP_3 has no score 'rouge1_unicode'"):
        sample_scores("LaMP_3", "rouge1_unicode", ["5"], ["5"])
