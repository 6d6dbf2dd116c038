from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.stream import iter_json_records
from tests.lamp.helpers import raw_item, raw_sample

RECORDS = [
    {"id": "1", "text": 'quote " and ] and { and \\ \u00e9 \u4f60 \U0001f600'},
    {"id": "1b", "n": [1, {"x": None}]},
    {"id": "2", "flag": True, "empty": {}},
    {},
    {"id": "4", "long": "abc " * 50},
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 100_000])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_reader_equals_json_load_for_every_chunk_size(
    tmp_path: Path, chunk: int, ascii_only: bool, indent: int | None
) -> None:
    path = tmp_path / "a.json"
    text = json.dumps(RECORDS, ensure_ascii=ascii_only, indent=indent)
    path.write_text(f"\n {text} \n", encoding="utf-8")
    assert list(iter_json_records(path, chunk=chunk)) == RECORDS


def test_an_empty_list_holds_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(" [ ] ", encoding="utf-8")
    assert list(iter_json_records(path)) == []


@pytest.mark.parametrize("chunk", [1, 5, 100_000])
def test_a_file_cut_at_any_character_raises_one_sentence(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "a.json"
    text = json.dumps([{"id": "1", "a": [1, True]}, {"id": "2", "b": "\u00e9\u00e9"}])
    for end in range(1, len(text)):
        path.write_text(text[:end], encoding="utf-8")
        with pytest.raises(UserError, match="cut off") as caught:
            list(iter_json_records(path, chunk=chunk))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!DOCTYPE html><html></html>", "HTML page"),
        ('{"task": "LaMP_2", "golds": []}', "not a JSON list"),
        ("", "is empty"),
        (" \n ", "is empty"),
        ('[{"id": "1"}, 5]', "no object at record number 1"),
        ('[{"id": "1"},]', "no object at record number 1"),
        ('[{"id": "1"} {"id": "2"}]', "lacks a comma after record number 0"),
        ('[{"id": "1"}] x', "text after its JSON list"),
        ('[{"id": oops, "text": "' + "y" * 100 + '"}]', "record number 0 is not valid JSON"),
    ],
)
def test_a_damaged_file_raises_one_sentence_that_names_it(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "dev_questions.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        list(iter_json_records(path))
    assert "dev_questions.json" in str(caught.value)


def test_a_missing_file_and_a_binary_file_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        list(iter_json_records(tmp_path / "absent.json"))
    binary = tmp_path / "b.json"
    binary.write_bytes(b'[{"id": "\xff\xfe"}]')
    with pytest.raises(UserError, match="not UTF-8"):
        list(iter_json_records(binary))


def test_records_before_the_damage_are_still_yielded(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"id": "1"}, {"id": "2"', encoding="utf-8")
    reader = iter_json_records(path)
    assert next(reader) == {"id": "1"}
    with pytest.raises(UserError, match="cut off inside record number 1"):
        next(reader)


def write_big(
    path: Path, target_bytes: int, n_items: int = 190, *, distinct: bool = False
) -> tuple[int, int]:
    """Write a LaMP-3 shaped list of about `target_bytes`; return (records, bytes of one).

    All profiles are the same, so that they are one user's, unless they are to be `distinct`.
    """
    record = raw_sample("LaMP_3", "2")
    record["profile"] = [
        raw_item("LaMP_3", str(i), f"review {i} " + "so many words " * 50, str(1 + i % 5))
        for i in range(n_items)
    ]
    before, after = json.dumps(record | {"id": "ID"}).split('"ID"')
    count = size = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        while size < target_bytes:
            own = after.replace("review 7 ", f"review of {count} ", 1) if distinct else after
            text = f'{", " if count else ""}{before}"21{count}"{own}'
            file.write(text)
            count, size = count + 1, size + len(text)
        file.write("]")
    return count, size // count


# Resident memory is that of a process: a fresh one, so that nothing else of this one counts.
STREAM = """
import sys
from pathlib import Path
from chameleon_lib.lamp import stream_samples

def resident(name):
    [line] = [x for x in open("/proc/self/status") if x.startswith(name)]
    return int(line.split()[1]) * 1024

before = resident("VmRSS")
count = sum(1 for _ in stream_samples(Path(sys.argv[1]), "LaMP_3"))
print(count, before, resident("VmHWM"))
"""
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from /proc"
)


def resident_while_streaming(path: Path) -> tuple[int, int, int]:
    """Records, resident bytes before, and the most there were until the end."""
    result = subprocess.run(
        [sys.executable, "-c", STREAM, str(path)], capture_output=True, text=True, check=True
    )
    count, before, most = map(int, result.stdout.split())
    return count, before, most


@needs_proc
def test_streaming_60_mb_takes_a_few_resident_mb_over_one_record(tmp_path: Path) -> None:
    path = tmp_path / "dev_questions.json"
    count, record_bytes = write_big(path, 60_000_000)
    assert path.stat().st_size >= 60_000_000
    read, before, most = resident_while_streaming(path)
    assert read == count
    assert most - before < 15_000_000 + 10 * record_bytes


@needs_proc
@pytest.mark.slow
def test_streaming_a_file_of_lamp_3_dev_size_stays_below_500_mb(tmp_path: Path) -> None:
    given = os.environ.get("CHAMELEON_LAMP3_DEV")
    path = Path(given) if given else tmp_path / "dev_questions.json"
    count = None if given else write_big(path, 401_034_862)[0]
    read, _, most = resident_while_streaming(path)
    assert read == (count or 2500)
    assert most < 150_000_000
