from __future__ import annotations

import json
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.ledger import (
    Ledger,
    difference,
    library_names,
    notebook_inputs,
    written_outputs,
)
from chameleon_lib.kit.notebooks import Notebook, read_notebook
from chameleon_lib.kit.paths import WRITTEN, replace_text
from chameleon_lib.kit.sources import SourceTree
from tests.kit.checkout import notebook


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / "outputs"))
    folder = tmp_path / "outputs" / "demo"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "tables").mkdir()
    return folder


def source(tmp_path: Path, name: str = "01_table", prose: str = "Section 4.2.") -> Notebook:
    return read_notebook(notebook(tmp_path / "notebooks", name, ["x = 1"], prose=prose))


def recorded(tmp_path: Path, outputs: Path, name: str = "01_table") -> tuple[Ledger, Notebook]:
    book = source(tmp_path, name)
    (outputs / "notebooks" / f"{name}.ipynb").write_text("{}", encoding="utf-8")
    (outputs / "tables" / "t.csv").write_text("a\n1\n", encoding="utf-8")
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.record("demo", book, {"code": {"cells": "c1"}}, ["tables/t.csv"])
    return ledger, book


def test_a_recorded_notebook_is_current_also_for_a_later_process(
    tmp_path: Path, outputs: Path
) -> None:
    _, book = recorded(tmp_path, outputs)
    later = Ledger(tmp_path / "ledger.json")
    assert later.why("demo", book, {"code": {"cells": "c1"}}) == ""
    assert later.why("laptop", book, {"code": {"cells": "c1"}}) == "never run here"


def test_a_changed_cause_is_named(tmp_path: Path, outputs: Path) -> None:
    ledger, book = recorded(tmp_path, outputs)
    inputs = {"code": {"cells": "c1"}, "library": {"chameleon_lib/core/ccs.py": "new"}}
    assert ledger.why("demo", book, inputs) == "library changed: chameleon_lib/core/ccs.py"


def test_an_output_that_is_gone_or_edited_makes_the_notebook_stale(
    tmp_path: Path, outputs: Path
) -> None:
    ledger, book = recorded(tmp_path, outputs)
    inputs = {"code": {"cells": "c1"}}
    (outputs / "tables" / "t.csv").write_text("a\n2\n", encoding="utf-8")
    assert ledger.why("demo", book, inputs) == "output changed: tables/t.csv"
    (outputs / "tables" / "t.csv").unlink()
    assert ledger.why("demo", book, inputs) == "output missing: tables/t.csv"


def test_facts_that_all_notebooks_add_to_are_missed_and_damage_is_seen_by_each(
    tmp_path: Path, outputs: Path
) -> None:
    ledger, facts = Ledger(tmp_path / "ledger.json"), outputs / "run_facts.json"
    books = [source(tmp_path, name) for name in ("01_table", "02_other")]
    for book in books:
        (outputs / "notebooks" / f"{book.name}.ipynb").write_text("{}", encoding="utf-8")
        facts.write_text(json.dumps({"data": {book.name: "abc"}}), encoding="utf-8")
        ledger.record("demo", book, {}, ["run_facts.json"])
    assert [ledger.why("demo", book, {}) for book in books] == ["", ""]
    facts.write_text("{", encoding="utf-8")
    assert {ledger.why("demo", book, {}) for book in books} == {
        "output changed: run_facts.json"
    }
    facts.unlink()
    assert {ledger.why("demo", book, {}) for book in books} == {
        "output missing: run_facts.json"
    }
    assert ledger.upstream("demo", books) == {}


def test_a_file_that_two_notebooks_write_belongs_to_the_last_writer(
    tmp_path: Path, outputs: Path
) -> None:
    ledger, first = recorded(tmp_path, outputs)
    (outputs / "tables" / "t.csv").write_text("a\n2\n", encoding="utf-8")
    second = source(tmp_path, "02_other")
    (outputs / "notebooks" / "02_other.ipynb").write_text("{}", encoding="utf-8")
    ledger.record("demo", second, {}, ["tables/t.csv"])
    assert ledger.why("demo", first, {"code": {"cells": "c1"}}) == ""
    assert list(ledger.upstream("demo", [second])) == ["tables/t.csv"]
    assert ledger.upstream("demo", [first]) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"demo": {"01_table": {"nope": 1}}}'])
def test_an_unreadable_ledger_counts_as_empty(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(text, encoding="utf-8")
    assert Ledger(path).entry("demo", "01_table") is None


def test_difference_names_at_most_two_files_per_kind() -> None:
    new = {"library": {name: "x" for name in "abcd"}}
    assert difference({}, new) == "library changed: a, b and 2 more"
    assert difference(new, new) == ""


def test_inputs_follow_code_parameters_data_environment_and_prose(tmp_path: Path) -> None:
    environment = tmp_path / "environment.yml"
    environment.write_text("a", encoding="utf-8")
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.json").write_text("[]", encoding="utf-8")

    def inputs(book: Notebook, seeds: int = 1) -> dict[str, dict[str, str]]:
        values = {"seeds": seeds, "data_dir": str(data)}
        return notebook_inputs(book, values, sources=SourceTree(), environment=environment)

    before = inputs(source(tmp_path))
    reworded = inputs(source(tmp_path, prose="Other words."))
    assert difference(before, reworded) == "text changed: other cells"
    assert difference(before, inputs(source(tmp_path), seeds=2)) == "parameters changed: seeds"
    (data / "train.json").write_text("[1]", encoding="utf-8")
    assert difference(before, inputs(source(tmp_path))) == "data changed: train.json"
    environment.write_text("b", encoding="utf-8")
    assert "environment changed: environment.yml" in difference(before, inputs(source(tmp_path)))


def test_code_that_is_not_plain_python_is_refused(tmp_path: Path) -> None:
    book = read_notebook(notebook(tmp_path, "01_table", ["!pip install x"]))
    with pytest.raises(UserError, match="01_table.ipynb: code cell 2 is not plain Python"):
        notebook_inputs(book, {}, sources=SourceTree(), environment=Path(__file__))


def test_the_outputs_of_a_notebook_are_those_its_kernel_replaced(
    tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "written"
    assert written_outputs("demo", log) == []
    replace_text(outputs / "tables" / "of_another.csv", "")
    monkeypatch.setenv(WRITTEN, str(log))
    twice, left_out = ("tables/b.csv", "figures/a.png", "tables/b.csv"), ("measured/t", "i.html")
    for name in (*twice, *left_out, "x/y"):
        replace_text(outputs / name, "")
    replace_text(tmp_path / "elsewhere", "")
    (outputs / "x" / "y").unlink()
    assert written_outputs("demo", log) == ["figures/a.png", "tables/b.csv"]
    replace_text(outputs / "run_facts.json", "{}")
    assert written_outputs("demo", log)[1] == "run_facts.json"


def test_the_code_of_every_rival_is_among_the_causes_of_a_notebook_with_rivals() -> None:
    """They register themselves, and no study names one."""
    sources = SourceTree()
    notebook = read_notebook(paths.notebooks_dir() / "01_per_user.ipynb")
    causes = sources.closure(library_names(notebook, sources))
    assert {f"chameleon_lib.rivals.{name}" for name in ("aloe", "dpo", "llm_rec")} <= set(causes)
