"""The index in a real browser: widths, pictures, dark, print, keyboard, no script."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import Opener

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDTHS = (360, 768, 1280)
SHEET = 718  # CSS pixels between the margins of an A4 sheet (210 mm, two margins of 10 mm)
# Elements that stick out of the page to the right, but for those inside a box that scrolls.
_OUTSIDE = """() => {
  const limit = document.documentElement.clientWidth + 1;
  return [...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.table-scroll, .picture, .kit-picture, .skip, .unseen'))
    .filter(e => getComputedStyle(e).position !== 'absolute' && e.checkVisibility())
    .filter(e => e.getBoundingClientRect().right > limit)
    .map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`);
}"""
_COLOURS = (
    "() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }"
)


def overflow(page: Page) -> int:
    return int(
        page.evaluate(
            "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["index.html", "html/01_per_user.html"])
def test_no_page_is_wider_than_its_window(show: Opener, name: str, width: int) -> None:
    page = show(name, width=width)
    assert overflow(page) == 0 and page.evaluate(_OUTSIDE) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_of_code_is_wider_than_its_window(
    show: Opener, code_page: str, width: int
) -> None:
    page = show(code_page, width=width)
    assert overflow(page) == 0 and page.evaluate(_OUTSIDE) == []


def test_every_picture_loads(show: Opener) -> None:
    page = show()
    page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true; })")
    pictures = page.locator("img")
    assert pictures.count() > 20
    # Lazy pictures come when they are near: ask for all, then wait for each.
    page.evaluate("() => document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
    page.wait_for_function("() => [...document.images].every(i => i.complete)")
    assert page.evaluate("() => [...document.images].filter(i => !i.naturalWidth).length") == 0


def test_pictures_that_nobody_looks_at_are_not_loaded(show: Opener) -> None:
    page = show()
    page.wait_for_load_state("networkidle")
    loaded = page.evaluate("() => [...document.images].filter(i => i.naturalWidth).length")
    assert loaded < page.locator("img").count() / 2


def test_dark_and_light_differ_as_the_reader_wants_them(show: Opener) -> None:
    light = show(color_scheme="light").evaluate(_COLOURS)
    dark = show(color_scheme="dark").evaluate(_COLOURS)
    assert light == ["rgb(29, 32, 37)", "rgb(255, 255, 255)"]
    assert dark == ["rgb(232, 234, 237)", "rgb(21, 23, 26)"]


@pytest.mark.parametrize("name", ["index.html", "html/01_per_user.html"])
def test_paper_clips_no_table(show: Opener, name: str) -> None:
    page = show(name, width=SHEET)
    page.emulate_media(media="print", color_scheme="light")
    assert overflow(page) == 0
    clipped = page.evaluate(
        "() => [...document.querySelectorAll('table')].filter(t => t.checkVisibility() &&"
        " t.getBoundingClientRect().right > document.documentElement.clientWidth + 1)"
        ".map(t => t.caption ? t.caption.textContent : t.className)"
    )
    assert clipped == []


def test_it_prints(show: Opener) -> None:
    page = show(width=SHEET)
    assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_tab_is_a_skip_link_and_the_focus_is_seen(show: Opener, scheme: str) -> None:
    page = show(color_scheme=scheme)
    page.keyboard.press("Tab")
    first = page.evaluate(
        "() => { const e = document.activeElement, b = e.getBoundingClientRect(),"
        " s = getComputedStyle(e); return [e.className, b.left >= 0 && b.top >= 0,"
        " s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2]; }"
    )
    assert first == ["skip", True, True]
    page.keyboard.press("Enter")
    assert page.evaluate("() => location.hash") == "#claim"
    page.keyboard.press("Tab")
    inside = page.evaluate("() => !!document.activeElement.closest('section')")
    assert inside, "after the skip link the keyboard is in the verdicts"


def test_without_scripts_a_mark_still_leads_to_its_number_and_its_code(
    show: Opener, code_page: str
) -> None:
    page = show(java_script_enabled=False)
    page.locator("table.glance a").first.click()
    assert page.url.endswith("#v0") and code_page
    page.locator("#v0").get_by_text("code", exact=True).click()
    assert "/html/code/" in page.url and "#" in page.url
    assert page.locator("pre").first.is_visible()
