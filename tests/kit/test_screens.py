"""Pictures: one sentence without a browser or a page; small files; nothing half-written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from chameleon_lib.kit.lab_session import Lab
from PIL import Image

from chameleon_lib.kit import cli, lab_session, paths, screens
from chameleon_lib.kit.browser import find_browser

COMMITTED = paths.root() / "outputs" / "demo" / "screens"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    index = tmp_path / "demo" / "index.html"
    paths.replace_text(index, "<html lang='en'><h1>t</h1></html>")
    return index


def test_a_missing_browser_is_one_sentence_with_the_way_out(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CHAMELEON_BROWSER", raising=False)
    monkeypatch.setenv("PATH", str(page.parent))
    assert cli.main(["screens"]) == 2
    assert capsys.readouterr().err == (
        "No Chromium was found: install one (on Debian: apt-get install chromium) "
        "or name one in CHAMELEON_BROWSER.\n"
    )
    assert not (page.parent / "screens").exists()


def test_a_browser_that_cannot_be_run_is_named(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHAMELEON_BROWSER", str(page.parent / "nothing"))
    assert cli.main(["screens"]) == 2
    assert capsys.readouterr().err.startswith("CHAMELEON_BROWSER names '")


def test_without_a_page_the_command_that_makes_one_is_named(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page.unlink()
    assert cli.main(["screens"]) == 2
    assert "run ./run_all.sh --profile demo" in capsys.readouterr().err
    assert cli.main(["page"]) == 2
    assert "holds no executed notebook" in capsys.readouterr().err


def test_the_variable_wins_over_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "my-chromium"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("CHAMELEON_BROWSER", str(mine))
    assert find_browser() == str(mine)


def test_the_lab_gets_a_copy_of_the_notebooks_and_shares_finished_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "store"))
    base = tmp_path / "base"
    base.mkdir()
    folder = lab_session._copy(base)
    copies = sorted(path.name for path in (folder / "notebooks").glob("*.ipynb"))
    assert copies == sorted(path.name for path in paths.notebooks_dir().glob("*.ipynb"))
    assert not any(path.is_symlink() for path in (folder / "notebooks").iterdir())
    assert (base / "cache" / "units").resolve() == tmp_path / "store" / "units"
    assert (folder / "chameleon_lib" / "kit").is_dir() and (folder / "run_all.sh").is_file()


def test_an_error_cell_is_named_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no such layer"}
    cells = [
        {"cell_type": "markdown", "source": "# x"},
        {"cell_type": "code", "source": "1", "outputs": [], "execution_count": 1},
        {"cell_type": "code", "source": "2", "outputs": [error], "execution_count": 2},
    ]
    paths.replace_text(tmp_path / "notebooks" / "01_x.ipynb", json.dumps({"cells": cells}))
    monkeypatch.setattr(lab_session, "_TICK", 0)

    class Page:
        class keyboard:  # noqa: N801 - playwright's own name
            press = staticmethod(lambda _: None)

    with pytest.raises(lab_session.UserError, match="Cell 2 of 01_x .* ValueError: no such layer"):
        lab_session._until_done(Lab(tmp_path, "", ""), Page(), "01_x", 1e12)  # type: ignore[arg-type]


def test_the_committed_pictures_are_those_of_the_command_and_small(committed_demo: Path) -> None:
    assert committed_demo == COMMITTED.parent
    names = sorted(path.stem for path in COMMITTED.glob("*.png"))
    assert names == sorted([screens.LAB, *(shot.name for shot in screens.SHOTS)])
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 600_000
    for shot in screens.SHOTS:
        with Image.open(io.BytesIO((COMMITTED / f"{shot.name}.png").read_bytes())) as picture:
            assert picture.size == (shot.width * shot.scale, shot.height * shot.scale)
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 8  # not blank
    made_from = json.loads((COMMITTED / screens.MADE_FROM).read_text(encoding="utf-8"))
    shown = screens.first_screen_digest(COMMITTED.parent / "index.html")
    assert made_from["first_screen_sha256"] == shown, (
        "the page's first screen has changed: run 'python -m chameleon_lib screens' again"
    )
