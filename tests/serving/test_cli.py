from __future__ import annotations

from pathlib import Path

import pytest

from chameleon_lib.cli import main
from chameleon_lib.kit import paths
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.serving.store import ProfileStore
from tests.serving.small import USERS, profile

ALICE = USERS[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = ProfileStore(tmp_path / "profiles")
    store.save(ALICE, profile())
    store.save("movies", profile(1, USERS))
    units = ArtifactStore(tmp_path / "cache" / "units")
    units.get_or_compute("insights", ALICE, lambda: "Likes the long way home.")
    (tmp_path / "outputs" / "tables").mkdir(parents=True)
    (tmp_path / "outputs" / "tables" / "t.csv").write_text("insight\nLikes the long way home.\n")
    return tmp_path


def run(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Standard output of a command that went well."""
    assert main(["profiles", *words, "--store", str(folder / "profiles")]) == 0
    return capsys.readouterr().out


def test_list_and_show_say_what_is_there_without_naming_a_user(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(folder, capsys, "list")
    assert "one user, LaMP_3, small-mistral-0" in said and "2 profiles" in said
    assert "group 'movies' of 3" in said and ALICE not in said
    said = run(folder, capsys, "show", ALICE)
    assert '"layers": [' in said and '"ccs_tries": 2' in said


def test_forget_says_what_is_gone_and_what_is_left_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cache", str(folder / "cache"), "--outputs", str(folder / "outputs")]
    said = run(folder, capsys, "forget", ALICE, *options)
    assert "Removed 1 profiles; copies" in said and "Emptied 2 folders; a run fills" in said
    assert "Fit these groups again without the user: movies." in said and "data files" in said
    assert not [*(folder / "outputs").iterdir(), *(folder / "cache").iterdir()]
    said = run(folder, capsys, "forget", ALICE, *options)
    assert "Nothing of this user was found." in said
    assert "wait for a new fit since earlier: movies." in said
    assert "1 forgotten, fit it again" in run(folder, capsys, "list")


def test_forget_names_every_other_run_and_takes_all_of_them_by_their_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = folder / "runs"
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(runs))
    monkeypatch.setenv("CHAMELEON_CACHE", str(folder / "cache"))
    monkeypatch.setattr(paths, "own_notebooks_dir", lambda: folder / "mine")
    for name in ("demo/tables/t.csv", "demo-data/html/08.html", "laptop-own/tables/t.csv"):
        paths.replace_text(runs / name, "Likes the long way home.")
    paths.replace_text(folder / "mine" / "08.ipynb", "Likes the long way home.")
    said = run(folder, capsys, "forget", ALICE)
    lines = [line for line in said.splitlines() if "may hold texts of the user" in line]
    assert [line.partition(": ")[2] for line in lines] == [
        "repeat with --cache.", "look there.", *["repeat with --outputs."] * 2,
    ]  # fmt: skip
    options = ["--cache", str(folder / "cache"), "--outputs", str(runs)]
    said = run(folder, capsys, "forget", ALICE, *options)
    assert "Emptied 3 folders" in said and said.count("may hold texts") == 1
    assert [path.parent.parent.name for path in runs.rglob("*.*") if path.is_file()] == ["demo"]


def test_forget_fails_where_it_cannot_be_complete(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ProfileStore(folder / "profiles").files.path_of("movies")
    path.write_text("{")
    assert main(["profiles", "forget", ALICE, "--store", str(folder / "profiles")]) == 1
    assert f"{path} is damaged and may be the user's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["list"], "Missing option '--store'"),
        (["burn", "--store", "{}"], "No such command 'burn'"),
        (["list", "--store", "{}/nowhere"], "There is no profile store {}/nowhere"),
        (["show", "nobody", "--store", "{}/profiles"], "There is no profile of 'nobody' in"),
        (["forget", ALICE, "--store", "{}/profiles", "--cache", "{}/none"], "There is no folder"),
    ],
)
def test_bad_words_are_refused_in_one_sentence(
    words: list[str], start: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profiles", *(word.format(folder) for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(start.format(folder)) and said.count("\n") == 1
