from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.lamp import official_input, read_golds, stream_samples
from chameleon_lib.lamp.samples import check_golds_on_list, extract_query, repair_input
from tests.lamp.helpers import (
    SHARED_DATA,
    needs_shared_data,
    raw_item,
    raw_sample,
    write_outputs,
    write_questions,
)


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


ITEM = {"id": "0", "tag": "comedy", "description": "d"}


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("LaMP_2", broken("LaMP_2", id=None), "record number 0 has no 'id'"),
        ("LaMP_2", broken("LaMP_2", id=77), "'id' = 77.*string"),
        ("LaMP_2", broken("LaMP_2", input=None), "record '77' has no 'input'"),
        ("LaMP_2", broken("LaMP_2", profile=None), "record '77' has no profile"),
        ("LaMP_2", broken("LaMP_2", profile=[]), "record '77' has an empty profile"),
        ("LaMP_2", broken("LaMP_2", profile=["x"]), "profile item that is no object"),
        ("LaMP_2", broken("LaMP_2", profile=[ITEM, ITEM]), "two profile items with one id"),
        ("LaMP_2", broken("LaMP_2", profile=[{**ITEM, "tag": "horror"}]), "item '0' has tag 'horr"),
        ("LaMP_2", broken("LaMP_2", profile=[{"id": "0", "tag": "comedy"}]), "no 'description'"),
        (
            "LaMP_2",
            broken("LaMP_2", profile=[{"id": "0", "title": "t", "text": "x", "category": "c"}]),
            "old news task.*LaMP_2/new",
        ),
        (
            "LaMP_2",
            broken("LaMP_2", input=official_input("LaMP_2", "x").replace("description:", "")),
            "no 'description:' in its input",
        ),
        ("LaMP_2", broken("LaMP_2", input="Tell me"), "not start with the LaMP_2 instruction"),
        ("LaMP_3", broken("LaMP_3", profile=[raw_item("LaMP_3", "0", "t", "6")]), "score '6'"),
        ("LaMP_3", broken("LaMP_3", profile=[raw_item("LaMP_3", "0", "t", "4.5")]), "score '4.5'"),
        (
            "LaMP_3",
            broken("LaMP_3", profile=[{"id": "0", "text": "t", "score": 4}]),
            "'score' = 4.*string",
        ),
        ("LaMP_3", raw_sample("LaMP_7", "77"), "item '770' has no 'score'"),
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


def test_a_repeated_sample_id_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="record '5' twice"):
        read(tmp_path, "LaMP_7", [raw_sample("LaMP_7", "5"), raw_sample("LaMP_7", "5")])


def test_the_lost_movie_instruction_is_restored_and_flagged(tmp_path: Path) -> None:
    record = broken("LaMP_2", input="x A quiet film about description: nothing.")
    [sample] = read(tmp_path, "LaMP_2", [record])
    assert sample.repaired
    assert sample.query.text == "A quiet film about description: nothing."
    assert sample.query.input == official_input("LaMP_2", sample.query.text)


def test_a_second_lost_instruction_is_damage_and_raises(tmp_path: Path) -> None:
    first, second = broken("LaMP_2", input="x one"), broken("LaMP_2", input="x two")
    second["id"] = "78"
    with pytest.raises(UserError, match="records '77' and '78'"):
        read(tmp_path, "LaMP_2", [first, second])


def test_only_the_movie_task_is_repaired() -> None:
    assert repair_input("LaMP_3", "x text") is None
    assert repair_input("LaMP_2", "y text") is None


def test_an_input_without_marker_has_no_query() -> None:
    assert extract_query("LaMP_3", "What is this?") is None


def test_golds_are_read_by_id_and_both_task_spellings_are_accepted(tmp_path: Path) -> None:
    path = write_outputs(tmp_path / "dev_outputs.json", "LaMP-3", {"b": "5", "a": "1"})
    assert read_golds(path, "LaMP_3") == {"b": "5", "a": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task": "LaMP_2", "golds": []}', "says task 'LaMP_2', expected 'LaMP_3'"),
        ('{"golds": []}', "says task 'None'"),
        ('{"task": "LaMP_3"}', "no list of golds"),
        ("[]", "no list of golds"),
        ("<html></html>", "HTML page"),
        ('{"task": "LaMP_3", "golds": [{"id": "1", "outp', "cut off or not valid JSON"),
        ('{"task": "LaMP_3", "golds": [{"output": "5"}]}', "gold number 0 has no 'id'"),
        ('{"task": "LaMP_3", "golds": [{"id": "1"}]}', "gold '1' has no 'output'"),
        ('{"task": "LaMP_3", "golds": [{"id": "1", "output": 5}]}', "'output' = 5.*string"),
        ('{"task": "LaMP_3", "golds": ["5"]}', "gold number 0 is no object"),
        (
            '{"task": "LaMP_3", "golds": [{"id": "1", "output": "5"}, {"id": "1", "output": "4"}]}',
            "gold '1' twice",
        ),
    ],
)
def test_a_broken_outputs_file_raises_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dev_outputs.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_golds(path, "LaMP_3")
    assert "dev_outputs.json" in str(caught.value)


def test_a_missing_outputs_file_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_golds(tmp_path / "absent.json", "LaMP_3")


def test_a_gold_off_the_list_raises_and_names_the_gold() -> None:
    with pytest.raises(UserError, match="gold 'b' is 'politics'"):
        check_golds_on_list(Path("o.json"), "LaMP_2", {"a": "comedy", "b": "politics"})
    check_golds_on_list(Path("o.json"), "LaMP_7", {"a": "any tweet"})


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
