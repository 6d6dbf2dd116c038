"""`python -m workshop.screens`: the README's picture of the demo's page."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.figures import few_colours
from workshop.chromium import open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAME, SIZE = "page-desktop", (1280, 900)  # file stem, window in pixels
MADE_FROM = "made_from.json"


def first_screen_digest(index: Path) -> str:
    """sha256 of the part of the index that the picture shows: its head and the main claim."""
    text = index.read_text(encoding="utf-8")
    start, end = text.find("<header>"), text.find('<section aria-labelledby="glance"')
    shown = text[max(start, 0) : end if end > 0 else None]
    return hashlib.sha256(shown.encode("utf-8")).hexdigest()


def picture_page(browser: Browser, index: Path) -> bytes:
    """The first screen of a page as PNG; the page is opened from disk, offline.

    Raises:
        UserError: if a picture of the page does not load.
    """
    page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, offline=True)
    try:
        page.goto(index.as_uri())
        broken = page.evaluate(
            "() => [...document.images].filter(i => i.complete && !i.naturalWidth).length"
        )
        if broken:
            raise UserError(f"{paths.display(index)} shows {broken} pictures that do not load.")
        return few_colours(page.screenshot())
    finally:
        page.close()


def main() -> None:
    """Picture the demo's page, and keep what it shows beside the picture."""
    folder = paths.outputs_dir("demo")
    index = folder / "index.html"
    if not index.is_file():
        raise UserError(f"There is no {paths.display(index)}: run ./run_all.sh.")
    with open_browser() as browser:
        paths.replace_bytes(folder / "screens" / f"{NAME}.png", picture_page(browser, index))
    made_from = json.dumps({"first_screen_sha256": first_screen_digest(index)}, indent=1)
    paths.replace_text(folder / "screens" / MADE_FROM, made_from + "\n")


if __name__ == "__main__":
    main()
