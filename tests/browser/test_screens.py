"""The screens command, for the page; JupyterLab's part takes a minute and is run by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from chameleon_lib.kit.screens import SHOTS, Shot, picture_page

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
