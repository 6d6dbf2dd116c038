"""TeX in Markdown to MathML, so that equations are drawn offline and without any script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

from chameleon_lib.errors import UserError

# Code comes first, so that a dollar inside it is never read as mathematics. Inline mathematics
# hugs its dollars and no digit follows: "$5 and $6" stays text.
_TOKENS = re.compile(
    r"(?P<code>^(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^(?P=fence)[^\n]*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)|\\\$)"
    r"|\$\$(?P<block>.+?)\$\$"
    r"|(?<!\$)\$(?P<inline>[^\s$`](?:[^$`\n]*[^\s$`\\])?)\$(?![\d$])"
    r"|(?P<money>\$)",
    re.M | re.S,
)
_MARK = "KITMATH{:05d}X"
_MARKS = re.compile(r"KITMATH(\d{5})X")


class MathStore:
    """Keeps the MathML of a document while its Markdown is rendered.

    Markdown must not see MathML (underscores, blank lines), and headings turn their text into
    ids; so `protect` leaves a plain word in place of each formula and `restore` swaps it back.
    """

    def __init__(self, source: str) -> None:
        """Start empty; `source` names the document in error messages."""
        self.source = source
        self.formulas: list[str] = []

    def protect(self, markdown: str) -> str:
        """Replace $...$ and $$...$$ outside code by marks."""

        def swap(match: re.Match[str]) -> str:
            if match["code"] is not None:
                return match[0]
            if match["money"] is not None:
                return "&#36;"  # nbconvert reads mathematics between any two dollars
            block = match["block"] is not None
            tex = match["block"] if block else match["inline"]
            self.formulas.append(to_mathml(tex, block=block, source=self.source))
            return _MARK.format(len(self.formulas) - 1)

        return _TOKENS.sub(swap, markdown)

    def restore(self, page: str) -> str:
        """Put the MathML back in; inside tags (heading ids) the mark becomes the word math."""
        page = re.sub(r"<[^<>]*KITMATH[^<>]*>", lambda m: _MARKS.sub("math", m[0]), page)
        return _MARKS.sub(lambda m: self.formulas[int(m[1])], page)


def to_mathml(tex: str, *, block: bool, source: str) -> str:
    """Convert one TeX formula to MathML, its TeX kept as alternative text.

    Raises:
        UserError: the formula uses a command the converter does not know.
    """
    display = "block" if block else "inline"
    try:
        out = convert(tex.strip(), display=display)
    except Exception as error:  # the converter has no common base for its many errors
        raise UserError(f"{source}: cannot read the formula {tex.strip()!r} ({error}).") from error
    unknown = re.search(r"\\[A-Za-z]+", out)
    if unknown:
        raise UserError(f"{source}: formula {tex.strip()!r} uses {unknown[0]}, which is unknown.")
    label = html.escape(" ".join(tex.split()), quote=True)
    return str(out.replace("<math ", f'<math alttext="{label}" ', 1))
