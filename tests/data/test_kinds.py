"""What the text of a column means: ids, times and scores, and what is asked about each."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lib.data.kinds import (
    look_alikes,
    normal_id,
    parse_scale,
    read_ids,
    read_scores,
    score_of,
)
from chameleon_lib.data.times import read_times, time_columns
from chameleon_lib.errors import UserError

DAY = 86400 * 10**9

SAME = {
    "forms of Unicode": ("zo\u00eb", "zoe\u0308"),
    "zero width space": ("ann", "a\u200bnn"),
    "joiner at an end": ("ann", "ann\u200d"),
    "byte order mark": ("ann", "\ufeffann"),
    "soft hyphen": ("ann", "an\u00adn"),
    "direction mark": ("ann", "\u200eann"),
    "variation selector": ("a\u2764", "a\u2764\ufe0f"),
    "control character": ("ann", "ann\x00"),
    "a float of a whole number": ("17", "17.0"),
}
ALIKE = [("Ann", "ann"), ("007", "7"), ("\uff21nn", "Ann"), ("stra\u00dfe", "STRASSE")]
APART = [("ann", "anna"), ("0", "o"), ("a b", "ab"), ("\u0410nn", "Ann")]


@pytest.mark.parametrize("name", SAME)
def test_one_id_in_two_spellings_is_one_user_and_said(name: str) -> None:
    one, other = SAME[name]
    read = read_ids([one, other, "bob"], "normal", "user")
    assert read.values[0] == read.values[1] != read.values[2] and not read.question
    assert any("--ids exact keeps them apart" in said for said in read.said)
    assert read_ids([one, other], "exact", "user").values == [one, other]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_ids_that_look_alike_are_said_and_one_user_on_demand(one: str, other: str) -> None:
    read = read_ids([one, other], "normal", "user")
    assert len(set(read.values)) == 2 and any("--ids folded" in said for said in read.said)
    assert len(set(read_ids([one, other], "folded", "user").values)) == 1
    assert look_alikes([one, other, "bob"]) == [[one, other]]


@pytest.mark.parametrize(("one", "other"), APART)
def test_different_ids_stay_apart_without_a_word(one: str, other: str) -> None:
    for how in ("normal", "exact"):
        read = read_ids([one, other, ""], how, "user")
        assert read.values == [one, other, None] and "alike" not in " ".join(read.said)


def test_a_joiner_that_shapes_letters_stays() -> None:
    for name in ("\u0639\u0644\u06cc\u200c\u0631\u0636\u0627", "\U0001f469\u200d\U0001f4bb"):
        assert normal_id(name) == name


LOST = {
    "Excel": ["1.43628E+18"] * 6,
    "Excel in German": ["1,43628E+18"] * 6,
    "float": ["1.43628e+18", "7.5e+17"],
    "one significant digit": ["1E+18"],
    "written out": ["1436280000000000000.0"],
    "15 digits": ["1436281234567890000"],
    "15 digits of many": [f"14362{i}1234567890" + "0" for i in range(10, 16)],
    "17 digits": ["1436281234567891200", "1436281234567891500"],
}


@pytest.mark.parametrize("name", LOST)
def test_ids_that_lost_digits_are_asked_about(name: str) -> None:
    read = read_ids(LOST[name], "normal", "user")
    assert "lost digits" in read.question and "--ids exact" in read.question
    assert not read_ids(LOST[name], "exact", "user").question


@pytest.mark.parametrize(
    "ids",
    [
        ["1436281234567891234", "1436281234567891240"],
        ["7e3", "1e5f", "12e4567890"],
        ["1000", "2000000000"],
        ["ann+7@mail.invalid"],
        ["3.5"],
    ],
)
def test_whole_ids_are_not_asked_about(ids: list[str]) -> None:
    assert not read_ids(ids, "normal", "user").question


def test_true_and_false_are_nobody() -> None:
    assert "--user" in read_ids(["true", "false", "true"], "normal", "user").question
    with pytest.raises(UserError, match="--ids takes normal, folded, exact, not 'odd'"):
        read_ids(["ann"], "odd", "user")


# One moment of every day, as the tools of this world write it.
FORMS = {
    "ISO": "%Y-%m-%dT%H:%M:%S",
    "ISO, comma": "%Y-%m-%d %H:%M:%S,250",
    "Z": "%Y-%m-%dT%H:%M:%S.000Z",
    "Postgres": "%Y-%m-%d %H:%M:%S+00",
    "Spark": "%Y-%m-%dT%H:%M:%S.000+0000",
    "BigQuery": "%Y-%m-%d %H:%M:%S.000000 UTC",
    "Go": "%Y-%m-%d %H:%M:%S +0000 UTC",
    "Java": "%Y-%m-%dT%H:%M:%SZ[UTC]",
    "named zone": "%Y-%m-%d %H:%M:%S Europe/London",
    "slashes": "%Y/%m/%d %H:%M",
    "US": "%m/%d/%Y",
    "US, clock": "%m/%d/%Y %I:%M:%S %p",
    "US, two digits": "%m/%d/%y",
    "Europe": "%d/%m/%Y %H:%M",
    "dots": "%d.%m.%Y",
    "dots, clock": "%d.%m.%Y %H:%M:%S",
    "dashes": "%d-%m-%Y",
    "Twitter": "%a %b %d %H:%M:%S +0000 %Y",
    "mail": "%a, %d %b %Y %H:%M:%S GMT",
    "date of Unix": "%a %b %d %H:%M:%S UTC %Y",
    "English": "%B %d, %Y",
    "English, clock": "%b %d, %Y, %I:%M %p",
    "British": "%d %B %Y",
    "Oracle": "%d-%b-%Y",
    "Amazon": "%m %d, %Y",
    "digits": "%Y%m%d",
    "digits to the hour": "%Y%m%d%H",
    "digits to the minute": "%Y%m%d%H%M",
    "digits to the second": "%Y%m%d%H%M%S",
}
NUMBERS = {
    "seconds": lambda s: str(s),
    "seconds, point": lambda s: f"{s}.0",
    "milliseconds": lambda s: str(s * 1000),
    "microseconds": lambda s: str(s * 10**6),
    "nanoseconds": lambda s: str(s * 10**9),
    "commas": lambda s: f"{s:,}",
    "points": lambda s: f"{s:,}".replace(",", "."),
    "blanks": lambda s: f"{s:,}".replace(",", " "),
    "decimal comma": lambda s: f"{s},000",
    "exponent": lambda s: f"{s:.8e}",
    "exponent of Excel": lambda s: f"{s:.8E}",
    "Excel": lambda s: f"{25569 + s / 86400:.5f}",
    "Excel, comma": lambda s: f"{25569 + s / 86400:.5f}".replace(".", ","),
    "Excel, days": lambda s: str(25569 + s // 86400),
    ".NET": lambda s: f"/Date({s * 1000})/",
    "Arabic digits": lambda s: "".join(chr(0x660 + int(c)) for c in str(s)),
}
DAYS = [datetime(2021, 11, 3, 9, 30, tzinfo=UTC) + timedelta(days=17 * i) for i in range(24)]


@pytest.mark.parametrize("name", FORMS)
def test_dates_of_all_tools_are_read_to_the_day(name: str) -> None:
    cells = [moment.strftime(FORMS[name]) for moment in DAYS]
    read = read_times(cells)
    assert not read.question and all(value is not None for value in read.values)
    days = [int(moment.timestamp()) // 86400 for moment in DAYS]
    assert [value // DAY for value in read.values if value is not None] == days, read.kind


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_all_tools_are_read_to_the_day(name: str) -> None:
    seconds = [int(moment.timestamp()) for moment in DAYS]
    read = read_times([NUMBERS[name](s) for s in seconds])
    assert not read.question
    assert [v // DAY for v in read.values if v is not None] == [s // 86400 for s in seconds]


@pytest.mark.parametrize(
    ("cells", "day"),
    [
        (["13046400000", "23328000000"], "1970-06-01"),  # early milliseconds, no late seconds
        (["63072000", "73353600"], "1972-01-01"),
        (["2000", "2007"], "2000-01-01"),
        (["2019-05"], "2019-05-01"),
        (["202301010930"], "2023-01-01"),
        (["2023-01-01", "1674034215000"], "2023-01-01"),
        (["1672565415", "1674034215000"], "2023-01-01"),
        (["31/12/2024", "01/02/2025"], "2024-12-31"),
    ],
)
def test_the_unit_and_the_order_are_those_of_the_whole_column(cells: list[str], day: str) -> None:
    read = read_times(cells)
    first = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) // 86400
    assert read.values[0] is not None and read.values[0] // DAY == first and not read.question
    assert sorted(v for v in read.values if v is not None) == read.values


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        (["01/02/2023", "03/04/2023"], ("'%m/%d/%Y'", "'%d/%m/%Y'")),
        (["01-02-2023 10:00:00", "03-04-2023 10:00:00"], ("'%m-%d-%Y %H:%M:%S'",)),
        (["05/06/07", "06/07/08"], ("'%m/%d/%y'", "'%d/%m/%y'")),
        (["31/12/2023", "12/31/2023"], ("--time-format",)),
        (["last week", "yesterday", "today"], ("--time-format", "--time none")),
        (["12:30", "13:30", "14:30"], ("--time-format",)),
        (["Monday", "Tuesday", "May"], ("--time-format",)),
        (["Sun Jan 01 09:30:15 IST 2023"] * 3, ("--time-format",)),
    ],
)
def test_what_could_be_two_times_is_asked_about(cells: list[str], options: tuple[str, ...]) -> None:
    question = read_times(cells).question
    assert all(option in question for option in options) and "\n" not in question


def test_a_given_format_alone_counts() -> None:
    assert read_times(["02.01.1970", "1970-01-02", ""], "%d.%m.%Y").values == [DAY, None, None]


@pytest.mark.parametrize("text", ["nan", "9" * 400, "1e400", "2024-02-30", "11476-08-15 05:20:00"])
def test_what_is_no_time_is_none_and_no_accident(text: str) -> None:
    cells = ["2024-01-01"] * 20 + [text]
    assert read_times(cells).values[-1] is None and not read_times(cells).question


@given(st.lists(st.text(max_size=30), max_size=20))
def test_any_text_is_a_time_or_none(cells: list[str]) -> None:
    assert len(read_times(cells).values) == len(cells)


@given(st.lists(st.text(max_size=20), max_size=20), st.sampled_from([None, (1.0, 10.0)]))
def test_any_text_is_a_score_or_none(cells: list[str], given_scale: tuple[float, float]) -> None:
    assert set(read_scores(cells, (1, 5), given_scale).values) <= {None, *"12345"}


@given(st.lists(st.integers(0, 4 * 10**9), min_size=2, max_size=30, unique=True))
def test_any_column_of_seconds_keeps_its_order(seconds: list[int]) -> None:
    values = read_times([str(s) for s in seconds]).values
    order = sorted(range(len(seconds)), key=lambda i: seconds[i])
    read = [values[i] for i in order]
    assert None not in read and read == sorted(v for v in read if v is not None)


def columns(**cells: list[str]) -> tuple[list[str], list[str]]:
    return time_columns(cells)


ISO, UNIX = ["2023-01-05", "2023-01-09"], ["1672876800", "1673222400"]


@pytest.mark.parametrize(
    "name",
    "timestamp date created_at createdAt review_date reviewTime unixReviewTime created_utc "
    "Date posted_at submission_date".split(),
)
def test_a_column_named_like_a_time_is_taken(name: str) -> None:
    for cells in (ISO, UNIX):
        assert columns(**{name: cells, "stars": ["4", "5"]}) == ([name], [])


def test_columns_that_may_be_times_are_found_and_others_are_not() -> None:
    assert columns(birthday=ISO, votes=["3", "9"]) == ([], ["birthday"])
    assert columns(release_date=ISO) == ([], ["release_date"])
    assert columns(when=["often", "never"], at=["home", "work"]) == ([], [])
    assert columns(helpful=["1672876800", "2"], timezone=["UTC", "UTC"]) == ([], [])
    # Two names for one time are no question; two times are.
    amazon = ["01 5, 2023", "01 9, 2023"]
    assert columns(reviewTime=amazon, unixReviewTime=UNIX)[0] == ["reviewTime"]
    assert len(columns(created_at=ISO, posted_at=["2022-01-05", "2024-01-09"])[0]) == 2


SCORES = {
    "4": (4, None), "4.0": (4, None), "4,0": (4, None), "+4": (4, None), "\u0664": (4, None),
    "1e0": (1, None), "4/5": (4, 5), "8 / 10": (8, 10), "4 out of 5 stars": (4, 5),
    "4.0 out of 5 stars": (4, 5), "4 of 5": (4, 5), "4 stars": (4, None), "1 star": (1, None),
    "four": (4, None), "Four stars": (4, None), "\u2605\u2605\u2605\u2605": (4, None),
    "\u2605\u2605\u2605\u2605\u2606": (4, 5), "\u2605\u2605\u2605\u00bd": (3.5, None),
    "\u2b50\ufe0f\u2b50\ufe0f": (2, None), "80%": (80, 100), "Rating: 4": (4, None),
    "rated 4 of 5": (4, 5), "-1": (-1, None),
}  # fmt: skip


@pytest.mark.parametrize("text", SCORES)
def test_a_score_is_read_however_it_is_written(text: str) -> None:
    assert score_of(text) == SCORES[text]


@pytest.mark.parametrize("text", ["", "nan", "inf", "good", "4 apples", "4-5", "1 2", "4/5/6"])
def test_what_is_no_score_is_none(text: str) -> None:
    assert score_of(text) is None


SCALES = [
    ([0, 1, 2, 3, 4], "0,4"), ([0, 1, 2, 3, 4, 5], "0,5"), ([0.5, 1, 3.5, 5], "0.5,5"),
    ([1, 1.5, 4.5, 5], "1,5"), ([1, 4, 7, 10], "1,10"), ([0, 4, 7, 10], "0,10"), ([1, 4, 7], "1,7"),
    ([2, 40, 60, 100], "0,100"), ([-1, 0, 1], "-1,1"), ([0, 1], "0,1"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "proposal"), SCALES)
def test_another_scale_is_asked_about_with_a_proposal_that_loses_no_row(
    values: list[float], proposal: str
) -> None:
    cells = [f"{value:g}" for value in values] * 12
    random.Random(0).shuffle(cells)
    read = read_scores(cells, (1, 5), None)
    assert f"--score-scale {proposal}" in read.question
    mapped = read_scores(cells, (1, 5), parse_scale(proposal))
    assert None not in mapped.values and not mapped.question
    pairs = sorted((float(c), int(str(v))) for c, v in zip(cells, mapped.values, strict=True))
    assert [b for _, b in pairs] == sorted(b for _, b in pairs)  # the order of scores stays
    assert pairs[0][1] <= 2 and pairs[-1][1] == 5


def test_a_scale_is_mapped_in_a_straight_line_and_said() -> None:
    cells = [str(i) for i in range(11)]
    read = read_scores(cells, (1, 5), (1, 10))
    assert read.values == [None, *"1122334455"] and "10 is 5" in read.said[0]
    assert read_scores(["8/10", "4/5"], (1, 5), (1, 10)).values == ["4", None]
    assert read_scores(["0.5", "2.25", "5"], (1, 5), (0, 5)).values == ["1", "3", "5"]


def test_a_few_slips_are_dropped_without_a_question() -> None:
    cells = ["4"] * 300 + ["9", "good"]
    read = read_scores(cells, (1, 5), None)
    assert read.values == ["4"] * 300 + [None, None] and not read.question


@pytest.mark.parametrize("text", ["1", "5,1", "a,b", "1,2,3", "nan,5", "1,inf"])
def test_a_scale_is_two_numbers_that_rise(text: str) -> None:
    with pytest.raises(UserError, match="LOW,HIGH"):
        parse_scale(text)
    assert parse_scale("") is None
