"""Pictures of the page; that of JupyterLab takes a minute and is made by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.browser.screens import LAB, MADE_FROM, SHOTS, Shot, first_screen_digest, picture_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.name)
def test_the_first_screen_is_pictured_as_its_reader_sees_it(
    browser: Browser, demo_pages: Path, shot: Shot
) -> None:
    png = picture_page(browser, demo_pages / "index.html", shot)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (shot.width * shot.scale, shot.height * shot.scale)
        corner = picture.convert("L").getpixel((2, picture.height - 2))
    assert isinstance(corner, int) and (corner < 64) == (shot.scheme == "dark")
    assert picture_page(browser, demo_pages / "index.html", shot) == png and len(png) < 200_000


def test_the_committed_pictures_are_of_the_committed_page_and_small(committed_demo: Path) -> None:
    folder = committed_demo / "screens"
    names = sorted(path.stem for path in folder.glob("*.png"))
    assert names == sorted([LAB, *(shot.name for shot in SHOTS)])
    assert sum(path.stat().st_size for path in folder.iterdir()) < 600_000
    for shot in SHOTS:
        with Image.open(folder / f"{shot.name}.png") as picture:
            assert picture.size == (shot.width * shot.scale, shot.height * shot.scale)
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 8  # not blank
    made_from = json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))
    assert made_from["first_screen_sha256"] == first_screen_digest(committed_demo / "index.html"), (
        "the page's first screen has changed: run 'python -m tests.browser.screens' again"
    )
