"""Any table, written in any shape and read again: the same users, rows, order and labels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_lib.core.task import get_task
from chameleon_lib.data.kinds import MISSING, normal_id
from chameleon_lib.data.source import Columns
from chameleon_lib.data.table import Curated, curate, read_rows
from tests.data.test_reading import NAMES, SHAPES, raw

# Of what a cell can hold in each of these shapes: half a character stands in no file of text.
LETTERS = st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufeff")
ANY = ["csv", "all quoted", "Windows", "semicolons", "pipes", "Unicode text of Excel", "lines",
       "list", "one line", "columns", "gzip", "large text", "bytes", "Spark", "Hive"]  # fmt: skip


def said(letters: Any) -> Any:
    return st.text(letters, min_size=1, max_size=25).map(lambda t: " ".join(t.split())).filter(
        lambda t: t and t not in MISSING
    )  # fmt: skip


def tables(letters: Any = LETTERS, names: Any = None) -> Any:
    """Three people with six texts each, in some order, every row at a time of its own."""
    users = st.lists(names or said(st.characters(categories=("L", "Nd"))), min_size=3, max_size=3,
                     unique_by=lambda t: normal_id(t).casefold())  # fmt: skip
    texts = st.lists(said(letters), min_size=18, max_size=18, unique=True)
    stars = st.lists(st.sampled_from("12345"), min_size=18, max_size=18)
    order = st.permutations(range(18))
    return st.tuples(users, texts, stars, order).map(rows_of)


def rows_of(parts: Any) -> list[dict[str, str]]:
    users, texts, stars, order = parts
    rows = [
        {"user": users[i % 3], "text": texts[i], "label": stars[i], "time": f"2023-01-{i + 1:02d}"}
        for i in range(18)
    ]
    return [rows[i] for i in order]


def people(path: Path, columns: Columns) -> Curated:
    table = read_rows(path, columns)
    return curate(table.rows, get_task("LaMP_3"), timed=True)


def expected(rows: list[dict[str, str]]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {normal_id(row["user"]): [] for row in rows}
    for row in sorted(rows, key=lambda row: row["time"]):
        found[normal_id(row["user"])].append((row["text"], row["label"]))
    return found


def check(rows: list[dict[str, str]], file: str, write: Any, columns: Columns) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        write(path, rows)
        got = people(path, columns)
    read = {
        user.id: [*((i.text, i.label) for i in user.history),
                  *((q.text, q.gold) for q in user.queries)]
        for user in got.users
    }  # fmt: skip
    assert not got.dropped and not got.questions
    assert read == expected(rows)


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from(ANY))
def test_any_text_in_any_shape_comes_back(rows: list[dict[str, str]], name: str) -> None:
    if name == "Hive" and any(set(row["user"]) & set("./_=\\%") for row in rows):
        return
    check(rows, *SHAPES[name])


@settings(max_examples=40, deadline=None)
@given(tables(st.characters(categories=("L", "P", "Zs"), blacklist_characters="|\ufeff")))
def test_any_raw_dump_with_quotes_in_it_comes_back(rows: list[dict[str, str]]) -> None:
    # A text that stands wholly in quotes cannot be told from a cell that was quoted.
    def open_quote(text: str) -> bool:
        return text.startswith('"') and text.rstrip().endswith('"')

    if any(open_quote(row["text"]) or '""' in row["text"] for row in rows):
        return
    check(rows, "t.tsv", lambda path, rows: path.write_text(raw(rows), "utf-8"), Columns())


assert NAMES == ["user", "text", "label", "time"]
