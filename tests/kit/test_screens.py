"""Pictures: one sentence without a browser or a page; small files; nothing half-written."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from chameleon_lib.kit import cli, paths, screens
from chameleon_lib.kit.browser import find_browser
from chameleon_lib.kit.profiles import PUBLIC

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


@pytest.mark.parametrize("profile", sorted({*PUBLIC} - {"demo"}))
def test_the_demo_in_jupyterlab_is_not_pictured_beside_the_page_of_another_profile(
    page: Path, profile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = page.parent.parent / profile / "index.html"
    paths.replace_text(own, "<html lang='en'><h1>t</h1></html>")
    monkeypatch.setattr(screens, "find_browser", lambda: "")
    monkeypatch.setattr(screens, "open_browser", contextlib.nullcontext)
    monkeypatch.setattr(screens, "picture_page", lambda *_: b"png")
    assert cli.main(["screens", "--profile", profile]) == 2
    assert capsys.readouterr().err == (
        "The picture of JupyterLab shows a demo run, which does not belong beside the page of "
        f"{profile}: give --page-only.\n"
    )
    assert not (own.parent / "screens").exists()
    assert cli.main(["screens", "--profile", profile, "--page-only"]) == 0
    pictures = sorted(path.stem for path in (own.parent / "screens").glob("*.png"))
    assert pictures == sorted(shot.name for shot in screens.SHOTS)


def test_the_variable_wins_over_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "my-chromium"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("CHAMELEON_BROWSER", str(mine))
    assert find_browser() == str(mine)


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
