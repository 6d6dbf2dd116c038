"""`python -m tests.browser.screens [--page-only]`: picture page, and JupyterLab after Run All."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.figures import few_colours
from tests.browser.chromium import open_browser
from tests.browser.jupyterlab import errors, run_in_lab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NOTEBOOK = "01_per_user.ipynb"
MINUTES = 30  # for a Run All that finds nothing in the store


@dataclass(frozen=True)
class Shot:
    """One picture of the index page's first screen.

    Attributes:
        name: file stem.
        width, height: size of the window in CSS pixels.
        scheme: what the reader's system prefers.
        scale: picture pixels per CSS pixel.
    """

    name: str
    width: int
    height: int
    scheme: Literal["light", "dark"] = "light"
    scale: int = 1


SHOTS = (
    Shot("page-desktop", 1280, 900),
    Shot("page-phone", 390, 844, scale=2),
    Shot("page-dark", 1280, 900, "dark"),
)
LAB = "lab-after-run-all"
MADE_FROM = "made_from.json"


def first_screen_digest(index: Path) -> str:
    """sha256 of the part of the index that the pictures show: its head and the main claim."""
    text = index.read_text(encoding="utf-8")
    start, end = text.find("<header>"), text.find('<section aria-labelledby="glance"')
    shown = text[max(start, 0) : end if end > 0 else None]
    return hashlib.sha256(shown.encode("utf-8")).hexdigest()


def picture_page(browser: Browser, index: Path, shot: Shot) -> bytes:
    """The first screen of a page as PNG; the page is opened from disk, offline.

    Raises:
        UserError: if a picture of the page does not load.
    """
    page = browser.new_page(
        viewport={"width": shot.width, "height": shot.height},
        device_scale_factor=shot.scale,
        color_scheme=shot.scheme,
        offline=True,
    )
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


def picture_lab(browser: Browser) -> bytes:
    """JupyterLab after Run All of a notebook, as PNG; sources and outputs stay as they are."""
    with tempfile.TemporaryDirectory(prefix="chameleon-lab-") as temporary:
        scratch = Path(temporary).resolve()
        folder = shutil.copytree(paths.notebooks_dir(), scratch / "notebooks")
        if found := errors(run_in_lab(browser, folder / NOTEBOOK, scratch, 60 * MINUTES)):
            raise UserError(f"{NOTEBOOK} in JupyterLab: {found[0]}.")
        return (scratch / "lab.png").read_bytes()


def main(*, page_only: bool) -> None:
    """Make all pictures of the demo and keep them in outputs/demo/screens/.

    Args:
        page_only: leave JupyterLab out, which wants a store that holds the demo run.

    Raises:
        UserError: no page, or a notebook that does not run to its end in JupyterLab.
    """
    folder = paths.outputs_dir("demo")
    index = folder / "index.html"
    if not index.is_file():
        raise UserError(f"There is no {paths.display(index)}: run ./run_all.sh.")
    with open_browser() as browser:
        pictures = {shot.name: picture_page(browser, index, shot) for shot in SHOTS}
        if not page_only:
            pictures[LAB] = few_colours(picture_lab(browser))
    # All or nothing: a failure above leaves the pictures that were there.
    for name, png in pictures.items():
        paths.replace_bytes(folder / "screens" / f"{name}.png", png)
    made_from = json.dumps({"first_screen_sha256": first_screen_digest(index)}, indent=1)
    paths.replace_text(folder / "screens" / MADE_FROM, made_from + "\n")
    print(f"{len(pictures)} pictures in {paths.display(folder / 'screens')}")


if __name__ == "__main__":
    main(page_only="--page-only" in sys.argv[1:])
