"""Reading a table: every format gives the same rows, and every broken file one sentence."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.history_table import Columns, Row, read_rows
from tests.lamp.tables import clean, record, write_table

FORMATS = ("t.csv", "t.tsv", "t.jsonl", "t.ndjson", "t.parquet", "T.CSV")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    records = clean()
    path = write_table(tmp_path / name, records, "\t" if name.endswith("tsv") else ",")
    rows, columns = read_rows(path, Columns())
    assert columns.time == "time"
    assert [(r.user, r.text, r.label, r.time) for r in rows] == [tuple(r.values()) for r in records]
    first = 1 if name.endswith(("parquet", "jsonl", "ndjson")) else 2  # behind the header
    assert [r.number for r in rows] == list(range(first, first + len(records)))


def test_columns_of_other_names_are_read_and_others_ignored(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n;who;said;stars;when\n1;ann;good;5;2024\n", encoding="utf-8")
    rows, columns = read_rows(path, Columns("who", "said", "stars", "when", ";"))
    assert rows == [Row(2, "ann", "good", "5", "2024")] and columns.time == "when"


def test_without_a_column_called_time_no_time_is_read(tmp_path: Path) -> None:
    records = [{k: v for k, v in r.items() if k != "time"} for r in clean()]
    rows, columns = read_rows(write_table(tmp_path / "t.jsonl", records), Columns())
    assert columns.time is None and {row.time for row in rows} == {""}


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
        (datetime(2024, 2, 29, 8, tzinfo=UTC), "2024-02-29T08:00:00+00:00"),
        ("  two \n\t words ", "two words"),
    ],
)
def test_a_cell_of_any_plain_kind_becomes_text(value: Any, text: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", [record("ann", 1, label=value)])
    assert read_rows(path, Columns())[0][0].label == text


def test_cells_may_hold_line_breaks_and_rows_keep_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    body = 'user,text,label\r\nann,"one\r\ntwo\u2028three, four",5\r\n\r\nbob,"say ""hi""",4\r\n'
    path.write_bytes(("\ufeff" + body).encode())
    rows, _ = read_rows(path, Columns())
    assert [(r.number, r.text) for r in rows] == [(2, "one two three, four"), (5, 'say "hi"')]


def test_rows_that_end_early_lack_their_last_cells(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,text,label\nann,good\n", encoding="utf-8")
    assert read_rows(path, Columns())[0] == [Row(2, "ann", "good", "", "")]


BROKEN = {
    "missing": ("t.csv", None, "cannot be read (No such file"),
    "missing parquet": ("t.parquet", None, "cannot be read (no such file"),
    "kind": ("t.xlsx", b"PK", "is no table that can be read; give one of .csv"),
    "empty": ("t.csv", b"", "is empty"),
    "blank": ("t.jsonl", b" \n\n", "is empty"),
    "header alone": ("t.csv", b"user,text,label\n", "has no rows"),
    "Latin-1": ("t.csv", "user,text,label\nann,caf\xe9,5\n".encode("latin-1"), "is not UTF-8"),
    "UTF-16": ("t.csv", "user,text,label\nann,x,5\n".encode("utf-16"), "is not UTF-8"),
    "open quote": ("t.csv", b'user,text,label\nann,"no end,5\n', "line 2 is no row"),
    "quote inside": ("t.csv", b'user,text,label\nann,"a"b,5\n', "line 2 is no row"),
    "too many cells": ("t.csv", b"user,text,label\nann,a,b,5\n", "line 2 has 4 cells under 3"),
    "semicolons": ("t.csv", b"user;text;label\nann;a;5\n", "--delimiter ';'"),
    "no column": ("t.csv", b"who,text,label\nann,a,5\n", "no column 'user' (there are 'who', "),
    "two columns": ("t.csv", b"user,user,text,label\na,b,c,5\n", "several columns 'user'"),
    "no JSON": ("t.jsonl", b'{"user": 1}\n{"user"\n', "line 2 is no JSON"),
    "no object": ("t.jsonl", b'["ann"]\n', "line 1 is no JSON object"),
    "deep": ("t.jsonl", b"[" * 100_000, "line 1 is no JSON"),
    "list in a cell": (
        "t.jsonl",
        b'{"user": "a", "text": ["b"], "label": "5"}\n',
        "row 1 has a list in column 'text'",
    ),
    "no parquet": ("t.parquet", b"user,text,label\nann,a,5\n", "is no parquet file"),
    "cut parquet": ("t.parquet", b"PAR1" + b"\0" * 40, "is no parquet file"),
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


def test_one_column_cannot_play_two_parts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="named twice"):
        read_rows(write_table(tmp_path / "t.csv", clean()), Columns(label="text"))


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    for name in ("f.csv", "f.parquet"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="cannot be read"):
            read_rows(tmp_path / name, Columns())
