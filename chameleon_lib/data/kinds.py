"""What the text of a column means: whose row it is, when it was, what score it gives.

A column is judged as a whole, since one cell cannot say whether 03/04/2023 is in March or in April,
or whether 4 is nearly the best score or below the middle. What is commonly written is read, and how
it was understood comes back as a sentence. What can be understood in two ways comes back as a
question that names the option which answers it; nobody guesses, and nothing is read by halves.
"""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from chameleon_lib.errors import UserError

T = TypeVar("T")

# What writers of tables put where there is nothing: pandas, R, databases, Excel, JavaScript.
MISSING = (
    "nan,NaN,NAN,-nan,None,none,NONE,null,Null,NULL,(null),[NULL],nil,undefined,NA,<NA>,N/A,n/a,"
    "NaT,\\N,#N/A,#NULL!,[deleted],[removed]"
).split(",")
IDS = ("normal", "folded", "exact")
FILE_ORDER = "none"  # in the place of a column of times

_MANY = 3  # so few cells are slips; from here on they count by their share
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 10**9  # nanoseconds, in which moments are counted
_NOW, _FAR = 2_000_000_000, 4_102_444_800  # seconds: the years 2033 and 2100


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


# --- times ----------------------------------------------------------------------------------------

_PLAIN = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")
_GROUPED = re.compile(r"\d{1,3}(?:([,.' \u2019])\d{3})(?:\1\d{3})+(?:[.,]\d+)?|\d{1,3},\d{3}")
_COMMA = re.compile(r"([+-]?\d+),(\d+)(?:[eE]\+?(\d+))?")
_PARTS = re.compile(r"(\d{1,4})([./ -])(\d{1,2})(?:\2|, )(\d{1,4})(?:[ T,]+(\d.*))?")
_DOTNET = re.compile(r"\\?/?Date\((-?\d+)(?:[+-]\d{4})?\)\\?/?")
_NAMED_ZONE = re.compile(r"(.*\d)\s*\[?([A-Z][A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+)\]?")
_COMPACT = {
    4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S",
    17: "%Y%m%d%H%M%S%f",
}  # fmt: skip
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
# Zones that English exports name; others would have to be guessed (CST is three places).
_ZONES = {
    "UTC": 0, "GMT": 0, "Z": 0, "EST": -5, "EDT": -4, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8,
    "PDT": -7, "CET": 1, "CEST": 2,
}  # fmt: skip
_ORDERS = {"mdy": (2, 0, 1), "dmy": (2, 1, 0), "ymd": (0, 1, 2)}  # places of year, month, day


def read_times(
    cells: Sequence[str], time_format: str | None = None, column: str = "time"
) -> Reading[int]:
    """Moments, in nanoseconds since 1970; without a zone they count as UTC.

    Args:
        cells: As they are written; an empty one has no time.
        time_format: Read this format of ``datetime.strptime`` alone.
        column: For the sentences.
    """
    if time_format is not None:
        read = functools.cache(lambda text: _formatted(text, time_format))
        return Reading([read(cell) for cell in cells], [], kind=f"as {time_format}")
    values: list[int | None] = [_iso(cell) if cell[4:5] == "-" else None for cell in cells]
    rest = {cell for cell, value in zip(cells, values, strict=True) if value is None and cell}
    if not rest:
        return Reading(values, [], kind="ISO 8601")
    found, kinds, question = _other_times(sorted(rest))
    if any(value is not None for value in values):
        kinds.insert(0, "ISO 8601")
    values = [found.get(c) if v is None else v for c, v in zip(cells, values, strict=True)]
    filled = [cell for cell in cells if cell]
    lost = [c for c, v in zip(cells, values, strict=True) if v is None and c]
    if question:
        question = f"the column {column!r} {question}"
    elif too_many(len(lost), len(filled), 0.1):
        question = (
            f"{len(lost)} of {len(filled)} cells of the column {column!r} are no times that can be "
            f"read ({some(lost)}): say how they are written, such as --time-format %d.%m.%Y, or "
            f"--time {FILE_ORDER} to take the order of the file"
        )
    said = []
    if short := [c for c in rest if "e" in c.lower() and found.get(c) and _number(c)]:
        said.append(
            f"Times such as {short[0]!r} have lost digits; rows of equal times stay in the order "
            "of the file."
        )
    return Reading(values, said, question, kind=" and ".join(kinds))


def _moment(read: datetime) -> int:
    delta = (read if read.tzinfo else read.replace(tzinfo=UTC)) - _EPOCH
    return (delta.days * 86400 + delta.seconds) * _SECOND + delta.microseconds * 1000


def _iso(text: str) -> int | None:
    try:
        return _moment(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _formatted(text: str, form: str) -> int | None:
    try:
        return _moment(datetime.strptime(text, form))
    except (ValueError, OverflowError):
        return None


def _ascii_digits(text: str) -> str:
    return text if text.isascii() else "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text
    )  # fmt: skip


def _number(text: str) -> float | int | None:
    """A number with a point or a comma, in groups of three or not, or with an exponent."""
    if _GROUPED.fullmatch(text):
        mark = re.search(r"\D", text)
        whole, _, part = text.partition("." if mark and mark[0] != "." else ",")
        text = re.sub(r"\D", "", whole) + (f".{part}" if part else "")
    elif comma := _COMMA.fullmatch(text):
        text = f"{comma[1]}.{comma[2]}" + (f"e{comma[3]}" if comma[3] else "")
    if not _PLAIN.fullmatch(text) or len(text) > 40:
        return None
    whole, _, part = text.partition(".")
    if not part.strip("0") and "e" not in whole.lower():
        return int(whole)
    value = float(text)
    return value if math.isfinite(value) else None


def _other_times(texts: Sequence[str]) -> tuple[dict[str, int | None], list[str], str]:
    """Different cells that are no ISO 8601: their moments, how they are written, a question."""
    found: dict[str, int | None] = {}
    numbers: dict[str, float | int] = {}
    parts: dict[str, re.Match[str]] = {}
    kinds, question, words = [], "", 0
    for text in texts:
        plain = _ascii_digits(text)
        if dotnet := _DOTNET.fullmatch(plain):
            found[text] = int(dotnet[1]) * 10**6
        elif (number := _number(plain)) is not None:
            numbers[text] = number
        elif match := _PARTS.fullmatch(plain):
            parts[text] = match
        elif (moment := _worded(plain)) is not None:
            found[text], words = moment, words + 1
    if words:
        kinds.append("words")
    if numbers:
        read, kind = _numeric({t: n for t, n in numbers.items()})
        found |= read
        kinds.append(kind)
    if parts:
        order, question = _order_of(list(parts.values()))
        if order:
            found |= {text: _dated(match, order) for text, match in parts.items()}
            kinds.append("/".join({"y": "year", "m": "month", "d": "day"}[c] for c in order))
    return found, kinds, question


def _worded(text: str) -> int | None:
    """A moment with the names of months or zones in it, as English exports have it."""
    from dateutil import parser  # a tenth of a second that other tables do not need

    text = re.sub(r"(Z|[+-]\d\d:\d\d)\[.*\]$", r"\1", text)  # Java says the zone twice
    text = re.sub(r"(?:\s*(?:UTC|GMT)| \+0000 UTC)$", "+00:00", text)
    if (moment := _iso(text)) is not None:
        return moment
    if zoned := _NAMED_ZONE.fullmatch(text):
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            read = datetime.fromisoformat(zoned[1])
            return _moment(read if read.tzinfo else read.replace(tzinfo=ZoneInfo(zoned[2])))
        except (ValueError, OverflowError, ZoneInfoNotFoundError):
            return None

    def zone(name: str | None, offset: int | None) -> object:
        if offset is not None:
            return offset
        if name is not None and name not in _ZONES:
            raise ValueError(name)
        return _ZONES[name] * 3600 if name else None

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # What the text leaves open takes the default's: year, month and day must be said.
            one, two = (
                parser.parse(text, default=datetime(year, month, 1), tzinfos=zone)
                for year, month in ((1970, 1), (1972, 3))
            )
    except (ValueError, OverflowError, TypeError, Warning):
        return None
    said_day = re.search(r"\d.*\d{4}|\d{4}.*\d", text) or re.search(r"[A-Za-z]{3}.*\d{4}", text)
    return _moment(one) if one == two and said_day else None


def _numeric(numbers: dict[str, float | int]) -> tuple[dict[str, int | None], str]:
    """Moments of cells that are numbers, and what kind of numbers they are."""
    digits = [text for text in numbers if text.isdecimal()]
    compact = {text: _compact(text) for text in digits}
    right = sum(value is not None for value in compact.values())
    if digits and len(digits) == len(numbers) and right >= 0.9 * len(digits):
        years = {len(text) for text in digits} == {4}
        return compact, "years" if years else "dates without marks"
    values = list(numbers.values())
    low, high = min(values), max(values)
    if low >= 1900 and high < 2101:
        return {t: _days(365.2425 * (n - 1970)) for t, n in numbers.items()}, "years"
    if 20_000 <= low and high < 80_000:  # the years 1954 to 2119
        return {t: _days(n - 25_569) for t, n in numbers.items()}, "Excel's numbers of days"
    if abs(low) < 10**7 and abs(high) < 10**7:
        return {t: round(n * _SECOND) for t, n in numbers.items()}, "numbers in order"
    units = {t: next((u for u, k in _UNITS.items() if abs(n) < _FAR * k), None)
             for t, n in numbers.items()}  # fmt: skip
    used = [unit for unit in _UNITS if unit in units.values()]
    if len(used) > 1:
        # Two units, or one unit and early years of it: 1970 is a few digits shorter than 2023.
        recent = {u: [n / _UNITS[u] for t, n in numbers.items() if units[t] == u] for u in used}
        if not all(8e8 < min(of) and max(of) < _NOW for of in recent.values()):
            units = {t: used[-1] if unit else None for t, unit in units.items()}
            used = used[-1:]
    moments = {
        t: None if (unit := units[t]) is None else round(n * (_SECOND // _UNITS[unit]))
        for t, n in numbers.items()
    }  # fmt: skip
    return moments, f"Unix {' and '.join(used)}" if used else "numbers"


def _days(days: float) -> int:
    return round(days * 86400) * _SECOND


def _compact(text: str) -> int | None:
    """Digits that are a date with or without a time of day: 2023, 20230131, 20230131093015."""
    form = _COMPACT.get(len(text))
    moment = _formatted(text, form) if form and "1900" <= text[:4] <= "2100" else None
    return moment


def _order_of(matches: Sequence[re.Match[str]]) -> tuple[str, str]:
    """The order of day, month and year that all dates have, or a question."""

    def valid(match: re.Match[str], order: str) -> bool:
        a, b, c = match[1], match[3], match[4]
        year, month, day = ((a, b, c)[at] for at in _ORDERS[order])
        long = [part for part in (a, b, c) if len(part) > 2]
        return len(year) in (2, 4) and long in ([], [year]) and 1 <= int(month) <= 12 \
            and 1 <= int(day) <= 31  # fmt: skip

    # One cell in twenty may be a slip, if the other orders have more of them.
    wrong = {order: sum(not valid(m, order) for m in matches) for order in _ORDERS}
    fewest = min(wrong.values())
    left = [order for order, count in wrong.items() if count == fewest]
    if fewest > 0.05 * len(matches):
        left = []
    first = matches[0][0]
    if len(left) > 1 and "mdy" in left and all(", " in match[0] for match in matches):
        left = ["mdy"]  # "01 05, 2023" is the way of Amazon's files
    if set(left) == {"mdy", "dmy"} and {match[2] for match in matches} == {"."}:
        left = ["dmy"]  # nobody writes 01.31.2023
    if len(left) == 1:
        return left[0], ""
    mark, long = matches[0][2], any(len(m[k]) == 4 for m in matches for k in (1, 4))
    rest = " %H:%M:%S" if matches[0][5] else ""
    forms = [mark.join("%" + part for part in order) for order in left or ("mdy", "dmy")]
    forms = [
        f"--time-format '{form.replace('%y', '%Y') if long else form}{rest}'" for form in forms
    ]
    why = "has dates that can be read in several ways" if left else "has dates of several orders"
    return "", f"{why} ({first!r}): say {' or '.join(forms)}"


def _dated(match: re.Match[str], order: str) -> int | None:
    year, month, day = (int((match[1], match[3], match[4])[at]) for at in _ORDERS[order])
    if year < 100:
        year += 1900 if year >= 69 else 2000
    date = f"{year:04d}-{month:02d}-{day:02d}"
    if not match[5]:
        return _iso(date)
    exact = _iso(f"{date}T{match[5]}")
    return exact if exact is not None else _worded(f"{date} {match[5]}")


def date_text(moment: int) -> str:
    """The day of a moment."""
    try:
        return (_EPOCH + timedelta(seconds=moment // _SECOND)).date().isoformat()
    except OverflowError:
        return "beyond the year 9999"


# Names that columns of times have, without marks and case.
_TIME_NAMES = set(
    "time timestamp date datetime created createdat createdutc creationdate createddate createtime "
    "createdtime datecreated reviewdate reviewtime unixreviewtime dateadded posted postedat "
    "postdate publishedat published publishdate submittedat submissiondate ratedat ratingdate "
    "ratingtimestamp reviewedat writtenat tweetcreatedat unixtime unixtimestamp eventtime "
    "eventdate at ts epoch when".split()
)
_TIME_WORDS = set("time date timestamp datetime created posted published submitted day".split())


def time_columns(samples: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Columns that are named like times, and others that look like them.

    Args:
        samples: Name -> some cells, for all columns but those of user, text and label.

    Returns:
        Of several columns that are named so and tell the same days, the finest alone.
    """
    sure, perhaps = {}, []
    for name, sample in samples.items():
        cells = [cell for cell in sample if cell and cell not in MISSING]
        bare = re.sub(r"[\W_]", "", name).casefold()
        words = {w.casefold() for w in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", name)}
        dated = all(re.match(r"\d{4}-\d\d?-\d|\d\d?[./-]\d\d?[./-]\d{2,4}\b", c) for c in cells)
        if not cells or not (bare in _TIME_NAMES or words & _TIME_WORDS or dated):
            continue
        read = read_times(cells).values
        if all(v is not None or _PARTS.fullmatch(c) for c, v in zip(cells, read, strict=True)):
            if bare in _TIME_NAMES:
                sure[name] = read
            else:
                perhaps.append(name)
    days = {tuple(v and v // (86400 * _SECOND) for v in read) for read in sure.values()}
    if len(sure) > 1 and len(days) == 1:
        return [max(sure, key=lambda name: len(set(sure[name])))], perhaps
    return list(sure), perhaps


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
    text = _ascii_digits(text.casefold())
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
