"""What the text of a column means: whose row it is, what score it gives.

A column is judged as a whole, since one cell cannot say whether 4 is nearly the best score or below
the middle. What is commonly written is read, and how it was understood comes back as a sentence.
What can be understood in two ways comes back as a question that names the option which answers it;
nobody guesses, and nothing is read by halves.
"""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from chameleon_lib.errors import UserError

T = TypeVar("T")

# What writers of tables put where there is nothing: pandas, R, databases, Excel, JavaScript.
MISSING = (
    "nan,NaN,NAN,-nan,None,none,NONE,null,Null,NULL,(null),[NULL],nil,undefined,NA,<NA>,N/A,n/a,"
    "NaT,\\N,#N/A,#NULL!,[deleted],[removed]"
).split(",")
IDS = ("normal", "folded", "exact")

_MANY = 3  # so few cells are slips; from here on they count by their share


@dataclass(frozen=True)
class Reading(Generic[T]):
    """A column understood.

    Attributes:
        values: One per cell; None where the cell says nothing of its kind.
        said: How the cells were understood, in sentences.
        question: What must be answered before the column can be used; empty for nothing.
        kind: How the cells are written, in some words.
    """

    values: list[T | None]
    said: list[str]
    question: str = ""
    kind: str = ""


def some(cells: Iterable[str], most: int = 3) -> str:
    """The first different cells, for a sentence."""
    different = list(dict.fromkeys(cells))
    shown = ", ".join(repr(cell[:40]) for cell in different[:most])
    return shown + (", …" if len(different) > most else "")


def too_many(part: int, whole: int, share: float) -> bool:
    """Whether so many cells say something about the column, not about themselves."""
    return part >= _MANY and part > share * whole


def ascii_digits(text: str) -> str:
    """The text with the digits of all scripts as 0 to 9."""
    return text if text.isascii() else "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text
    )  # fmt: skip


# --- ids ------------------------------------------------------------------------------------------

_INVISIBLE = {*map(chr, (*range(0xFE00, 0xFE10), 0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800,
                         0x3164, 0xFFA0)), *map(chr, range(0x180B, 0x1810))}  # fmt: skip
_SHORTENED = re.compile(r"[+-]?\d(?:[.,]\d+)?[eE]\+\d+|[+-]?\d+[.,]\d+[eE]\+?\d+")
_WHOLE = re.compile(r"([+-]?\d+)\.0+")


def _joins(text: str, at: int) -> bool:
    """Whether the zero-width joiner there shapes letters or emoji, as in Persian and Hindi."""
    beside = text[at - 1 : at] + text[at + 1 : at + 2]
    return len(beside) == 2 and not any(
        c.isascii() or unicodedata.name(c, "").startswith("LATIN") for c in beside
    )


@functools.lru_cache(maxsize=1 << 16)
def normal_id(text: str) -> str:
    """An id in Unicode form NFC, without marks that nobody sees; 7.0 is the number 7."""
    if not (text.isascii() and text.isprintable()):
        marks = ("Cc", "Cf")
        text = unicodedata.normalize("NFC", "".join(
            c for at, c in enumerate(text)
            if (c in "\u200c\u200d" and _joins(text, at))
            or not (c in _INVISIBLE or unicodedata.category(c) in marks)
        ))  # fmt: skip
        text = " ".join(text.split())
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


@functools.lru_cache(maxsize=1 << 16)
def folded_id(text: str) -> str:
    """An id without case, width and leading zeros: what two ids have in common that look alike."""
    folded = unicodedata.normalize("NFKC", normal_id(text)).casefold()
    return folded.lstrip("0") or "0" if folded.isdecimal() else folded


def _lost_digits(ids: Sequence[str]) -> list[str]:
    """Ids that were numbers once, and of which a float or a spreadsheet kept the first digits."""
    lost = [text for text in ids if _SHORTENED.fullmatch(text)]
    lost += [t for t in ids if (whole := _WHOLE.fullmatch(t)) and abs(int(whole[1])) >= 2**53]
    long = [text for text in ids if len(text) > 15 and text.isascii() and text.isdecimal()]
    if not lost and long:
        # A spreadsheet keeps 15 digits and fills up with zeros; a float keeps 17.
        for kept in (15, 17):
            cut = [text for text in long if len(text) > kept]
            zeros = sum(len(text) - kept for text in cut)
            if zeros >= 4 and all(set(text[kept:]) == {"0"} for text in cut):
                return cut
    return lost


def read_ids(cells: Sequence[str], how: str, column: str) -> Reading[str]:
    """Names of users.

    Args:
        cells: As they are written; an empty one names nobody.
        how: "normal", "folded" (what looks alike is one user) or "exact" (as written).
        column: For the sentences.

    Raises:
        UserError: No such way.
    """
    if how not in IDS:
        raise UserError(f"--ids takes {', '.join(IDS)}, not {how!r}.")
    counts = Counter(cells)
    counts.pop("", None)
    written = list(counts)
    if how == "exact":
        return Reading([cell or None for cell in cells], ["Ids count as they are written."])
    question, said = "", []
    if {text.casefold() for text in written} <= {"true", "false"} and written:
        question = f"column {column!r} holds true and false, which name nobody: say --user COLUMN"
    elif lost := _lost_digits(written):
        question = (
            f"the column {column!r} holds numbers that lost digits on their way ({some(lost)}, "
            f"{sum(counts[text] for text in lost)} rows), so several people may stand under one: "
            "export the ids as text, or say --ids exact to take them as they stand"
        )
    first: dict[str, str] = {}
    if how == "folded":
        for text in written:
            first.setdefault(folded_id(text), normal_id(text))
        names = {text: first[folded_id(text)] for text in written}
    else:
        names = {text: normal_id(text) for text in written}
    changed = [text for text in written if names[text] != text]
    if changed:
        said.append(
            f"{len(changed)} ids are written in another Unicode form, with invisible marks, as "
            f"7.0{', or in other case' if how == 'folded' else ''} ({_visible(changed)}); "
            "--ids exact keeps them apart."
        )
    alike = look_alikes(list(dict.fromkeys(names.values())))
    if alike:
        said.append(
            f"{sum(map(len, alike))} ids look alike but for case, width or leading zeros "
            f"({_visible(alike[0])}) and are different users; --ids folded makes them one."
        )
    return Reading([names.get(cell) or None for cell in cells], said, question)


def look_alikes(names: Sequence[str]) -> list[list[str]]:
    """Different names that differ by no more than case, width or leading zeros."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(folded_id(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _visible(texts: Sequence[str]) -> str:
    """Texts whose marks can be seen: only ASCII, the rest as escapes."""
    shown = [json.dumps(text)[1:-1] for text in texts[:3]]
    return ", ".join(shown) + (", …" if len(texts) > 3 else "")


# --- scores ---------------------------------------------------------------------------------------

_WORDS = dict(zip("zero one two three four five six seven eight nine ten".split(), range(11),
                  strict=True))  # fmt: skip
_NUMBER = r"([+-]?\d+(?:[.,]\d+)?)"
_SCORE = re.compile(
    rf"(?:rat(?:ed|ing)|score):?\s+)?{_NUMBER}(?:\s*(?:/|out of|of|von|sur|de)\s*{_NUMBER})?"
    r"\s*(%|(?:stars?|points?|pts?)\.?|[★⭐🌟*]\ufe0f?)?".replace("(?:rat", "(?:(?:rat", 1)
)
_FULL, _EMPTY, _HALF = "★⭐🌟✭✮*", "☆✩", "½⯨⯪"
# Scales in use, by width: the proposal is the first that holds all scores.
_SCALES = [(0, 1), (-1, 1), (1, 3), (1, 4), (0, 4), (1, 5), (0.5, 5), (0, 5), (1, 6), (1, 7),
           (1, 9), (1, 10), (0, 10), (-5, 5), (0, 20), (-10, 10), (0, 100)]  # fmt: skip


def score_of(text: str) -> tuple[float, float | None] | None:
    """A score and the best possible one, where the text names it; None where it is no score."""
    text = ascii_digits(text.casefold())
    marks = text.replace("\ufe0f", "").replace(" ", "")
    if marks and set(marks) <= {*_FULL, *_EMPTY, *_HALF}:
        full, half = (sum(marks.count(c) for c in of) for of in (_FULL, _HALF))
        whole = full + half + sum(marks.count(c) for c in _EMPTY)
        return full + half / 2, float(whole) if whole > full + half else None
    word = text.removesuffix("s").removesuffix(" star")
    if word in _WORDS:
        return float(_WORDS[word]), None
    if match := _SCORE.fullmatch(text):
        value, best = (float(p.replace(",", ".")) if p else None for p in (match[1], match[2]))
        if match[3] == "%":
            best = 100.0
        return (value, best) if value is not None else None
    try:
        value = float(text)
    except ValueError:
        return None
    return (value, None) if abs(value) < 1e38 else None


def parse_scale(text: str) -> tuple[float, float] | None:
    """LOW,HIGH of ``--score-scale``; None for an empty text.

    Raises:
        UserError: Anything else.
    """
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"--score-scale takes LOW,HIGH, such as 1,10, not {text!r}.")
    return low, high


def read_scores(
    cells: Sequence[str], task_scale: tuple[int, int], given: tuple[float, float] | None
) -> Reading[str]:
    """Whole scores of the task's scale.

    Args:
        cells: As they are written; an empty one is no score.
        task_scale: Lowest and highest score of the task.
        given: Scale of the column. It is mapped onto the task's in a straight line, halves up, and
            what lies outside is no score. None if nobody has said it: then only whole scores of
            the task's own scale are taken, and more than a few others are a question.
    """
    low, high = task_scale
    counts = Counter(cell for cell in cells if cell)
    scores = {text: score_of(text) for text in counts}
    taken: dict[str, str] = {}
    for text, score in scores.items():
        if score is None:
            continue
        value, best = score
        if given is None:
            if value in range(low, high + 1) and best in (None, high):
                taken[text] = str(int(value))
        elif given[0] <= value <= given[1] and best in (None, given[1]):
            share = (value - given[0]) / (given[1] - given[0])
            taken[text] = str(math.floor(low + share * (high - low) + 0.5 + 1e-9))
    values = [taken.get(cell) for cell in cells]
    if given is not None:
        pairs = sorted({(scores[t][0], new) for t, new in taken.items()})  # type: ignore[index]
        shown = ", ".join(f"{value:g} is {new}" for value, new in pairs[:12])
        return Reading(values, [
            f"Scores from {given[0]:g} to {given[1]:g} are mapped onto {low} to {high} in a "
            f"straight line, halves up ({shown}{', …' if len(pairs) > 12 else ''}); what lies "
            "outside is dropped."
        ])  # fmt: skip
    off = [text for text in counts if text not in taken]
    rows, whole = sum(counts[text] for text in off), sum(counts.values())
    # A slip is dropped; a part of the scale is not: that would bend the distribution.
    if not too_many(rows, whole, 0.01):
        return Reading(values, [])
    off.sort(key=lambda text: -counts[text])
    numbers = [score for score in scores.values() if score is not None]
    worst, best = (f([s[0] for s in numbers], default=0.0) for f in (min, max))
    best = max([best, *(s[1] for s in numbers if s[1] is not None)])
    fitting = [s for s in _SCALES if s[0] <= worst and best <= s[1]]
    scale = min(fitting, key=lambda s: (s[1] - s[0], s), default=(worst, best))
    what = f"no whole numbers from {low} to {high}"
    numeric = sum(counts[t] for t in off if scores[t] is not None)
    if numeric < rows / 2:
        way = f"--score-scale {low},{high} drops these rows"
    else:
        way = (
            f"the scores run from {worst:g} to {best:g}, so perhaps --score-scale "
            f"{scale[0]:g},{scale[1]:g}, which maps that range onto {low} to {high}; "
            f"--score-scale {low},{high} drops what lies outside"
        )
    return Reading(values, [], f"{rows} of {whole} scores are {what} ({some(off)}), and dropping "
                   f"them would change what people are shown to like: {way}")  # fmt: skip
