from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.kit.paths import notebooks_dir, root
from tests.kit.checkout import notebook
from tests.kit.notebook_lint import lint_executed, lint_source

SOURCES = sorted(notebooks_dir().glob("*.ipynb"))
EXECUTED = sorted((root() / "outputs" / "demo" / "notebooks").glob("*.ipynb"))
Change = Callable[[dict[str, Any]], object]


def test_there_are_notebooks_to_lint() -> None:
    assert SOURCES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_source_notebook_keeps_the_rules(path: Path) -> None:
    assert lint_source(path) == []


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_a_committed_executed_notebook_keeps_the_rules(path: Path) -> None:
    if ".partial" not in path.name:
        assert lint_executed(path) == []


def changed(path: Path, change: Change) -> Path:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_well_kept_notebook_has_no_problems(tmp_path: Path) -> None:
    assert lint_source(notebook(tmp_path, "01_table", ["x = 1"])) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda n: n["cells"][2].update(outputs=[{"output_type": "stream"}]), "holds outputs"),
        (lambda n: n["metadata"]["kernelspec"].update(name=".venv"), "kernel is not python3"),
        (lambda n: n["cells"][2].update(id="claim"), "ids are not unique"),
        (lambda n: n["cells"][2].update(source="open('/home/me/x')"), "path of some machine"),
        (lambda n: n["cells"][2].update(source="save_figure(f, 'a', alt='x')"), "['caption']"),
        (lambda n: n["cells"][2].update(source="%pip list"), "not plain Python"),
        (lambda n: n["cells"][2].update(source="while True: step()"), "while loop"),
        (lambda n: n["cells"][0].update(source="# Title"), "name the paper's section"),
        (lambda n: n["cells"][1]["metadata"].update(tags=[]), "exactly one cell"),
        (lambda n: n["cells"][1].update(source='profile: str = "demo"'), "one line of help"),
        (lambda n: n["cells"][1].update(source="k: int = 'a'  # k"), "is not a int"),
        (lambda n: n["cells"][2]["metadata"].update(tags=["skip_execution"]), "unknown tags"),
        (lambda n: n["cells"].extend(n["cells"] * 9), "more than 28"),
        (lambda n: n["metadata"].update(papermill={}), "papermill"),
    ],
)
def test_each_broken_rule_is_named(tmp_path: Path, change: Change, problem: str) -> None:
    path = changed(notebook(tmp_path, "01_table", ["x = 1"]), change)
    assert any(problem in text for text in lint_source(path))


def test_a_notebook_that_takes_files_may_not_save_under_the_name_that_was_asked(
    tmp_path: Path,
) -> None:
    declared = 'profile: str = "demo"  # run profile\ndata_dir: str = ""  # folder of files'
    good = ["run_profile = get_profile(for_data(profile, bool(data_dir)))", "f(run_profile.name)"]
    assert lint_source(notebook(tmp_path, "01_table", good, parameters=declared)) == []
    for bad in ("get_profile(profile)", 'print(f"({profile} profile)")', "save(x, profile)"):
        [problem] = lint_source(notebook(tmp_path, "01_table", [bad], parameters=declared))
        assert "reads profile" in problem


def test_an_unnumbered_notebook_is_named(tmp_path: Path) -> None:
    assert "NN_words" in lint_source(notebook(tmp_path, "Table", []))[0]


def ran(notebook: dict[str, Any], **output: Any) -> None:
    for number, cell in enumerate(notebook["cells"][1:], start=1):
        cell.update(execution_count=number)
    notebook["cells"][2]["outputs"] = [output] if output else []


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ({"output_type": "error", "ename": "ValueError", "text": ""}, "ended in ValueError"),
        ({"output_type": "stream", "text": ["see /home/me/x\n"]}, "path of some machine"),
        (
            {"output_type": "display_data", "data": {"image/png": "x"}, "metadata": {}},
            "has no alt",
        ),
    ],
)
def test_each_flaw_of_an_executed_notebook_is_named(
    tmp_path: Path, output: dict[str, Any], problem: str
) -> None:
    path = notebook(tmp_path, "01_table", ["x = 1"])
    assert "never ran" in lint_executed(path)[0]
    assert lint_executed(changed(path, lambda n: ran(n))) == []
    assert any(problem in text for text in lint_executed(changed(path, lambda n: ran(n, **output))))
