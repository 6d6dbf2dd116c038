"""Pages that open from disk, run no script and load nothing: notebooks, and library code."""

from __future__ import annotations

import ast
import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from latex2mathml.converter import convert
from markupsafe import Markup, escape
from nbconvert import HTMLExporter
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.profiles import get_profile

TEMPLATES = Path(__file__).parent / "templates"
_STYLE = re.compile(r"<style\b.*?</style>", re.DOTALL)
_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)  # of Markdown: it alone has no class

# --- formulas -------------------------------------------------------------------------------------

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

# --- notebooks ------------------------------------------------------------------------------------


def banner(profile: str) -> str:
    """Return the sentence that keeps small runs from passing for the paper; empty for `paper`."""
    return "" if profile == "paper" else get_profile(profile).banner


def render_notebook(executed: Path, profile: str, code: Sequence[Code] = ()) -> Path:
    """Render an executed notebook to outputs/<profile>/html/<stem>.html.

    The page has no script and loads nothing; formulas are MathML, figures carry the alt text and
    caption of their output metadata.

    Args:
        executed: the executed notebook.
        profile: run profile.
        code: library functions behind its numbers, whose pages its head links to.

    Raises:
        UserError: unreadable notebook or unknown formula.
    """
    try:
        notebook = nbformat.read(executed, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise UserError(f"{paths.display(executed)} is no readable notebook.") from error
    math = MathStore(executed.name)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = math.protect(cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = math.protect(output.data["text/markdown"])
    exporter = HTMLExporter(template_name="kit", extra_template_basedirs=[str(TEMPLATES)])
    dark = next(
        path
        for folder in exporter.template_paths
        if (path := Path(folder) / "static" / "theme-dark.css").is_file()
    )
    resources = {
        "metadata": {"name": f"{executed.stem} · {profile} profile", "path": ""},
        "kit": {
            "profile": profile,
            "banner": banner(profile),
            "code": [
                {"label": function.label, "href": function.page.removeprefix("html/")}
                for function in code
            ],
            "dark_css": dark.read_text(encoding="utf-8"),
        },
    }
    page, _ = exporter.from_notebook_node(notebook, resources=resources)
    # The library's own style sheets carry notes that nobody needs to load.
    page = _STYLE.sub(lambda style: _CSS_COMMENT.sub("", style.group()), math.restore(page))
    page = _TABLE.sub(_scrolling, page)
    target = paths.outputs_dir(profile) / "html" / f"{executed.stem}.html"
    paths.replace_text(target, page)
    return target


def _scrolling(table: re.Match[str]) -> str:
    """A table of Markdown in a region that a keyboard can reach and scroll, named by its head."""
    head = re.findall(r"<th\b[^>]*>(.*?)</th>", table[0], re.DOTALL)
    names = (html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in head)
    label = html.escape(f"Table of {', '.join(filter(None, names))}", quote=True)
    region = f'<div class="table-scroll" role="region" tabindex="0" aria-label="{label}">'
    return f"{region}{table[0]}</div>"


def title_of(executed: Path) -> Markup:
    """First heading of a notebook, its formulas drawn as on its own page."""
    cells = nbformat.read(executed, as_version=4).cells
    lines = [line for c in cells if c.cell_type == "markdown" for line in c.source.splitlines()]
    title = next((line[2:].strip() for line in lines if line.startswith("# ")), executed.stem)
    math = MathStore(executed.name)
    return Markup(math.restore(str(escape(math.protect(title).replace("&#36;", "$")))))


# --- code -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """A function, method or class of the library.

    Attributes:
        module: dotted module below the library, such as "kit.stats".
        name: its qualified name there, such as "mcnemar" or "Publisher.show".
    """

    module: str
    name: str

    @property
    def label(self) -> str:
        """How a page calls it."""
        return f"{self.module}.{self.name}"

    @property
    def page(self) -> str:
        """Where it is shown, relative to outputs/<profile>."""
        return f"html/code/{self.module}.html#{self.name}"

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return paths.package_dir().joinpath(*self.module.split(".")).with_suffix(".py")


def code_of(side: Mapping[str, Any]) -> Code | None:
    """What made a saved result, from the `made_by` of its side file.

    Returns:
        None where the file names nothing, nothing of the library (a function of a notebook's own
        cell), or what the library no longer has: a page says nothing rather than something wrong.
    """
    module, _, name = str(side.get("made_by", "")).partition(":")
    package, _, below = module.partition(".")
    found = Code(below, name)
    known = package == paths.package_dir().name and found.path.is_file()
    return found if known and found.name in _places(found.path) else None


def write_code_pages(
    code: Iterable[Code], profile: str, templates: jinja2.Environment, **context: Any
) -> None:
    """Write outputs/<profile>/html/code/<module>.html for every module that is named.

    A page shows the whole file as it is in the checkout; each function, class and method in it can
    be linked by its name. Pages of modules that are named no longer are removed.

    Args:
        code: what the pages must show.
        profile: run profile.
        templates: environment that holds code.html.j2.
        context: what else the template wants.
    """
    modules: dict[str, list[Code]] = {}
    for one in sorted(set(code), key=lambda one: one.label):
        modules.setdefault(one.module, []).append(one)
    folder = paths.outputs_dir(profile) / "html" / "code"
    for module, shown in modules.items():
        path = shown[0].path
        page = templates.get_template("code.html.j2").render(
            profile=profile,
            module=module,
            path=path.relative_to(paths.package_dir().parent).as_posix(),
            names=[one.name for one in shown],
            code=_listing(path),
            **context,
        )
        paths.replace_text(folder / f"{module}.html", page)
    for left in folder.glob("*.html"):
        if left.stem not in modules:
            left.unlink()


@cache
def _places(path: Path) -> dict[str, tuple[int, int]]:
    """First and last line (1-based) of every function, class and method of a file."""
    found = {}

    def note(body: list[ast.stmt], above: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                found[f"{above}{node.name}"] = (first, node.end_lineno or node.lineno)
                if isinstance(node, ast.ClassDef):
                    note(node.body, f"{above}{node.name}.")

    note(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def _listing(path: Path) -> Markup:
    """Coloured, numbered lines; the lines of each function stand in an element with its name."""
    text, places = path.read_text(encoding="utf-8"), _places(path)
    coloured = highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    opens = {first: name for name, (first, _) in places.items()}
    closes = Counter(last for _, last in places.values())
    width = len(str(text.count("\n") + 1))
    lines = []
    for number, line in enumerate(coloured.rstrip("\n").split("\n"), start=1):
        if number in opens:
            lines.append(f'<span class="def" id="{escape(opens[number])}">')
        lines.append(f'<i aria-hidden="true">{number:>{width}}</i> {line}\n')
        lines.append("</span>" * closes[number])
    return Markup("".join(lines))
