"""Rules for notebooks that need no kernel: each rule returns sentences about what is wrong."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit.notebooks import NAME, Notebook, read_notebook, tags_of, text_of

MAX_CELLS = 28  # the tour is shown as a script, too
MAX_BYTES = 1_000_000
KNOWN_TAGS = {"parameters", "skip-execution", "injected-parameters"}
_SECTION = re.compile(r"(?i)\bsections?\s+\d|§\s*\d|\bappendix\s+[A-Z]\b")
_MACHINE = re.compile(r"(?<![\w.])(/(home|Users|root|tmp|work|mnt|var)/|[A-Z]:\\\\)")


def lint_source(path: Path) -> list[str]:
    """Everything wrong with a source notebook; empty if it is fine."""
    if not NAME.match(path.name):
        return [f"{path.name}: its name is not NN_words.ipynb"]
    book = read_notebook(path)
    found = [*_file(book), *_parameters(book), *_cells(book), *_code(book), *_profile(book)]
    return [f"{path.name}: {problem}" for problem in found]


def lint_executed(path: Path) -> list[str]:
    """Everything wrong with a committed executed notebook; empty if it is fine."""
    book = read_notebook(path)
    found = list(_images(book))
    if path.stat().st_size > MAX_BYTES:
        found.append("it is too large for the viewers readers use")
    if "papermill" in json.dumps(book.content.get("metadata", {})):
        found.append("it keeps papermill's metadata, which names machine paths and times")
    for cell in book.runnable():
        if cell.get("execution_count") is None:
            found.append(f"cell {cell['id']} never ran")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"cell {cell['id']} ended in {output['ename']}")
            if _MACHINE.search(json.dumps(output.get("text", "")) + _plain(output)):
                found.append(f"cell {cell['id']} printed a path of some machine")
    return [f"{path.name}: {problem}" for problem in found]


def _plain(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    return json.dumps([data.get("text/plain", ""), data.get("text/html", "")])


def _images(book: Notebook) -> Iterator[str]:
    for cell in book.runnable():
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                words = output.get("metadata", {}).get("image/png", {})
                for name in ("alt", "caption"):
                    if not words.get(name):
                        yield f"a picture in cell {cell['id']} has no {name}"


def _file(book: Notebook) -> Iterator[str]:
    metadata = book.content.get("metadata", {})
    if metadata.get("kernelspec", {}).get("name") != "python3":
        yield "its kernel is not python3"
    if "papermill" in metadata:
        yield "it keeps papermill's metadata"
    if (book.content.get("nbformat"), book.content.get("nbformat_minor", 0) >= 5) != (4, True):
        yield "its format is older than 4.5, which has no cell ids"
    if len(book.cells) > MAX_CELLS:
        yield f"it has {len(book.cells)} cells, more than {MAX_CELLS}: move work to the library"


def _parameters(book: Notebook) -> Iterator[str]:
    try:
        declared = book.parameters()
    except UserError as error:
        yield str(error)
        return
    (cell,) = [cell for cell in book.cells if "parameters" in tags_of(cell)]
    lines = text_of(cell).splitlines()
    for item in declared.values():
        line = next(line for line in lines if line.startswith(item.name))
        if not item.annotation or "#" not in line:
            yield f"parameter {item.name} needs a type and one line of help"
        if not item.accepts(item.default):
            yield f"the default of parameter {item.name} is not a {item.annotation}"
    if "profile" not in declared or declared["profile"].default != "demo":
        yield 'it does not declare profile: str = "demo"'


def _cells(book: Notebook) -> Iterator[str]:
    ids = [cell.get("id", "") for cell in book.cells]
    if len(set(ids)) != len(ids) or "" in ids or "injected-parameters" in ids:
        yield "its cell ids are not unique"
    first = book.cells[0]
    if first["cell_type"] != "markdown" or not _SECTION.search(text_of(first)):
        yield "its first cell does not name the paper's section"
    for cell in book.cells:
        name = cell.get("id")
        if cell["cell_type"] == "code" and (cell.get("outputs") or cell.get("execution_count")):
            yield f"cell {name} holds outputs"
        unknown = set(tags_of(cell)) - KNOWN_TAGS
        if unknown:
            yield f"cell {name} has unknown tags {sorted(unknown)}"
        if _MACHINE.search(text_of(cell)):
            yield f"cell {name} names a path of some machine"


def _code(book: Notebook) -> Iterator[str]:
    for cell in book.cells:
        if cell["cell_type"] != "code":
            continue
        try:
            tree = ast.parse(text_of(cell))
        except SyntaxError:
            yield f"cell {cell.get('id')} is not plain Python"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.While):
                yield f"cell {cell.get('id')} holds a while loop, which belongs in the library"
            if isinstance(node, ast.Call) and _name(node.func) == "save_figure":
                missing = {"alt", "caption"} - {word.arg for word in node.keywords}
                if missing:
                    yield f"cell {cell.get('id')} saves a figure without {sorted(missing)}"


def _profile(book: Notebook) -> Iterator[str]:
    """Who takes files asks ``for_data`` which profile that makes, and saves under no other."""
    if not any("data_dir: " in text_of(cell) for cell in book.cells):
        return
    for cell in book.cells:
        if cell["cell_type"] != "code" or "parameters" in tags_of(cell):
            continue
        nodes = list(ast.walk(ast.parse(text_of(cell))))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        allowed = {id(c.args[0]) for c in calls if _name(c.func) == "for_data" and c.args}
        names = [node for node in nodes if isinstance(node, ast.Name) and node.id == "profile"]
        if any(id(name) not in allowed for name in names):
            yield f"cell {cell.get('id')} reads profile, which is not that of a run on files"


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
