"""What a reader gives gets into no committed file, by whatever door the notebooks are run."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest

from chameleon_lib.core.task import HistoryItem, Query, User, official_input
from chameleon_lib.data.lamp import write_lamp
from chameleon_lib.kit import paths
from chameleon_lib.kit.notebooks import Notebook, discover, tags_of, text_of
from chameleon_lib.kit.plan import Run
from chameleon_lib.kit.profiles import PUBLIC, for_data, get_profile
from chameleon_lib.kit.sources import own_sources
from chameleon_lib.serving.store import ProfileStore
from tests.kit.checkout import Checkout, environment, notebook

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


PERSON, SAYING = "zo\u00eb@mail.invalid", "The tent was quiet for my sister Klara in G\u00f6rlitz"
PARAMETERS = """profile: str = "demo"  # run profile
table: str = ""  # your table
query: str = ""  # what you ask"""
YOURS = """from pathlib import Path
from chameleon_lib.kit import paths
from chameleon_lib.kit.profiles import for_data, get_profile
run_profile = get_profile(for_data(profile, bool(table), own=bool(table or query)))
text = Path(table).read_text(encoding="utf-8") if table else query
paths.replace_text(paths.tables_dir(run_profile.name) / "t.csv", text)
print(text)"""


@pytest.fixture
def project(tmp_path: Path) -> Checkout:
    """A project in git with a committed demo run of one notebook that takes a table or a query."""
    (tmp_path / "project").mkdir()
    checkout = Checkout(tmp_path / "project")
    path = notebook(checkout.notebooks, "08_yours", [YOURS], parameters=PARAMETERS)
    book = nbformat.read(path, as_version=4)
    book.metadata["chameleon"] = {"reader": ["table", "query"]}
    nbformat.write(book, path)
    shutil.copy(paths.root() / ".gitignore", checkout.base)
    assert checkout.call("run").returncode == 0
    commit(checkout.base)
    return checkout


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True,
                          text=True).stdout  # fmt: skip


def commit(folder: Path) -> None:
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=n", "-c", "user.email=e@x.invalid", "commit", "-qm", "demo")


def through_lab(project: Checkout, table: Path) -> None:
    """What a reader does in JupyterLab: open the copy, type a table, run all cells, save."""
    code = "from chameleon_lib.kit.kernels import own_notebooks; print(own_notebooks())"
    env = environment(PYTHONPATH=str(project.base))
    made = subprocess.run([sys.executable, "-c", code], cwd=project.base, env=env, check=True,
                          capture_output=True, text=True)  # fmt: skip
    path = Path(made.stdout.strip()) / "08_yours.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[1].source = PARAMETERS.replace('table: str = ""', f"table: str = {str(table)!r}")
    nbformat.write(book, path)
    by_hand(project, path, path)


def by_hand(project: Checkout, source: Path, target: Path, *words: str) -> None:
    command = [sys.executable, "-m", "papermill", str(source), str(target), *words]
    env = environment(PYTHONPATH=str(project.base), JUPYTER_PLATFORM_DIRS="1")
    subprocess.run(command, cwd=project.base, env=env, check=True, capture_output=True)


def holding(folder: Path, texts: Sequence[str]) -> set[str]:
    """What of a project, outside its history, has a file with one of the texts."""
    needles = [spelt.encode() for text in texts for spelt in (text, json.dumps(text)[1:-1])]
    files = [p for p in folder.rglob("*") if p.is_file() and ".git" not in p.parts]
    return {p.relative_to(folder).parts[0] for p in files
            if any(needle in p.read_bytes() for needle in needles)}  # fmt: skip


def test_git_sees_nothing_of_a_person_by_any_door_and_after_forget_nothing_is_left(
    project: Checkout, tmp_path: Path
) -> None:
    people = tmp_path / "people.csv"
    people.write_text(f"\ufeffuser,text,label\n{PERSON},{SAYING},5\n", encoding="utf-8")
    for given in (f"table={people}", f"query={PERSON}: {SAYING}"):
        result = project.call("run", "--only", "08", "--set", given)
        assert result.returncode == 0, result.stderr
    by_hand(project, project.notebooks / "08_yours.ipynb", tmp_path / "out.ipynb",
            "-p", "table", str(people))  # fmt: skip
    through_lab(project, people)
    (project.base / ".chameleon" / "imported").mkdir()  # as the kit keeps what it has imported
    shutil.copy(people, project.base / ".chameleon" / "imported" / "dev_questions.json")
    assert git(project.base, "status", "--porcelain") == ""
    runs = [run for run in (project.base / "outputs").iterdir() if run.name != "demo"]
    assert {run.name for run in runs} == {"demo-data", "demo-own"}

    names = (PERSON, "Klara", "G\u00f6rlitz")
    assert holding(project.base, names) == {"outputs", ".chameleon", "my_notebooks"}
    own = project.base / "my_notebooks"
    done = ProfileStore(tmp_path / "profiles").forget(
        PERSON, cache=project.base / ".chameleon", outputs=runs, beside={own: "look there"}
    )
    assert holding(project.base, names) == {"my_notebooks"} and done.left == {own: "look there"}
    assert git(project.base, "status", "--porcelain") == ""


def lamp_folder(folder: Path) -> str:
    """A reader's own LaMP files: sixteen people, one of whom is the planted one."""
    users = []
    for at in range(16):
        texts = [f"{SAYING}, and lamp {at}-{k} came late" for k in range(5)]
        items = tuple(
            HistoryItem(f"{k}", text, str(1 + (at + k) % 5)) for k, text in enumerate(texts)
        )
        asked = f"My kettle {at} boils fast"
        query = Query(f"2{at:03}", asked, official_input("LaMP_3", asked), str(1 + at % 5))
        users.append(User(f"person {at}", "LaMP_3", items, (query,)))
    write_lamp(users, folder / "LaMP_3", "dev")
    return str(folder)


@pytest.mark.slow
def test_the_real_project_stays_clean_after_a_run_on_a_readers_lamp_files(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in filter(None, git(paths.root(), "ls-files", "-z").split("\0")):
        if (source := paths.root() / name).is_file():  # one may be deleted and not yet committed
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, project / name)
    commit(project)
    command = [sys.executable, "-m", "chameleon_lib", "run", "--only", "00",
               "--data", lamp_folder(tmp_path / "lamp"), "--set", "task=LaMP_3"]  # fmt: skip
    result = subprocess.run(command, cwd=project, env=environment(), check=False,
                            capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (project / "outputs" / "demo-data" / "index.html").is_file()
    read = holding(project, [f"{SAYING}, and lamp"])
    assert "outputs" in read and read <= {"outputs", ".chameleon"}
    assert git(project, "status", "--porcelain") == ""
