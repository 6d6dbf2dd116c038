"""From tables and verdicts to the calls that made them, read from a notebook's own code."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.code_pages import write_code_pages
from chameleon_lib.kit.page import page_problems
from chameleon_lib.kit.report import build
from chameleon_lib.kit.trail import Function, Trail, read_trail

IMPORTS = """from chameleon_lib.kit.tables import save_table
from chameleon_lib.sections import provenance
from chameleon_lib.sections.loading import settings_for
from chameleon_lib.sections.per_user import study as per_user
from chameleon_lib.sections.per_user import tables as table1
from chameleon_lib.sections.per_user.details import floors
run = per_user.run(profile, settings_for(profile))
"""


def trail(folder: Path, *cells: str, skipped: str = "pass") -> Trail:
    new = nbformat.v4
    book = new.new_notebook(cells=[new.new_code_cell(text) for text in (IMPORTS, *cells)])
    book.cells.insert(0, new.new_markdown_cell("# Users"))
    book.cells.append(new.new_code_cell(skipped, metadata={"tags": ["skip-execution"]}))
    nbformat.write(book, folder / "01_x.ipynb")
    return read_trail(folder / "01_x.ipynb")


def labels(functions: tuple[Function, ...]) -> list[str]:
    return [function.label for function in functions]


def test_a_verdict_is_followed_through_names_loops_and_comprehensions(tmp_path: Path) -> None:
    found = trail(
        tmp_path,
        "claims = {task: table1.effects(run, task) for task in run.data}\nprovenance.show(run)",
        "parts = {}\nfor task, part in claims.items():\n    parts[task] = table1.verdicts(part)\n"
        "every = [v for p in parts.values() for v in p]\nsave_verdicts(every, '01', profile)",
    )
    expected = ["per_user.study.run", "per_user.tables.effects", "per_user.tables.verdicts"]
    assert labels(found.verdicts) == expected


def test_a_table_has_the_pattern_that_fits_it_best(tmp_path: Path) -> None:
    found = trail(
        tmp_path,
        "for task in run.data:\n"
        "    frame = table1.results(run, task)\n"
        "    save_table(frame, f'table1_{task}', profile, 'x')\n"
        "    save_table(floors(run, task), f'table1_{task}_floors', profile, 'x')",
    )
    assert labels(found.of_table("table1_LaMP_2"))[-1] == "per_user.tables.results"
    assert labels(found.of_table("table1_LaMP_2_floors"))[-1] == "per_user.details.floors"
    assert found.of_table("table2_LaMP_2") == ()
    assert found.computing("tables/table2.csv") is None


def test_the_number_of_a_verdict_is_made_where_it_and_its_table_part(tmp_path: Path) -> None:
    shared = trail(
        tmp_path,
        "found = table1.effects(run)\nsave_table(table1.by_model(found), 't', profile, 'x')\n"
        "save_verdicts(table1.verdicts(run, found), '01', profile)",
    )
    assert shared.computing("tables/t.csv") == Function("per_user.tables", "effects")
    apart = trail(
        tmp_path,
        "save_table(table1.by_model(run), 't', profile, 'x')\n"
        "save_verdicts(table1.verdicts(run), '01', profile)",
    )
    assert apart.computing("tables/t.csv") == Function("per_user.tables", "by_model")


def test_what_no_kernel_ran_and_what_is_no_python_counts_for_nothing(tmp_path: Path) -> None:
    found = trail(
        tmp_path, "%time save_table(run, 'a', profile, 'x')",
        skipped="save_table(table1.results(run), 'b', profile, 'x')",
    )  # fmt: skip
    assert found == Trail()


def test_the_code_of_a_function_is_a_page_with_its_name_as_anchor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    stale = tmp_path / "demo" / "html" / "code" / "gone.html"
    paths.replace_text(stale, "old")
    trail(tmp_path, "save_table(table1.effects(run), 't', profile, 'x')")
    executed = paths.executed_dir("demo") / "01_x.ipynb"
    text = (tmp_path / "01_x.ipynb").read_text(encoding="utf-8")
    paths.replace_text(executed, text)
    build("demo")
    page = tmp_path / "demo" / "html" / "code" / "per_user.tables.html"
    html = page.read_text(encoding="utf-8")
    assert page_problems(html) == [] and not stale.exists()
    source = paths.package_dir() / "sections" / "per_user" / "tables.py"
    lines = source.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if line.startswith("def effects("))
    block = html.split('id="effects">')[1]
    assert block.split("</i>")[0].endswith(str(number)) and ">effects<" in block.split("\n")[0]
    notebook = (tmp_path / "demo" / "html" / "01_x.html").read_text(encoding="utf-8")
    assert 'href="code/per_user.tables.html#effects"' in notebook


@pytest.mark.parametrize("function", [Function("per_user.nowhere", "f"), Function("claims", "f")])
def test_a_function_that_the_library_lacks_is_one_sentence(function: Function) -> None:
    import jinja2

    with pytest.raises(UserError, match=f"A notebook calls {function.module}"):
        write_code_pages([function], "demo", jinja2.Environment())
