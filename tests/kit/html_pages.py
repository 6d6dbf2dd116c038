"""Pages as a reader's browser takes them: links, anchors, what the first rendering loads."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup, Tag


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
