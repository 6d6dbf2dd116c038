"""One Chromium for all browser tests; without one they are skipped, and say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from workshop.chromium import open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Opener = Callable[..., "Page"]


@pytest.fixture(scope="package")  # its event loop would run on under the tests of other folders
def browser() -> Iterator[Browser]:
    opened = open_browser()
    try:
        started = opened.__enter__()
    except (RuntimeError, ImportError) as error:
        pytest.skip(str(error))
    try:
        yield started
    finally:
        opened.__exit__(None, None, None)


@pytest.fixture
def code_page(demo_pages: Path) -> str:
    """Name of a page of library code, below outputs/demo."""
    pages = sorted((demo_pages / "html" / "code").glob("*.html"))
    if not pages:
        pytest.skip("no result of the committed run names the code that made it")
    return f"html/code/{pages[0].name}"


@pytest.fixture
def show(browser: Browser, demo_pages: Path) -> Iterator[Opener]:
    """Opens a page of the demo, by its name below outputs/demo, from disk and offline."""
    opened: list[Page] = []

    def show(name: str = "index.html", *, width: int = 1280, **options: Any) -> Page:
        # A page that wanted the network would fail here, and its pictures with it.
        page = browser.new_page(
            viewport={"width": width, "height": 900}, offline=True, **options
        )
        opened.append(page)
        page.set_default_timeout(60_000)
        path, _, anchor = name.partition("#")
        page.goto((demo_pages / path).as_uri() + (f"#{anchor}" if anchor else ""))
        return page

    yield show
    for page in opened:
        page.close()
