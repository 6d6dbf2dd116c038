"""Pages as a reader's browser takes them: links, anchors, what they load, whom they shut out."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup, Tag

_EXTERNAL = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//|\s*(?:javascript|file|ftp):", re.I)
_CSS_LOAD = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+(?:url\()?\s*['\"]?([^'\");]+)", re.I)
_LOADING = {"src", "href", "srcset", "poster", "data", "action", "xlink:href", "background"}
_FORBIDDEN = {"script", "iframe", "object", "embed", "base"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.problems: list[str] = []
        self.headings: list[int] = []
        self.language = False
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        where = f"<{tag}> on line {self.getpos()[0]}"
        self._in_style = tag == "style"
        if tag == "html":
            self.language = bool(values.get("lang", "").strip())
        if tag in _FORBIDDEN:
            self.problems.append(f"{where} is not allowed")
        if tag == "img" and not values.get("alt", "").strip():
            self.problems.append(f"{where} has no alt text")
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name, value in values.items():
            if name.startswith("on"):
                self.problems.append(f"{where} runs a script in {name}")
            elif name in _LOADING and self._leaves(tag, value):
                self.problems.append(f"{where} loads {value[:80]!r}")
            elif name == "style":
                self._check_css(value, where)

    @staticmethod
    def _leaves(tag: str, value: str) -> bool:
        # A link the reader may click loads nothing by itself; everything else does.
        if tag == "a" and re.match(r"\s*https?://", value, re.I):
            return False
        return any(_EXTERNAL.match(part) for part in value.split(","))

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self._check_css(data, f"<style> before line {self.getpos()[0] + 1}")

    def _check_css(self, css: str, where: str) -> None:
        for match in _CSS_LOAD.finditer(re.sub(r"/\*.*?\*/", "", css, flags=re.S)):
            target = match.group(1) or match.group(2)
            if _EXTERNAL.match(target) or match.group(2):
                self.problems.append(f"{where} loads {target[:80]!r}")


def page_problems(html: str) -> list[str]:
    """List what keeps a page from being self-contained and accessible; empty means fine.

    Checked: scripts, frames and inline handlers; external src, href (but not links to click),
    srcset, url(...) and @import; images without alt text; a missing language; headings that do
    not start at h1, have several h1 or skip a level.
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    problems = list(reader.problems)
    if not reader.language:
        problems.append("<html> has no lang attribute")
    if reader.headings.count(1) != 1:
        problems.append(f"the page has {reader.headings.count(1)} h1 headings, wants one")
    elif reader.headings[0] != 1:
        problems.append(f"the first heading is h{reader.headings[0]}, not h1")
    for before, after in zip(reader.headings, reader.headings[1:], strict=False):
        if after > before + 1:
            problems.append(f"the headings jump from h{before} to h{after}")
    return problems


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
