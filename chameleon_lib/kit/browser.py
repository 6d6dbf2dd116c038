"""A Chromium that is there already: found, started, or missed in one sentence."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from chameleon_lib.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VARIABLE = "CHAMELEON_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = ("--disable-gpu", "--no-first-run", "--disable-background-networking")
_HOW = f"install one (on Debian: apt-get install chromium) or name one in {VARIABLE}"


def find_browser() -> str:
    """The path of a Chromium: what CHAMELEON_BROWSER names, else the first on the path.

    Raises:
        UserError: if there is none, or the variable names something that cannot be run.
    """
    named = os.environ.get(VARIABLE, "")
    if named:
        found = shutil.which(named)
        if found is None:
            raise UserError(f"{VARIABLE} names '{named}', which cannot be run.")
        return found
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise UserError(f"No Chromium was found: {_HOW}.")


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start the browser without a window, and end it.

    Raises:
        UserError: no browser, no playwright, or a browser that does not start.
    """
    executable = find_browser()
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise UserError(
            "playwright drives the browser and is not installed: pip install the version that "
            "environment.yml names."
        ) from error
    # A browser refuses its own sandbox to root, which is who runs inside a container.
    flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=executable, args=flags)
        except Error as error:
            first = str(error).splitlines()[0]
            raise UserError(f"The browser {executable} did not start ({first}).") from error
        try:
            yield browser
        finally:
            browser.close()
