"""When a row was written: moments in a column of text, and which column holds them.

A column is judged as a whole, since one cell cannot say whether 03/04/2023 is in March or in April.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from chameleon_lib.data.kinds import MISSING, Reading, ascii_digits, some, too_many

FILE_ORDER = "none"  # in the place of a column of times

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 10**9  # nanoseconds, in which moments are counted
_NOW, _FAR = 2_000_000_000, 4_102_444_800  # seconds: the years 2033 and 2100
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
        plain = ascii_digits(text)
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
