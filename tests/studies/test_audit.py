"""Predictions of any system, measured as the kit measures its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chameleon_lib import cli
from chameleon_lib.core.task import PAPER_TASKS, get_task
from chameleon_lib.data.lamp import write_lamp
from chameleon_lib.errors import UserError
from chameleon_lib.kit.stats import swap_test
from chameleon_lib.studies.audit import (
    Audited,
    differences,
    form,
    histogram,
    holm,
    levels,
    read_audit,
    read_predictions,
)
from chameleon_lib.studies.frame import pick, summarise
from tests.data.helpers import (
    SHARED_DATA,
    needs_shared_data,
    raw_sample,
    write_outputs,
    write_questions,
)
from tests.kit.html_pages import page_problems
from tests.studies.planted import planted_run

GOLDS = {"70": "oh the bus was late again", "71": "coffee first, talk later", "72": "rain. again."}


def in_file(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def as_lamp(task: str, answers: Mapping[str, str]) -> dict[str, Any]:
    return {"task": task, "golds": [{"id": key, "output": text} for key, text in answers.items()]}


@pytest.fixture
def golds(tmp_path: Path) -> Path:
    return write_outputs(tmp_path / "outputs.json", "LaMP_7", GOLDS)


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_our_own_predictions_give_our_own_table(task: str, tmp_path: Path) -> None:
    run = planted_run({"chameleon": 0.6}, tasks=(task,))
    [cell] = run.cells
    users = run.data[task].test
    questions, outputs = write_lamp(users, tmp_path, "dev", named=True)
    assert outputs is not None
    ids = [query.id for user in users for query in user.queries]
    files = []
    for method in ("instruct", "chameleon"):
        answers = next(a for arm, a in cell.answers.items() if arm.method == method)
        said = dict(zip(ids, answers.texts, strict=True))
        shuffled = dict(sorted(said.items(), key=lambda pair: pair[0][::-1]))  # ids tell, not order
        files.append(in_file(tmp_path, f"{method}.json", as_lamp(task, shuffled)))
    audited = read_audit(task, outputs, files, questions)
    audit = levels(audited, audited.frame).set_index("system")
    own = pick(run.frame, task=task, backbone=cell.backbone, draw=(-1, 0), repeat=0)
    table = summarise(own, [*audited.task.metrics, "valid"]).set_index("method")
    for method in ("instruct", "chameleon"):
        for column in audit.columns.intersection(table.columns):
            assert audit.at[method, column] == table.at[method, column], (method, column)
    change = summarise(own, audited.task.metrics[:1], against="instruct").set_index("method")
    row = differences(audited, audited.frame).iloc[0]  # instruct minus chameleon
    metric = audited.task.metrics[0]
    ends = [f"{metric}", f"{metric}_low", f"{metric}_high"]
    names = [f"{metric} difference", f"{metric} difference_low", f"{metric} difference_high"]
    assert (row["system"], row["minus"]) == ("instruct", "chameleon")
    assert [-row[names[0]], -row[names[2]], -row[names[1]]] == pytest.approx(
        [change.at["chameleon", end] for end in ends], abs=1e-12
    )


@pytest.mark.slow
@needs_shared_data
def test_copying_scores_what_it_scores_on_all_of_lamp_7(tmp_path: Path) -> None:
    folder = SHARED_DATA / "lamp" / "LaMP_7"
    records = json.loads((folder / "dev_questions.json").read_text("utf-8"))
    copied = {one["id"]: one["input"].partition(":")[2].strip() for one in records}
    file = in_file(tmp_path, "copy.json", as_lamp("LaMP-7", copied))
    audited = read_audit("LaMP_7", folder / "dev_outputs.json", [file])
    found = levels(audited, audited.frame).set_index("system").loc["copy"]
    assert found["rouge1"] == pytest.approx(0.46264, abs=5e-6) and found["n"] == 1500
    assert found["rougeL"] == pytest.approx(0.40620, abs=5e-6)
    assert found["rouge1_low"] < 0.4626 < found["rouge1_high"]


def test_a_list_in_order_and_entries_by_id_are_read_alike(tmp_path: Path) -> None:
    answers = {own: text.upper() for own, text in GOLDS.items()}
    entries = as_lamp("LaMP_7", answers)["golds"]
    forms = (as_lamp("LaMP-7", answers), entries[::-1], list(answers.values()))
    for content in forms:
        file = in_file(tmp_path, "p.json", content)
        assert read_predictions(file, "LaMP_7", list(GOLDS)) == list(answers.values())


ENTRY = {"id": "70", "output": "x"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (as_lamp("LaMP_7", {"70": "a"}), "has no prediction for 2 of 3 golds ('71', '72'); add"),
        (as_lamp("LaMP_7", {**GOLDS, "9": "b"}), "predicts 1 ids that the golds do not have ('9')"),
        ([ENTRY, ENTRY], "predicts '70' twice; remove one of them."),
        (["a", "b"], "lists 2 predictions for 3 golds; give one for each, or name them by id."),
        (as_lamp("LaMP_3", GOLDS), "says task 'LaMP_3', expected 'LaMP_7'; give its own file."),
        ({"task": "LaMP_7"}, "has no list of predictions; write {"),
        ([{"id": "70"}], "prediction number 0 has no id and output; name them in all entries."),
        ([ENTRY, "b"], "prediction number 1 has no id and output"),
        ([{"id": "70", "output": 5}], "prediction number 0 has output 5; write it as a string."),
        ([{"id": 70, "output": "x"}], "prediction number 0 has id 70; write it as a string."),
        ([1, 2, 3], "prediction number 0 has output 1; write it as a string."),
        ("", "has no list of predictions"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(
    content: Any, sentence: str, golds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = in_file(tmp_path, "p.json", content)
    words = ["audit", "--task", "LaMP_7", "--golds", str(golds), "--predictions", str(file)]
    assert cli.main([*words, "--to", str(tmp_path / "audit")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(str(file)) and sentence in told and told.count("\n") == 1
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"{", "is not valid JSON"), (b'["\xff"]', "is not valid JSON"), (None, "cannot be read")],
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "p.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_predictions(file, "LaMP_7", list(GOLDS))


def test_a_file_given_twice_and_golds_without_entries_are_refused(
    golds: Path, tmp_path: Path
) -> None:
    file = in_file(tmp_path, "p.json", list(GOLDS.values()))
    with pytest.raises(UserError, match=r"p\.json is given twice"):
        read_audit("LaMP_7", golds, [file, file])
    empty = write_outputs(tmp_path / "none.json", "LaMP_7", {})
    with pytest.raises(UserError, match=r"none\.json holds no golds"):
        read_audit("LaMP_7", empty, [file])


def test_files_of_one_name_are_told_apart_by_their_folders(golds: Path, tmp_path: Path) -> None:
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(in_file(tmp_path / folder, "p.json", list(GOLDS.values())))
    assert read_audit("LaMP_7", golds, files).systems == [str(file) for file in files]


def audited_of(task: str, golds: Sequence[str], **answers: Sequence[str]) -> Audited:
    ids = [str(at) for at in range(len(golds))]
    rows = {name: list(texts) for name, texts in answers.items()}
    return Audited(get_task(task), rows, list(rows), list(golds), ids, [*ids], [])


def test_the_page_stands_beside_its_tables_and_opens_from_disk(
    golds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [raw_sample("LaMP_7", own, "the bus came late") for own in GOLDS]
    asked = write_questions(tmp_path / "questions.json", records)
    gold = in_file(tmp_path, "gold.json", as_lamp("LaMP_7", GOLDS))
    polite = [f"Sure! Here's the rewritten tweet:\n\n{text}" for text in GOLDS.values()]
    refusing = [*polite[:2], "I'm sorry, but I can't assist with that."]
    chatty = in_file(tmp_path, "<chatty>.json", refusing)
    words = ["audit", "--task", "LaMP_7", "--golds", str(golds), "--predictions", str(gold)]
    words += [str(chatty), "--questions", str(asked), "--to", str(tmp_path / "audit")]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "gold: rouge1 1.0000 [1.000, 1.000]" in told and "audit.html" in told
    assert "<chatty>: 33.3% of its answers refuse; 66.7% of its answers begin with a" in told
    folder = tmp_path / "audit"
    assert sorted(path.name for path in folder.iterdir()) == [
        "audit.html", "differences.csv", "form.csv", "levels.csv",
    ]  # fmt: skip
    page = (folder / "audit.html").read_text("utf-8")
    assert not page_problems(page) and "&lt;chatty&gt;" in page and "<chatty>" not in page
    table = pd.read_csv(folder / "levels.csv").set_index("system")
    assert table.at["<chatty>, preambles stripped", "rouge1"] == pytest.approx(2 / 3, abs=0.01)
    assert table.at["<chatty>", "rouge1"] < 0.6 and table.at["gold", "rouge1"] == 1
    assert "floor: copy input" in table.index and set(table["n"]) == {3}
    looks = pd.read_csv(folder / "form.csv").set_index("system")
    shown = looks.loc["<chatty>", ["refusal", "preamble", "empty"]]
    assert shown.tolist() == pytest.approx([1 / 3, 2 / 3, 0], abs=0.01)


def test_without_questions_floors_of_labels_look_at_the_golds(tmp_path: Path) -> None:
    golds = write_outputs(tmp_path / "g.json", "LaMP_3", {"1": "5", "2": "5", "3": "2", "4": "4"})
    file = in_file(tmp_path, "p.json", ["5", "1", "four", "4"])
    audited = read_audit("LaMP_3", golds, [file])
    table = levels(audited, audited.frame).set_index("system")
    most = table.loc["floor: most frequent gold (looks at the golds)"]
    mean = table.loc["floor: mean gold (looks at the golds)"]
    assert most["mae"] == pytest.approx(1.0) and mean["mae"] == pytest.approx(1.0)
    assert table.at["p", "mae"] == pytest.approx((0 + 4 + 3 + 0) / 4)
    assert not any("stripped" in name for name in table.index)  # a label has no preamble
    counts = histogram(audited).set_index("system")
    assert counts.loc["p"].tolist() == [1, 0, 0, 1, 1, 1]


def test_right_and_wrong_answers_have_mcnemars_test_too() -> None:
    golds = ["comedy"] * 8
    audited = audited_of("LaMP_2", golds, a=golds, b=["action"] * 8)
    row = differences(audited, audited.frame).iloc[0]
    assert row["accuracy difference"] == 1 and row["mcnemar p"] == 2 / 2**8
    assert row["p"] == pytest.approx(2 / 2**8, abs=3e-3)
    assert row["effect"] == "too few users" and row["n"] == 8


def test_one_answer_for_everybody_shows() -> None:
    audited = audited_of("LaMP_7", ["a b", "c d", "e f"], same=["hm"] * 3, own=["a", "c", "e"])
    looks = form(audited, audited.frame).set_index("system")
    assert looks["most frequent answer"].tolist() == [1, pytest.approx(1 / 3)]
    assert looks["different answers"].tolist() == [pytest.approx(1 / 3), 1]
    assert looks["words of the golds"].tolist() == [2, 2] and "repeats the query" not in looks


def test_swapping_users_tests_any_metric_both_ways_alike() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.stack([rng.normal(size=60), np.ones(60)], axis=-1) for _ in range(2))
    shifted = a + np.array([1.0, 0.0])
    assert swap_test("mean", a, b) == swap_test("mean", b, a) > 0.01
    assert swap_test("mean", shifted, a) < 0.001 and swap_test("mean", a, a) == 1
    squares = (np.abs(one) for one in (shifted, a))
    assert 0 < swap_test("rmse", *squares) <= 1


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    assert holm([0.01, 0.04, 0.03, 0.9]).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.9])
