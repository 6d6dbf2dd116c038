"""The README's picture of the page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from workshop.screens import MADE_FROM, NAME, SIZE, first_screen_digest, picture_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_the_first_screen_is_pictured_the_same_each_time(
    browser: Browser, demo_pages: Path
) -> None:
    png = picture_page(browser, demo_pages / "index.html")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == SIZE
    assert picture_page(browser, demo_pages / "index.html") == png and len(png) < 200_000


def test_the_committed_picture_is_of_the_committed_page(committed_demo: Path) -> None:
    folder = committed_demo / "screens"
    assert [path.stem for path in folder.glob("*.png")] == [NAME]
    with Image.open(folder / f"{NAME}.png") as picture:
        assert picture.size == SIZE
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 8  # not blank
    made_from = json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))
    assert made_from["first_screen_sha256"] == first_screen_digest(committed_demo / "index.html"), (
        "the page's first screen has changed: run 'python -m workshop.screens' again"
    )
