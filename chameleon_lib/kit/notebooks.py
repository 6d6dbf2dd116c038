"""Notebook files as data: names, parameters, code, prose. No kernel and no Jupyter import here.

Reading them as plain JSON keeps lists, plans and an up-to-date run within a second.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError

SKIP_TAG = "skip-execution"
PATHS = ("data_dir", "table", "preferences")  # parameters: a folder or file of the reader's
NAME = re.compile(r"^(?P<number>\d{2})_[a-z0-9_]+\.ipynb$")
_SIMPLE: dict[str, Any] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
    "None": type(None),
    "NoneType": type(None),
    "list": (list, tuple),
    "tuple": (list, tuple),
    "dict": dict,
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One line of a parameters cell: `name: annotation = default  # help`."""

    name: str
    annotation: str
    default: Any

    @property
    def types(self) -> list[str]:
        """Names of the annotated types; without annotation, that of the default."""
        names = self.annotation or type(self.default).__name__
        while "[" in names:  # list[tuple[int, int]] -> list; items are the library's business
            names = re.sub(r"\[[^\[\]]*\]", "", names)
        return [name.strip() for name in names.split("|")]

    def accepts(self, value: object) -> bool:
        """Whether a value has one of the types."""
        for name in self.types:
            if name not in _SIMPLE:
                return True
            # True is an int to Python, not to a reader of `seeds: int`.
            if isinstance(value, bool) == (name == "bool") and isinstance(value, _SIMPLE[name]):
                return True
        return False

    def read(self, value: Any) -> Any:
        """A value as it is typed: where text is wanted that text, else as a Python literal."""
        if not isinstance(value, str) or "str" in self.types:
            return value
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value


@dataclass(frozen=True)
class Notebook:
    """A numbered source notebook."""

    number: str
    path: Path
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """File name without suffix, such as `01_per_user`."""
        return self.path.stem

    @property
    def cells(self) -> list[dict[str, Any]]:
        """All cells, in order."""
        return list(self.content["cells"])

    @property
    def summary(self) -> bool:
        """Whether it reads the other notebooks' outputs and so runs last (numbers from 90)."""
        return int(self.number) >= 90

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the kit knows of it: ``chameleon`` in its metadata.

        ``light``: it needs one core from its first cell on, so another may run beside it.
        ``models``: those of ``kit.wheels`` that it reads; where one was not fetched, a run leaves
        it out.
        ``reviews``: it reads folders of reviews of shared items.
        ``figure``: id of the figure that leads on the page. ``cost``: how its work differs from
        the counted demo run (:mod:`kit.cost`).
        """
        found: Mapping[str, Any] = self.content["metadata"].get("chameleon", {})
        return found

    @property
    def light(self) -> bool:
        """Whether another notebook may run beside it from its first cell on."""
        return bool(self.facts.get("light", False))

    def runnable(self) -> list[dict[str, Any]]:
        """Code cells that a run executes: not empty, not tagged `skip-execution`."""
        return [cell for cell in self.cells if is_runnable(cell)]

    def code(self) -> list[str]:
        """Source of the runnable cells."""
        return [text_of(cell) for cell in self.runnable()]

    def title(self) -> str:
        """The first heading, without its marks."""
        for cell in self.cells:
            if cell["cell_type"] == "markdown":
                for line in text_of(cell).splitlines():
                    if line.startswith("#"):
                        return line.lstrip("#").strip()
        return self.name

    def text(self) -> list[str]:
        """Source of all other cells: prose, and what a run skips."""
        return [text_of(cell) for cell in self.cells if not is_runnable(cell)]

    def parameters(self) -> dict[str, Parameter]:
        """What the cell tagged `parameters` declares.

        Raises:
            UserError: if there is not exactly one such cell, or it holds more than literals.
        """
        tagged = [cell for cell in self.cells if "parameters" in tags_of(cell)]
        if len(tagged) != 1:
            raise UserError(f"{self.path.name} needs exactly one cell tagged 'parameters'.")
        return {item.name: item for item in self._declared(text_of(tagged[0]))}

    def _declared(self, source: str) -> Iterator[Parameter]:
        for node in ast.parse(source).body:
            target: ast.expr | None = None
            if isinstance(node, ast.AnnAssign):
                target, annotation = node.target, ast.unparse(node.annotation)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1:
                target, annotation = node.targets[0], ""
            if not isinstance(target, ast.Name) or not isinstance(node, ast.AnnAssign | ast.Assign):
                raise UserError(
                    f"{self.path.name}: the parameters cell may hold 'name: type = literal' only."
                )
            try:
                default = ast.literal_eval(node.value) if node.value else None
            except ValueError:
                # Injected values come after this cell: what is derived here would be stale.
                raise UserError(
                    f"{self.path.name}: parameter '{target.id}' is not a literal; derive it in the "
                    "next cell."
                ) from None
            yield Parameter(target.id, annotation, default)


def text_of(cell: Mapping[str, Any]) -> str:
    """A cell's source as one string; files store it as text or as a list of lines."""
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def tags_of(cell: Mapping[str, Any]) -> list[str]:
    """A cell's tags."""
    return list(cell.get("metadata", {}).get("tags", []))


def is_runnable(cell: Mapping[str, Any]) -> bool:
    """Whether a run executes this cell."""
    code = cell["cell_type"] == "code" and bool(text_of(cell).strip())
    return code and SKIP_TAG not in tags_of(cell)


def read_notebook(path: Path) -> Notebook:
    """Read one source notebook.

    Raises:
        UserError: if the file is not a version 4 notebook.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = content["cells"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path.name} is not a Jupyter notebook of version 4.") from None
    if not all({"cell_type", "source"} <= set(cell) for cell in cells):
        raise UserError(f"{path.name} holds a cell without type or source.")
    return Notebook(path.name[:2], path, content)


def discover(folder: Path) -> list[Notebook]:
    """All numbered notebooks of a folder, by number.

    Raises:
        UserError: if there are none, or two share a number.
    """
    files = sorted(path for path in folder.glob("*.ipynb") if NAME.match(path.name))
    numbers = [path.name[:2] for path in files]
    if not files:
        raise UserError(f"No notebook NN_name.ipynb in {folder}.")
    for number in numbers:
        if numbers.count(number) > 1:
            raise UserError(f"Two notebooks carry the number {number} in {folder}.")
    return [read_notebook(path) for path in files]


def select(notebooks: list[Notebook], only: list[str]) -> list[Notebook]:
    """The notebooks of the given numbers, in running order; all if `only` is empty.

    Raises:
        UserError: for a number without notebook.
    """
    known = {notebook.number: notebook for notebook in notebooks}
    for number in only:
        if number not in known:
            raise UserError(f"There is no notebook {number}: choose among {', '.join(known)}.")
    return [notebook for notebook in notebooks if not only or notebook.number in only]
