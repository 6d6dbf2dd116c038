"""Library modules as pages, so that a reader gets from a number to its code with one click."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.page import page_problems
from chameleon_lib.kit.trail import Function


def write_code_pages(
    functions: Iterable[Function], profile: str, templates: jinja2.Environment, **context: Any
) -> list[Path]:
    """Write outputs/<profile>/html/code/<module>.html for every module that is named.

    A page shows the whole file as it is in the checkout; each function and class at its top level
    can be linked by its name. Pages of modules that are named no longer are removed.

    Args:
        functions: what the pages must show.
        profile: run profile.
        templates: environment that holds code.html.j2.
        context: what else the template wants.

    Raises:
        UserError: a module without file, or without the function.
    """
    wanted: dict[str, set[str]] = {}
    for function in functions:
        wanted.setdefault(function.module, set()).add(function.name)
    folder = paths.outputs_dir(profile) / "html" / "code"
    written = []
    for module, names in sorted(wanted.items()):
        path = paths.package_dir().joinpath("sections", *module.split(".")).with_suffix(".py")
        if not path.is_file():
            raise UserError(f"A notebook calls {module}, but there is no {paths.display(path)}.")
        text = path.read_text(encoding="utf-8")
        places = _places(text)
        if missing := sorted(names - set(places)):
            raise UserError(f"A notebook calls {module}.{missing[0]}, which {path.name} lacks.")
        page = templates.get_template("code.html.j2").render(
            profile=profile,
            module=module,
            path=path.relative_to(paths.package_dir().parent).as_posix(),
            names=[name for name in places if name in names],
            code=_listing(text, places),
            **context,
        )
        if problems := page_problems(page):
            raise UserError(f"The page of {path.name} cannot be published: {problems[0]}.")
        target = folder / f"{module}.html"
        paths.replace_text(target, page)
        written.append(target)
    for left in set(folder.glob("*.html")) - set(written):
        left.unlink()
    return written


def _places(text: str) -> dict[str, tuple[int, int]]:
    """First and last line (1-based) of every function and class at the top level of a file."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name] = (first, node.end_lineno or node.lineno)
    return found


def _listing(text: str, places: dict[str, tuple[int, int]]) -> Markup:
    """Coloured, numbered lines; the lines of each function stand in an element with its name."""
    coloured = highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    opens = {first: name for name, (first, _) in places.items()}
    closes = {last for _, last in places.values()}
    width = len(str(text.count("\n") + 1))
    lines = []
    for number, line in enumerate(coloured.rstrip("\n").split("\n"), start=1):
        if number in opens:
            lines.append(f'<span class="def" id="{escape(opens[number])}">')
        lines.append(f'<i aria-hidden="true">{number:>{width}}</i> {line}\n')
        if number in closes:
            lines.append("</span>")
    return Markup("".join(lines))
