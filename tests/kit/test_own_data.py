"""What a reader gives gets into no committed file, by whatever door the notebooks are run."""

from __future__ import annotations

import ast
import subprocess
from typing import Any

import pytest

from chameleon_lib.kit import paths
from chameleon_lib.kit.notebooks import Notebook, discover, tags_of, text_of
from chameleon_lib.kit.plan import Run
from chameleon_lib.kit.profiles import PUBLIC, for_data, get_profile
from chameleon_lib.kit.sources import own_sources

MINE: dict[str, dict[str, Any]] = {
    "08": {"table": "people.csv", "query": "What would Zoë say?"},
    "09": {"history": [["My sister's film", "comedy"]], "query": "What would Zoë say?"},
}
DOORS = [(number, name) for number, given in MINE.items() for name in given]
BOOKS = {book.number: book for book in discover(paths.notebooks_dir())}


def profile_of(book: Notebook, **values: Any) -> str:
    """The run that a notebook takes itself for, in a kernel of JupyterLab or papermill."""
    parameters, first = (
        next(cell for cell in book.runnable() if ("parameters" in tags_of(cell)) is wanted)
        for wanted in (True, False)
    )
    names: dict[str, Any] = {}
    exec(text_of(parameters), names)  # noqa: S102
    names |= values
    lines = ast.parse(text_of(first)).body
    until = next(at for at, line in enumerate(lines) if "run_profile =" in ast.unparse(line))
    exec(compile(ast.Module(lines[: until + 1], []), book.name, "exec"), names)  # noqa: S102
    return str(names["run_profile"].name)


def ignored(path: str) -> bool:
    return subprocess.run(["git", "check-ignore", "-q", path], cwd=paths.root()).returncode == 0


@pytest.mark.parametrize("profile", PUBLIC)
@pytest.mark.parametrize(("number", "name"), DOORS)
def test_a_run_on_what_a_reader_gave_has_a_name_of_its_own_by_every_door(
    number: str, name: str, profile: str
) -> None:
    given = {name: MINE[number][name]}
    driven = Run(profile, given, [number], library=own_sources()).profile.name
    assert driven not in PUBLIC and get_profile(driven).banner != get_profile(profile).banner
    assert profile_of(BOOKS[number], profile=profile, **given) == driven
    # What the driver injects leads to the same name.
    assert profile_of(BOOKS[number], profile=driven, **given) == driven
    assert ignored(f"outputs/{driven}/notebooks/{BOOKS[number].name}.ipynb")
    assert ignored(f"my_notebooks/{BOOKS[number].name}.ipynb")


@pytest.mark.parametrize("number", MINE)
def test_the_examples_stay_in_the_committed_run(number: str) -> None:
    assert profile_of(BOOKS[number]) == "demo" == Run("demo", {}, [number]).profile.name
    declared = BOOKS[number].parameters()
    same = {name: declared[name].default for name in MINE[number]}
    assert Run("demo", same, [number], library=own_sources()).profile.name == "demo"
    assert not ignored("outputs/demo/index.html")


def test_a_folder_of_files_is_as_before() -> None:
    assert [for_data(name, True) for name in PUBLIC] == ["demo-data", *PUBLIC[1:]]
    assert for_data("paper", True, "4bit", own=True) == "paper-4bit-own"
    for book in BOOKS.values():
        if "data_dir" in book.parameters():
            assert profile_of(book, data_dir="somewhere") == "demo-data"
