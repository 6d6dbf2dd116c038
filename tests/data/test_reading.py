"""Files of tables as tools really write them: the same users, rows and order, or one question."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import uuid
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as arrow
import pytest
from pyarrow import parquet

from chameleon_lib.data.source import Columns
from chameleon_lib.data.table import Table, read_rows
from chameleon_lib.errors import UserError
from tests.data.tables import Record, write_table

NAMES = ["user", "text", "label", "time"]
WORDS = "calm sea, wide road; odd lamp \u00e9t\u00e9".split()
ROWS = [
    {
        "user": user,
        "text": f"{WORDS[i % len(WORDS)]} number {i} of {user}, really; yes",
        "label": str(i % 5 + 1),
        "time": f"2023-01-{i + 1:02d}",
    }
    for user in ("ann", "bob", "zo\u00eb")
    for i in range(7)
]
Write = Callable[[Path, list[Any]], object]


def lines(rows: list[Any], mark: str = ",", end: str = "\n", **options: Any) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=mark, lineterminator=end, **options)
    writer.writerow(NAMES)
    writer.writerows([row[name] for name in NAMES] for row in rows)
    return buffer.getvalue()


def raw(rows: list[Any], mark: str = "\t") -> str:
    """Cells and marks alone, as dumps of databases are."""
    return "".join(mark.join(cells) + "\n" for cells in (NAMES, *(r.values() for r in rows)))


def text(make: Callable[[list[Any]], str], encoding: str = "utf-8") -> Write:
    return lambda path, rows: path.write_bytes(make(rows).encode(encoding))


def packed(pack: Callable[[bytes], bytes]) -> Write:
    return lambda path, rows: path.write_bytes(pack(lines(rows).encode()))


def zipped(path: Path, rows: list[Any]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t.csv", lines(rows))
        archive.writestr("__MACOSX/._t.csv", "x")


def jsons(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def columnwise(rows: list[Any]) -> str:
    return json.dumps({n: {str(i): row[n] for i, row in enumerate(rows)} for n in NAMES})


def workbook(path: Path, rows: list[Any]) -> None:
    book = openpyxl.Workbook()
    notes = book.active
    notes.title = "notes"
    notes.append(["made by hand"])
    sheet = book.create_sheet("reviews")
    sheet.append(NAMES)
    for row in rows:
        day = datetime.fromisoformat(row["time"])
        sheet.append([row["user"], row["text"], int(row["label"]), day])
    book.save(path)


def table_of(rows: list[Any]) -> arrow.Table:
    return arrow.table({name: [row[name] for row in rows] for name in NAMES})


def spark(path: Path, rows: list[Any]) -> None:
    path.mkdir()
    for part in range(3):
        some = table_of(rows[7 * part : 7 * part + 7])
        parquet.write_table(some, path / f"part-0000{part}-c000.snappy.parquet")
    (path / "_SUCCESS").touch()
    (path / ".part-00000.crc").write_bytes(b"crc")


def hive(path: Path, rows: list[Any]) -> None:
    for user in dict.fromkeys(row["user"] for row in rows):
        folder = path / f"user={user}"
        folder.mkdir(parents=True)
        some = table_of([row for row in rows if row["user"] == user]).drop(["user"])
        parquet.write_table(some, folder / "000000_0")


def spark_csv(path: Path, rows: list[Any]) -> None:
    path.mkdir()
    for part in range(11):  # part-10 stands behind part-2
        (path / f"part-{part}.csv").write_text(lines(rows[2 * part : 2 * part + 2]), "utf-8")


def arrow_table(change: Callable[[arrow.Table], arrow.Table]) -> Write:
    return lambda path, rows: parquet.write_table(change(table_of(rows)), path)


def cast(name: str, kind: Any) -> Callable[[arrow.Table], arrow.Table]:
    def changed(table: arrow.Table) -> arrow.Table:
        at = table.schema.get_field_index(name)
        return table.set_column(at, name, table[name].cast(kind))

    return changed


def zoned(table: arrow.Table) -> arrow.Table:
    days = [datetime.fromisoformat(day).replace(tzinfo=UTC) for day in table["time"].to_pylist()]
    kind = arrow.timestamp("us", "Mars/Olympus_Mons")  # no zone that any machine knows
    return table.set_column(3, "time", arrow.array(days, arrow.timestamp("us", "UTC")).cast(kind))


def nested(table: arrow.Table) -> arrow.Table:
    users = arrow.array([{"id": user, "age": 3} for user in table["user"].to_pylist()])
    return table.set_column(0, "user", users)


SHAPES: dict[str, tuple[str, Write, Columns]] = {
    "csv": ("t.csv", text(lines), Columns()),
    "all quoted": ("t.csv", text(lambda r: lines(r, quoting=csv.QUOTE_ALL)), Columns()),
    "Windows": ("t.csv", text(lambda r: lines(r, end="\r\n"), "utf-8-sig"), Columns()),
    "old Mac": ("t.csv", text(lambda r: lines(r, end="\r")), Columns()),
    "semicolons": ("t.csv", text(lambda r: lines(r, ";")), Columns()),
    "sep=": ("t.csv", text(lambda r: "sep=;\r\n" + lines(r, ";", "\r\n")), Columns()),
    "pipes": ("t.csv", text(lambda r: lines(r, "|")), Columns()),
    "tabs in .csv": ("t.csv", text(lambda r: lines(r, "\t")), Columns()),
    "commas in .tsv": ("t.tsv", text(lines), Columns()),
    "Unicode text of Excel": ("t.txt", text(lambda r: lines(r, "\t", "\r\n"), "utf-16"), Columns()),
    "UTF-16 without mark": ("t.csv", text(lines, "utf-16-le"), Columns()),
    "Windows-1252": ("t.csv", text(lines, "cp1252"), Columns(encoding="windows-1252")),
    "blanks": ("t.csv", text(lambda r: lines(r, quoting=csv.QUOTE_ALL).replace('","', '", "')),
               Columns()),
    "index": ("t.csv", text(lambda r: "".join(
        f"{n},{line}\n" for n, line in zip(["", *range(99)], lines(r).splitlines(), strict=False)
    )), Columns()),
    "comma at the end": ("t.csv", text(lambda r: lines(r).replace("\n", ",\n")), Columns()),
    "capitals": ("t.csv", text(lambda r: lines(r).replace("user,text,label", "User,TEXT,Label")),
                 Columns()),
    "raw tabs": ("t.tsv", text(raw), Columns()),
    "raw pipes": ("t.txt", text(lambda r: raw(r, "|")), Columns()),
    "gzip": ("t.csv.gz", packed(gzip.compress), Columns()),
    "bzip2": ("t.csv.bz2", packed(bz2.compress), Columns()),
    "xz": ("t.csv.xz", packed(lzma.compress), Columns()),
    "zip": ("t.csv.zip", zipped, Columns()),
    "gzip, named otherwise": ("t.csv", packed(gzip.compress), Columns()),
    "lines": ("t.jsonl", text(jsons), Columns()),
    "lines in .json": ("t.json", text(jsons), Columns()),
    "marks on lines": ("t.jsonl", text(lambda r: jsons(r).replace("{", "\ufeff{")), Columns()),
    "one line": ("t.jsonl", text(lambda r: jsons(r).replace("\n", "")), Columns()),
    "list": ("t.json", text(json.dumps), Columns()),
    "list in .jsonl": ("t.jsonl", text(lambda r: json.dumps(r, indent=1)), Columns()),
    "spread": ("t.jsonl", text(lambda r: "\n".join(json.dumps(x, indent=2) for x in r)), Columns()),
    "wrapped": ("t.json", text(lambda r: json.dumps({"n": 3, "reviews": r})), Columns()),
    "columns": ("t.json", text(columnwise), Columns()),
    "lists": ("t.json", text(lambda r: json.dumps({n: [x[n] for x in r] for n in NAMES})),
              Columns()),
    "Python": ("t.jsonl", text(lambda r: "".join(f"{row!r}\n" for row in r)), Columns()),
    "UTF-16 lines": ("t.jsonl", text(jsons, "utf-16"), Columns()),
    "Mongo": ("t.json", text(lambda r: jsons([
        {**row, "_id": {"$oid": "5"}, "label": {"$numberInt": row["label"]},
         "time": {"$date": row["time"] + "T00:00:00Z"}} for row in r
    ])), Columns()),
    "object": ("t.jsonl", text(lambda r: jsons([
        {**row, "user": {"id": row["user"]}} for row in r
    ])), Columns()),
    "fields": ("t.jsonl", text(lambda r: jsons([
        {"by": {"id": row["user"], "age": 3}, "said": row} for row in r
    ])), Columns("by.id", "said.text", "said.label", "said.time")),
    "endless number": ("t.jsonl", text(lambda r: jsons(r).replace('"}', f'", "n": {"9" * 5000}}}')),
                       Columns()),
    "workbook": ("t.xlsx", workbook, Columns()),
    "workbook named .csv": ("t.csv", lambda path, rows: (workbook(path.with_suffix(".xlsx"), rows),
                            path.with_suffix(".xlsx").rename(path)), Columns()),
    "Spark": ("t.parquet", spark, Columns()),
    "Hive": ("t", hive, Columns()),
    "Spark's CSV": ("t.csv", spark_csv, Columns()),
    "large text": ("t.parquet", arrow_table(cast("text", arrow.large_string())), Columns()),
    "bytes": ("t.parquet", arrow_table(cast("text", arrow.binary())), Columns()),
    "dictionary": ("t.parquet", arrow_table(lambda t: t.set_column(
        0, "user", t["user"].combine_chunks().dictionary_encode())), Columns()),
    "dates": ("t.parquet", arrow_table(cast("time", arrow.date32())), Columns()),
    "zones": ("t.parquet", arrow_table(zoned), Columns()),
    "structs": ("t.parquet", arrow_table(nested), Columns(user="user.id")),
    "floats": ("t.parquet", arrow_table(lambda t: cast("label", arrow.float32())(
        cast("label", arrow.int32())(t))), Columns()),
    "unused years": ("t.parquet", arrow_table(lambda t: t.append_column("far", arrow.array(
        [3 * 10**17] * len(t), arrow.timestamp("us")))), Columns()),
}  # fmt: skip


def seen(table: Table) -> list[tuple[str, ...]]:
    return [(row.user, row.text, row.label, row.time[:10]) for row in table.rows]


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_the_same_rows_in_the_same_order(name: str, tmp_path: Path) -> None:
    file, write, columns = SHAPES[name]
    write(tmp_path / file, ROWS)
    table = read_rows(tmp_path / file, columns)
    assert seen(table) == [tuple(row.values()) for row in ROWS]
    assert len({row.number for row in table.rows}) == len(ROWS)


QUOTED = {
    "an aunt": '"Never again," said my aunt',
    "a box": '"Sturdy" is what the box said',
    "inches": 'a 12" fan',
    "opened": '"never closed',
    "closed": 'never opened"',
    "alone": '"',
}


@pytest.mark.parametrize("mark", ["\t", "|"])
@pytest.mark.parametrize("name", QUOTED)
def test_a_raw_dump_loses_no_row_by_its_quotes(name: str, mark: str, tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    for at in (3, 11):
        rows[at]["text"] = f"{QUOTED[name]} {at}"
    path = tmp_path / "t.tsv"
    path.write_text(raw(rows, mark), encoding="utf-8")
    assert seen(read_rows(path, Columns())) == [tuple(row.values()) for row in rows]


def test_quotes_that_swallow_rows_are_seen_and_said(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[3]["text"], rows[12]["text"] = '"opened here', 'closed here"'
    path = tmp_path / "t.tsv"
    path.write_text(raw(rows), encoding="utf-8")
    table = read_rows(path, Columns())
    assert len(table.rows) == 21 and any("--quotes none" in said for said in table.said)
    swallowed = read_rows(path, Columns(quotes="double"))
    assert len(swallowed.rows) == 12
    commas = tmp_path / "t.csv"
    commas.write_text(raw([{**r, "text": r["text"].replace(",", "")} for r in rows], ","), "utf-8")
    with pytest.raises(UserError, match="line 5 opens a quote.*--quotes none.*--quotes double"):
        read_rows(commas, Columns())
    assert len(read_rows(commas, Columns(quotes="none")).rows) == 21


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_cells_of_many_lines_are_no_rows_of_their_own(mark: str, tmp_path: Path) -> None:
    poem = f'one{mark} two\nthree "four"{mark} five{mark} six\n\n"seven'
    rows = [{**row, "text": f"{poem} {i}"} for i, row in enumerate(ROWS)]
    path = tmp_path / "t.csv"
    path.write_text(lines(rows, mark), encoding="utf-8", newline="")
    table = read_rows(path, Columns())
    assert [r.text for r in table.rows] == [" ".join(row["text"].split()) for row in rows]
    assert [r.number for r in table.rows[:3]] == [2, 6, 10]  # the line on which each begins


def test_backslashes_that_escape_quotes_are_read_and_said(tmp_path: Path) -> None:
    cells = [r'He said \"buy it\", so I did', r"C:\\new", r"one\ntwo", "plain"]
    body = "".join(f'"ann","{cell}","5"\n' for cell in cells)
    path = tmp_path / "t.csv"
    path.write_text('"user","text","label"\n' + body, encoding="utf-8")
    table = read_rows(path, Columns())
    expected = ['He said "buy it", so I did', r"C:\new", "one two", "plain"]
    assert [row.text for row in table.rows] == expected
    assert any("--quotes backslash" in said for said in table.said)
    assert read_rows(path, Columns(quotes="backslash")).rows == table.rows


def test_ids_of_any_type_come_out_whole(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=2**127 + i) for i in range(3)]
    base = table_of(ROWS[:3])
    kinds = {
        "uuid": arrow.array([i.bytes for i in ids], arrow.binary(16)),
        "int": arrow.array([1436281234567891200 + i for i in range(3)]),
        "float": arrow.array([1.0, 2.0, None]),
        "long float": arrow.array([1.43628e18, 7.0, 8.0]),
        "short float": arrow.array([16777217.0, 7.0, 8.0], arrow.float32()),
    }
    expected = {
        "uuid": [str(i) for i in ids],
        "int": [str(1436281234567891200 + i) for i in range(3)],
        "float": ["1", "2", ""],
        "long float": ["1.436280e+18", "7", "8"],  # which is asked about
        "short float": ["1.67772160e+07", "7", "8"],
    }
    for name, column in kinds.items():
        parquet.write_table(base.set_column(0, "user", column), tmp_path / "t.parquet")
        assert [r.user for r in read_rows(tmp_path / "t.parquet", Columns()).rows] == expected[name]
    (tmp_path / "t.jsonl").write_text(
        '{"user": 1436281234567891234, "text": "a", "label": 5}\n'
        '{"user": 1.43628e18, "text": "b", "label": 5}\n'
    )
    rows = read_rows(tmp_path / "t.jsonl", Columns()).rows
    assert [row.user for row in rows] == ["1436281234567891234", "1.43628e18"]


def test_text_that_is_no_utf8_in_parquet_is_one_sentence_with_an_option(tmp_path: Path) -> None:
    schema = arrow.schema([(name, arrow.string()) for name in NAMES])
    bad = arrow.StringArray.from_buffers(
        1, arrow.py_buffer(b"\0\0\0\0\4\0\0\0"), arrow.py_buffer(b"caf\xe9")
    )
    table = arrow.table([arrow.array(["ann"]), bad, arrow.array(["5"]), arrow.array(["1"])], schema)
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="not UTF-8.*--encoding windows-1252"):
        read_rows(tmp_path / "t.parquet", Columns())
    read = read_rows(tmp_path / "t.parquet", Columns(encoding="windows-1252"))
    assert read.rows[0].text == "caf\u00e9"


def test_several_sheets_are_asked_about(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for name in ("one", "two"):
        book.create_sheet(name).append(NAMES)
        book[name].append(["ann", f"text of {name}", 5, "2023-01-01"])
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(UserError, match=r"several sheets \(one, two\); say --sheet NAME"):
        read_rows(tmp_path / "t.xlsx", Columns())
    assert read_rows(tmp_path / "t.xlsx", Columns(sheet="two")).rows[0].text == "text of two"
    with pytest.raises(UserError, match="no sheet 'six'"):
        read_rows(tmp_path / "t.xlsx", Columns(sheet="six"))


NEWEST_FIRST = [
    {**row, "time": (datetime(2023, 6, 1) - timedelta(days=i)).isoformat()}
    for i, row in enumerate(ROWS)
]


@pytest.mark.parametrize("name", ["timestamp", "created_at", "reviewDate", "unixReviewTime"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_column_of_times_by_another_name_is_taken_and_said(
    name: str, suffix: str, tmp_path: Path
) -> None:
    rows: list[Record] = [
        {name if key == "time" else key: v for key, v in row.items()} for row in NEWEST_FIRST
    ]
    table = read_rows(write_table(tmp_path / f"t.{suffix}", rows), Columns())
    assert table.columns.time == name and name in " ".join(table.said)
    order = read_rows(tmp_path / f"t.{suffix}", Columns(time="none"))
    assert order.columns.time is None


def test_a_column_that_may_be_the_time_is_asked_about(tmp_path: Path) -> None:
    one = [{**row, "birthday": "1990-02-03"} for row in NEWEST_FIRST]
    for row in one:
        del row["time"]
    path = write_table(tmp_path / "t.csv", one)
    with pytest.raises(UserError, match="'birthday' looks like times: say --time birthday, or --t"):
        read_rows(path, Columns())
    assert read_rows(path, Columns(time="none")).columns.time is None
