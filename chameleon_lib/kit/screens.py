"""`python -m chameleon_lib screens`: pictures of the page, and of JupyterLab after Run All."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from chameleon_lib.command_line import Parser, positive
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.browser import find_browser, open_browser
from chameleon_lib.kit.figures import few_colours
from chameleon_lib.kit.lab_browser import run_all_cells
from chameleon_lib.kit.profiles import PUBLIC

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

NOTEBOOK = "01_per_user"
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


def main(argv: Sequence[str]) -> int:
    """Make all pictures of a profile and keep them in outputs/<profile>/screens/.

    Args:
        argv: command line without the program and command name.

    Returns:
        0.

    Raises:
        UserError: no browser, no page, JupyterLab asked for beside the page of another profile
            than the demo, or a notebook that does not run to its end in JupyterLab.
    """
    parser = Parser(
        prog="python -m chameleon_lib screens",
        description="Picture the page (desktop, phone, dark) and JupyterLab after Run All.",
        allow_abbrev=False,
    )
    parser.add_argument("--profile", choices=PUBLIC, default="demo", help="whose page")
    parser.add_argument(
        "--page-only", action="store_true", help="leave JupyterLab out, which shows the demo"
    )
    parser.add_argument(
        "--minutes", type=positive, default=MINUTES, metavar="N", help="patience with Run All"
    )
    options = parser.parse_args(argv)
    if options.profile != "demo" and not options.page_only:
        # `run_all_cells` runs a notebook as it is stored, and that is a demo run.
        raise UserError(
            f"The picture of JupyterLab shows a demo run, which does not belong beside the page of "
            f"{options.profile}: give --page-only."
        )
    folder = paths.outputs_dir(options.profile)
    index = folder / "index.html"
    if not index.is_file():
        raise UserError(
            f"There is no {paths.display(index)}: run ./run_all.sh --profile {options.profile}."
        )
    find_browser()  # before any minute is spent
    pictures: dict[str, bytes] = {}
    with open_browser() as browser:
        for shot in SHOTS:
            pictures[shot.name] = picture_page(browser, index, shot)
        if not options.page_only:
            print(f"JupyterLab: {NOTEBOOK}, Run All", file=sys.stderr)
            done = run_all_cells(browser, NOTEBOOK, seconds=60 * options.minutes)
            print(f"{done.cells} cells, no error, {done.seconds:.0f} s", file=sys.stderr)
            pictures[LAB] = few_colours(done.picture)
    # All or nothing: a failure above leaves the pictures that were there.
    for name, png in pictures.items():
        paths.replace_bytes(folder / "screens" / f"{name}.png", png)
        print(f"{paths.display(folder / 'screens' / name)}.png, {len(png) // 1000} KB")
    made_from = json.dumps({"first_screen_sha256": first_screen_digest(index)}, indent=1)
    paths.replace_text(folder / "screens" / MADE_FROM, made_from + "\n")
    return 0
