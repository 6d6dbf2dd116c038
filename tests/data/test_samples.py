"""Reading LaMP files: any chunk, any damage, one sentence each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core.task import official_input
from chameleon_lib.data.lamp import (
    iter_json_records,
    load_samples,
    read_golds,
    stream_samples,
)
from chameleon_lib.errors import UserError
from tests.data.helpers import (
    SHARED_DATA,
    needs_shared_data,
    raw_item,
    raw_sample,
    write_outputs,
    write_questions,
)

RECORDS = [
    {"id": "1", "text": 'quote " and ] and { and \\ \u00e9 \u4f60 \U0001f600'},
    {"id": "1b", "n": [1, {"x": None}]},
    {"id": "2", "flag": True, "empty": {}},
    {},
    {"id": "4", "long": "abc " * 50},
]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_reader_equals_json_load(tmp_path: Path, ascii_only: bool, indent: int | None) -> None:
    path = tmp_path / "a.json"
    many = RECORDS * 500  # more than is read at a time
    text = json.dumps(many, ensure_ascii=ascii_only, indent=indent)
    path.write_text(f"\ufeff\n {text} \n", encoding="utf-8")
    assert path.stat().st_size > 1 << 17 and list(iter_json_records(path)) == many


def test_a_file_cut_at_any_character_raises_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = json.dumps([{"id": "1", "a": [1, True]}, {"id": "2", "b": "\u00e9\u00e9"}])
    for end in range(1, len(text)):
        path.write_text(text[:end], encoding="utf-8")
        with pytest.raises(UserError, match="cut off") as caught:
            list(iter_json_records(path))
        assert str(path) in str(caught.value)


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


def read(tmp_path: Path, task: str, records: list[dict[str, Any]]) -> list[Any]:
    return list(stream_samples(write_questions(tmp_path / "dev_questions.json", records), task))


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3", "LaMP_7"])
def test_a_valid_record_becomes_a_sample(tmp_path: Path, task: str) -> None:
    query = "so: description: review: a: query"
    [sample] = read(tmp_path, task, [raw_sample(task, "11", f"  {query}\n")])
    assert sample.query.id == "11"
    assert sample.query.text == query  # only the first marker counts; the rest is the query
    assert sample.query.gold is None
    assert [item.id for item in sample.profile] == ["110", "111"]
    assert sample.profile[0].text == "text 0 of 11"
    assert sample.profile[0].label == {"LaMP_2": "comedy", "LaMP_3": "4", "LaMP_7": None}[task]
    assert not sample.repaired


def broken(task: str, **change: Any) -> dict[str, Any]:
    record = raw_sample(task, "77")
    for key, value in change.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    return record


# The other ways to break a record are tried through the command, in tests/kit/bad_inputs.py.
@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("LaMP_2", broken("LaMP_2", profile=[{"id": "0", "tag": "comedy"}]), "no 'description'"),
        (
            "LaMP_2",
            broken("LaMP_2", input=official_input("LaMP_2", "x").replace("description:", "")),
            "no 'description:' in its input",
        ),
        ("LaMP_2", broken("LaMP_2", input="Tell me"), "not start with the LaMP_2 instruction"),
        ("LaMP_3", broken("LaMP_3", profile=[raw_item("LaMP_3", "0", "t", "4.5")]), "score '4.5'"),
        ("LaMP_7", raw_sample("LaMP_3", "77"), "not start with the LaMP_7 instruction"),
        ("LaMP_7", broken("LaMP_7", input="x a tweet"), "not start with the LaMP_7 instruction"),
    ],
)
def test_a_broken_record_raises_one_sentence_naming_file_record_and_fix(
    tmp_path: Path, task: str, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, task, [record])
    sentence = str(caught.value)
    assert sentence.count("dev_questions.json") == 1 and "\n" not in sentence
    assert "record" in sentence and sentence.endswith(".")


def test_the_lost_movie_instruction_is_restored_and_flagged(tmp_path: Path) -> None:
    record = broken("LaMP_2", input="x A quiet film about description: nothing.")
    [sample] = read(tmp_path, "LaMP_2", [record])
    assert sample.repaired
    assert sample.query.text == "A quiet film about description: nothing."
    assert sample.query.input == official_input("LaMP_2", sample.query.text)


def test_golds_are_read_by_id_and_both_task_spellings_are_accepted(tmp_path: Path) -> None:
    path = write_outputs(tmp_path / "dev_outputs.json", "LaMP-3", {"b": "5", "a": "1"})
    assert read_golds(path, "LaMP_3") == {"b": "5", "a": "1"}


@needs_shared_data
def test_the_real_malformed_question_is_repaired() -> None:
    path = SHARED_DATA / "lamp" / "LaMP_2" / "fixture_dev_110_partial_questions.json"
    [sample] = stream_samples(path, "LaMP_2")
    assert sample.repaired and sample.query.id == "110" and len(sample.profile) == 5
    assert sample.query.input == official_input("LaMP_2", sample.query.text)


@needs_shared_data
def test_the_real_old_news_file_is_rejected() -> None:
    path = SHARED_DATA / "lamp" / "LaMP_2_old_news" / "fixture_dev_110_114_questions.json"
    with pytest.raises(UserError, match="old news task"):
        list(stream_samples(path, "LaMP_2"))


def test_numbers_where_the_files_have_strings_are_read_as_such(tmp_path: Path) -> None:
    record = raw_sample("LaMP_3", "1")
    record |= {"id": 1, "user_id": 7.0}
    record["profile"][0] |= {"id": 10, "score": 4}
    record["profile"][1] |= {"score": 5.0}
    [sample] = stream_samples(write_questions(tmp_path / "q.json", [record]), "LaMP_3")
    assert (sample.query.id, sample.user_id) == ("1", "7")
    assert [item.label for item in sample.profile] == ["4", "5"] and sample.profile[0].id == "10"
    path = tmp_path / "o.json"
    path.write_text('{"task": "LaMP_3", "golds": [{"id": 1, "output": 5}]}')
    assert read_golds(path, "LaMP_3") == {"1": "5"}
    for bad in (True, None, 4.5, [4]):
        record["profile"][0]["score"] = bad
        with pytest.raises(UserError, match="'score'|score '"):
            list(stream_samples(write_questions(tmp_path / "q.json", [record]), "LaMP_3"))


def test_outputs_inside_the_records_are_golds(tmp_path: Path) -> None:
    records = [{**raw_sample("LaMP_3", str(i)), "output": str(i)} for i in range(1, 4)]
    questions = write_questions(tmp_path / "q.json", records)
    assert [s.query.gold for s in load_samples(questions, None, "LaMP_3")] == ["1", "2", "3"]
    same = write_outputs(tmp_path / "o.json", "LaMP_3", {"1": "1", "2": "2", "3": "3"})
    assert [s.query.gold for s in load_samples(questions, same, "LaMP_3")] == ["1", "2", "3"]
    other = write_outputs(tmp_path / "o.json", "LaMP_3", {"1": "1", "2": "5", "3": "3"})
    with pytest.raises(UserError, match="record '2' has the output '2' and .* has '5'; keep one"):
        load_samples(questions, other, "LaMP_3")
    del records[1]["output"]
    with pytest.raises(UserError, match="1 of 3 records .* have no output; give it to all"):
        load_samples(write_questions(tmp_path / "q.json", records), None, "LaMP_3")
    records[1]["output"] = "9"
    with pytest.raises(UserError, match="has the output '9', which is no label"):
        load_samples(write_questions(tmp_path / "q.json", records), None, "LaMP_3")


@pytest.mark.parametrize("name", ["profile", "id", "input", "user_id", "text"])
def test_a_name_that_stands_twice_is_refused(name: str, tmp_path: Path) -> None:
    record = {**raw_sample("LaMP_3", "1"), "user_id": "ann"}
    text = json.dumps([raw_sample("LaMP_3", "0") | {"user_id": "bob"}, record])
    place = text.rindex(f'"{name}": ')
    path = tmp_path / "q.json"
    path.write_text(text[:place] + f'"{name}": "other", ' + text[place:], encoding="utf-8")
    with pytest.raises(UserError, match=f"record number 1 has '{name}' twice"):
        list(stream_samples(path, "LaMP_3"))
    golds = tmp_path / "o.json"
    golds.write_text('{"task": "LaMP_3", "golds": [], "golds": [{"id": "1", "output": "5"}]}')
    with pytest.raises(UserError, match="'golds' twice"):
        read_golds(golds, "LaMP_3")


def test_a_number_of_thousands_of_digits_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text('[{"id": ' + "9" * 5000 + "}]")
    with pytest.raises(UserError, match="record number 0"):
        list(iter_json_records(path))
    path.write_text('{"task": "LaMP_3", "golds": [{"id": ' + "9" * 5000 + "}]}")
    with pytest.raises(UserError, match="cannot be read"):
        read_golds(path, "LaMP_3")


def test_a_record_of_twenty_megabytes_is_read(tmp_path: Path) -> None:
    record = raw_sample("LaMP_3", "1")
    record["profile"][0]["text"] = "long " * (4 << 20)
    [sample] = stream_samples(write_questions(tmp_path / "q.json", [record]), "LaMP_3")
    assert len(sample.profile[0].text) == 5 * (4 << 20)
