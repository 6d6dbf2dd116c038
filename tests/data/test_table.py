"""From a table to users: every format, every broken file, and every row kept once or dropped."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core.task import get_task
from chameleon_lib.data.source import Columns
from chameleon_lib.data.table import REASONS, Curated, Row, curate, read_rows
from chameleon_lib.data.tasks.lamp_2 import TAGS
from chameleon_lib.data.users import check_disjoint
from chameleon_lib.errors import UserError
from tests.data.tables import clean, record, write_table

FORMATS = ("t.csv", "t.tsv", "t.jsonl", "t.ndjson", "t.parquet", "T.CSV")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    records = clean()
    path = write_table(tmp_path / name, records, "\t" if name.endswith("tsv") else ",")
    table = read_rows(path, Columns())
    rows = table.rows
    assert table.columns.time == "time"
    assert [(r.user, r.text, r.label, r.time) for r in rows] == [tuple(r.values()) for r in records]
    first = 1 if name.endswith(("parquet", "jsonl", "ndjson")) else 2  # behind the header
    assert [r.number for r in rows] == list(range(first, first + len(records)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (4.0, "4"),
        (4.5, "4.5"),
        (12, "12"),
        (Decimal("4.50"), "4.50"),
        (date(2024, 2, 29), "2024-02-29"),
        (datetime(2024, 2, 29, 8, tzinfo=UTC), "2024-02-29 08:00:00.000000"),
        (["5"], "5"),
        ([], ""),
        (b"caf\xc3\xa9", "caf\u00e9"),
        (True, "true"),
        ("  two \n\t words ", "two words"),
    ],
)
def test_a_cell_of_any_plain_kind_becomes_text(value: Any, text: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", [record("ann", 1, label=value)])
    assert read_rows(path, Columns()).rows[0].label == text


def test_cells_may_hold_line_breaks_and_rows_keep_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    body = 'user,text,label\r\nann,"one\r\ntwo\u2028three, four",5\r\n\r\nbob,"say ""hi""",4\r\n'
    path.write_bytes(("\ufeff" + body).encode())
    rows = read_rows(path, Columns()).rows
    assert [(r.number, r.text) for r in rows] == [(2, "one two three, four"), (5, 'say "hi"')]


BROKEN = {
    "missing": ("t.csv", None, "cannot be read (No such file"),
    "missing parquet": ("t.parquet", None, "cannot be read (No such file"),
    "kind": ("t.docx", b"PK", "is no table that can be read; give one of .csv"),
    "no workbook": ("t.xlsx", b"PK", "is no workbook"),
    "old Excel": ("t.csv", b"\xd0\xcf\x11\xe0" + b"\0" * 40, "is an old Excel file"),
    "page": ("t.csv", b"<html><body>404</body></html>", "holds a page of HTML"),
    "empty": ("t.csv", b"", "is empty"),
    "blank": ("t.jsonl", b" \n\n", "is empty"),
    "header alone": ("t.csv", b"user,text,label\n", "has no rows"),
    "Latin-1": (
        "t.csv",
        "user,text,label\nann,caf\xe9,5\n".encode("latin-1"),
        "is not UTF-8 text (byte 23); say what it is, such as --encoding windows-1252 (it would "
        "say 'abel ann,caf\xe9,5')",
    ),
    "open quote": ("t.csv", b'user,text,label\nann,"no end,5\n', "line 2 is no row"),
    "quote inside": ("t.csv", b'user,text,label\nann,"a"b,5\n', "say --quotes none"),
    "too many cells": ("t.csv", b"user,text,label\nann,a,b,5\n", "line 2 has 4 cells under 3"),
    "no column": ("t.csv", b"who,text,label\nann,a,5\n", "no column 'user' (there are 'who', "),
    "two columns": ("t.csv", b"user,user,text,label\na,b,c,5\n", "several columns 'user'"),
    "no JSON": ("t.jsonl", b'{"user": 1}\n{"user"\n', "line 2 is no JSON"),
    "no object": ("t.jsonl", b'["ann"]\n', "line 1 is no JSON object"),
    "cut list": ("t.json", b'[{"user": "a", "text": "b", "label": "5"},', "is cut off"),
    "deep": ("t.jsonl", b"[" * 100_000, "line 1 is no JSON"),
    "list in a cell": (
        "t.jsonl",
        b'{"user": "a", "text": ["b", "c"], "label": "5"}\n',
        "row 1 has a list of 2 in column 'text'",
    ),
    "object in a cell": (
        "t.jsonl",
        b'{"user": {"id": "a", "name": "A"}, "text": "b", "label": "5"}\n',
        "name the field that is meant, such as user.id or user.name",
    ),
    "name twice": (
        "t.jsonl",
        b'{"user": "a", "text": "b", "label": "5", "text": "c"}\n',
        "line 1 has 'text' twice",
    ),
    "no parquet": ("t.parquet", b"user,text,label\nann,a,5\n", "is no parquet file"),
    "cut parquet": ("t.parquet", b"PAR1" + b"\0" * 40, "is no parquet file"),
    "cut archive": ("t.csv.gz", b"\x1f\x8b\x08\0\0\0", "is a damaged archive"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence_that_names_it(name: str, tmp_path: Path) -> None:
    file, content, sentence = BROKEN[name]
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_rows(path, Columns())
    said = str(caught.value)
    assert said.startswith(str(path)) and sentence in said and "\n" not in said


@pytest.mark.parametrize("delimiter", [";;", "\n", '"'])
def test_a_delimiter_is_one_character(delimiter: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", clean())
    with pytest.raises(UserError, match="give one character"):
        read_rows(path, Columns(delimiter=delimiter))


def row(number: int, user: str = "ann", text: str = "", label: str = "5", time: str = "") -> Row:
    return Row(number, user, text or f"text {number} of {user}", label, time)


def rows_of(user: str, n: int, start: int = 1, label: str = "5") -> list[Row]:
    return [row(start + i, user, label=label) for i in range(n)]


def made(rows: list[Row], task: str = "LaMP_3", **options: Any) -> Curated:
    return curate(rows, get_task(task), **{"timed": False, **options})


def reasons(curated: Curated) -> list[tuple[int, str]]:
    return [(drop.row, drop.reason) for drop in curated.dropped]


BASE = rows_of("ann", 5)  # enough for one user


@pytest.mark.parametrize(
    ("task", "odd", "reason"),
    [
        ("LaMP_3", row(9, user=""), "no user"),
        ("LaMP_3", Row(9, "ann", "", "5", ""), "no text"),
        ("LaMP_3", row(9, label=""), "no label"),
        ("LaMP_3", row(9, user="NULL"), "no user"),
        ("LaMP_3", row(9, text="[deleted]"), "no text"),
        ("LaMP_3", row(9, label="nan"), "no label"),
        ("LaMP_2", row(9, label="horror"), "unknown label"),
        ("LaMP_2", row(9, label="scifi"), "unknown label"),
        *[
            ("LaMP_3", row(9, label=text), "score not 1 to 5")
            for text in ("0", "6", "4.5", "-1", "fine", "4 of 10", "9 stars", "inf", "1e400", "4,5")
        ],
        ("LaMP_3", row(9, text="half \ud83d"), "text not storable"),
        ("LaMP_3", row(9, user="ann\udcff"), "text not storable"),
    ],
)
def test_a_row_that_cannot_be_used_is_dropped_with_its_reason(
    task: str, odd: Row, reason: str
) -> None:
    base = rows_of("ann", 5, label="comedy" if task == "LaMP_2" else "5")
    got = made([*base, odd], task)
    assert reasons(got) == [(9, reason)]
    assert len(got.users) == 1 and len(got.users[0].history) == 4
    "".join(drop.user + drop.detail for drop in got.dropped).encode("utf-8")


@pytest.mark.parametrize(
    ("task", "written", "label"),
    [
        ("LaMP_2", "Comedy", "comedy"),
        ("LaMP_2", "SCI-FI", "sci-fi"),
        ("LaMP_3", "4.0", "4"),
        ("LaMP_3", "05", "5"),
        ("LaMP_3", "\uff13", "3"),
        ("LaMP_3", "4/5", "4"),
        ("LaMP_3", "\u2605\u2605\u2605\u2605", "4"),
        ("LaMP_3", "five", "5"),
    ],
)
def test_a_label_written_another_way_is_taken_and_counted(
    task: str, written: str, label: str
) -> None:
    base = rows_of("ann", 4, label=TAGS[0] if task == "LaMP_2" else "1")
    got = made([row(9, label=written), *base], task)
    assert got.users[0].history[0].label == label and got.rewritten == 1 and not got.dropped


@pytest.mark.parametrize(
    ("time", "reason"),
    [("", "no time"), ("NULL", "no time"), ("last week", "time unreadable")],
)
def test_a_time_that_gives_no_order_drops_the_row_where_time_counts(time: str, reason: str) -> None:
    timed = [Row(i, "ann", f"t{i}", "5", f"2024-01-0{i}") for i in range(1, 6)]
    odd = row(9, time=time)
    assert reasons(made([*timed, odd], timed=True)) == [(9, reason)]
    assert reasons(made([*timed, odd])) == []


def test_the_latest_rows_are_the_queries_whatever_the_order_of_the_file() -> None:
    timed = [row(i, label=str(i % 5 + 1), time=f"2024-01-{i:02d}") for i in range(1, 9)]
    random.Random(0).shuffle(timed)
    [user] = made(timed, timed=True, queries=3).users
    assert [item.text for item in user.history] == [f"text {i} of ann" for i in range(1, 6)]
    assert [(q.text, q.gold) for q in user.queries] == [
        (f"text {i} of ann", str(i % 5 + 1)) for i in (6, 7, 8)
    ]
    assert all(q.input.endswith(f"review: {q.text}") for q in user.queries)


def test_without_times_the_order_of_the_file_counts_and_breaks_ties_of_time() -> None:
    same = [row(i, time="2024-01-01") for i in (3, 1, 2, 5, 4)]
    for timed in (False, True):
        [user] = made(same, timed=timed).users
        assert [item.text[5] for item in user.history] == ["3", "1", "2", "5"]
        assert user.queries[0].text == "text 4 of ann"


@pytest.mark.parametrize("backwards", [False, True])
def test_rows_of_one_time_stand_as_the_file_runs(backwards: bool) -> None:
    days = [(user, i) for user in ("ann", "bob") for i in range(1, 9)]
    rows = [row(i, user, text=f"{user} {i}", time=f"2024-01-{9 + i // 2}") for user, i in days]
    got = made(rows[::-1] if backwards else rows, timed=True)
    assert got.facts.ties == 6
    assert [item.text for item in got.users[-1 if backwards else 0].history] == [
        f"ann {i}" for i in range(1, 8)
    ]


@pytest.mark.parametrize("word", ["nan", "None", "NULL", "\\N", "N/A", "<NA>"])
def test_words_for_nothing_are_nobody_unless_they_are_meant(word: str) -> None:
    rows = [*BASE, *rows_of(word, 5, 20)]
    got = made(rows)
    assert [user.id for user in got.users] == ["ann"] and f"user: {word} 5" in " ".join(got.said)
    assert reasons(got) == [(20 + i, "no user") for i in range(5)]
    assert [user.id for user in made(rows, missing=()).users] == ["ann", word]


def test_of_a_users_same_texts_the_latest_counts() -> None:
    again = [row(8, text="text 1 of ann", label="5"), row(9, text="text 2 of ann", label="1")]
    got = made([*BASE, *again])
    assert reasons(got) == [(1, "duplicate"), (2, "changed later")]
    assert [q.gold for q in got.users[0].queries] == ["1"]
    # Another user may say the same.
    other = [row(20 + i, "bob", text=f"text {i} of ann", label="2") for i in range(1, 6)]
    assert not made([*BASE, *other]).dropped


def test_users_with_too_few_rows_are_dropped_whole() -> None:
    got = made([*BASE, *rows_of("bob", 3, 20)], min_items=3, queries=2)
    assert [user.id for user in got.users] == ["ann"]
    assert reasons(got) == [(number, "history too short") for number in (20, 21, 22)]
    assert got.dropped[0].detail == "3 rows, 3 + 2 needed"


def test_tweets_are_asked_in_neutral_words_and_history_ends_before_the_first_query() -> None:
    said = [row(i, label="plain" if i in (2, 5, 6) else "") for i in range(1, 9)]
    got = made(said, "LaMP_7", queries=2)
    [user] = got.users
    assert [item.text[5] for item in user.history] == ["1", "2", "3", "4"]
    assert {item.label for item in user.history} == {None}
    assert [(q.text, q.gold) for q in user.queries] == [
        ("plain", "text 5 of ann"),
        ("plain", "text 6 of ann"),
    ]
    assert reasons(got) == [(7, "after the queries"), (8, "after the queries")]
    assert {r for _, r in reasons(made(rows_of("ann", 5, label=""), "LaMP_7"))} == {"no query"}


def test_users_whom_the_kit_would_take_for_one_person_are_dropped_but_the_first() -> None:
    tags = [row(10 * u + i, name, f"film {i}", "comedy") for u, name in enumerate(("ann", "bob"))
            for i in range(1, 6)]  # fmt: skip
    tags += [row(30 + i, "cem", f"other {i}", "comedy") for i in range(1, 6)]
    got = made(tags, "LaMP_2")
    assert [user.id for user in got.users] == ["ann", "cem"]
    assert {drop.detail for drop in got.dropped} == {"user ann"}
    assert reasons(got) == [(10 + i, "same as another user") for i in range(1, 6)]
    check_disjoint(got.users[:1], got.users[1:])


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3", "LaMP_7"])
@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_kept_once_or_dropped_once(task: str, seed: int) -> None:
    rng = random.Random(seed)
    labels = ["comedy", "Action", "4", "2.0", "9", ""]
    scale = (1.0, 5.0) if task == "LaMP_3" else None
    rows = [
        row(
            i,
            rng.choice(["ann", "bob", "cem", "dia", ""]),
            rng.choice([f"text {rng.randrange(40)}", ""]),
            rng.choice(labels),
            rng.choice([f"2024-01-{rng.randint(1, 28):02d}", "soon", ""]),
        )
        for i in range(200)
    ]
    timed = seed % 2 == 1
    got = made(rows, task, timed=timed, queries=1 + seed % 3, score_scale=scale)
    used = sum(len(user.history) + len(user.queries) for user in got.users)
    assert used + len(got.dropped) == len(rows)
    assert max(Counter(drop.row for drop in got.dropped).values()) == 1
    assert {drop.reason for drop in got.dropped} <= set(REASONS)
    ids = [query.id for user in got.users for query in user.queries]
    assert len(set(ids)) == len(ids) and got.users
