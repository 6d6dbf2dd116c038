"""Check that a page is readable by anyone, anywhere: no script, no external load, alt texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

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
