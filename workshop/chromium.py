"""A Chromium that is there already."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VARIABLE = "CHAMELEON_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start the browser that CHAMELEON_BROWSER names, else the first on the path, and end it.

    Raises:
        RuntimeError: there is none.
        ImportError: playwright, which drives it, is not installed.
    """
    named = os.environ.get(VARIABLE)
    executable = next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
    if executable is None:
        raise RuntimeError(f"No Chromium was found: install one or name one in {VARIABLE}.")
    from playwright.sync_api import sync_playwright

    flags = ["--disable-gpu", "--no-first-run", "--disable-background-networking"]
    # A browser refuses its own sandbox to root, which is who runs inside a container.
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=flags)
        try:
            yield browser
        finally:
            browser.close()
