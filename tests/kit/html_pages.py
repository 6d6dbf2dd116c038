"""Pages as a reader's browser takes them: links, anchors, what they load, whom they shut out."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup, Tag

_EXTERNAL = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//|\s*(?:javascript|file|ftp):", re.I)
_CSS_LOAD = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+(?:url\()?\s*['\"]?([^'\");]+)", re.I)
_LOADING = {"src", "href", "srcset", "poster", "data", "action", "xlink:href", "background"}
_FORBIDDEN = ["script", "iframe", "object", "embed", "base"]


def page_problems(html: str) -> list[str]:
    """List what keeps a page from being self-contained and accessible; empty means fine.

    Checked: scripts, frames and inline handlers; external src, href (but not links to click),
    srcset, url(...) and @import; images without alt text; a missing language; headings that do
    not start at h1, have several h1 or skip a level.
    """
    page = BeautifulSoup(html, "html.parser", multi_valued_attributes=None)
    found = [f"<{tag.name}> is not allowed" for tag in page.find_all(_FORBIDDEN)]
    css = [style.get_text() for style in page("style")]
    for tag in page.find_all(True):
        if tag.name == "img" and not str(tag.get("alt", "")).strip():
            found.append(f"{str(tag)[:80]} has no alt text")
        for name, value in tag.attrs.items():
            # A link the reader may click loads nothing by itself; everything else does.
            clicked = tag.name == "a" and re.match(r"\s*https?://", value, re.I)
            if name.startswith("on"):
                found.append(f"<{tag.name}> runs a script in {name}")
            elif name in _LOADING and not clicked and any(map(_EXTERNAL.match, value.split(","))):
                found.append(f"<{tag.name}> loads {value[:80]!r}")
        css.append(str(tag.get("style", "")))
    for match in _CSS_LOAD.finditer(re.sub(r"/\*.*?\*/", "", "\n".join(css), flags=re.S)):
        if match.group(2) or _EXTERNAL.match(match.group(1)):
            found.append(f"a style loads {match.group()[:80]!r}")
    if not (page.html and page.html.get("lang")):
        found.append("<html> has no lang attribute")
    levels = [int(str(tag.name)[1]) for tag in page.find_all(re.compile("^h[1-6]$"))]
    if levels.count(1) != 1 or levels[0] != 1:
        found.append(f"the page has {levels.count(1)} h1 headings, wants one, and first")
    pairs = zip(levels, levels[1:], strict=False)
    return found + [f"the headings jump from h{a} to h{b}" for a, b in pairs if b > a + 1]


@cache
def soup(page: Path) -> BeautifulSoup:
    """A parsed page; pages do not change under the tests."""
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(page: Path) -> frozenset[str]:
    """Names that a link into the page may end in."""
    return frozenset(str(tag["id"]) for tag in soup(page).find_all(id=True))


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere: no such file, or no such anchor in it."""
    found = []
    for tag in soup(page).find_all(["a", "img"]):
        link = str(tag.get("href") or tag.get("src") or "")
        if link.startswith(("http://", "https://", "data:")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / unquote(name) if name else page
        if not target.exists():
            found.append(link)
        elif anchor and target.suffix == ".html":
            # As browsers do: the fragment as it is written, then what it stands for.
            if not {anchor, unquote(anchor)} & anchors(target):
                found.append(link)
    return found


def linked(tag: Tag, word: str) -> str:
    """Where the link of that word inside an element leads; empty if there is none."""
    for link in tag.find_all("a"):
        if link.get_text(strip=True) == word:
            return str(link["href"])
    return ""
