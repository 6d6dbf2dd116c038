"""From a number on the page back to the library functions that made it.

A notebook is a short list of library calls, so its code says where each table and verdict comes
from: nothing is typed by hand, and a renamed function cannot leave a wrong name on the page.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chameleon_lib.kit.notebooks import read_notebook, text_of

# The studies' code; what only loads settings or prints versions decides no number.
_FOLLOWED = "chameleon_lib.sections"
_ASIDE = ("loading", "provenance")
_STUDY = "run"  # by convention the function of a section that computes all its answers


@dataclass(frozen=True)
class Function:
    """A library function.

    Attributes:
        module: dotted module below the sections, such as "per_user.tables".
        name: its name there.
    """

    module: str
    name: str

    @property
    def label(self) -> str:
        """How the page calls it."""
        return f"{self.module}.{self.name}"

    @property
    def page(self) -> str:
        """Where it is shown, relative to outputs/<profile>."""
        return f"html/code/{self.module}.html#{self.name}"


@dataclass(frozen=True)
class Trail:
    """Where the results of one notebook come from.

    Attributes:
        verdicts: functions behind its verdicts, in the order in which numbers pass through them.
        tables: for each saved table a pattern of its id and the functions behind it.
    """

    verdicts: tuple[Function, ...] = ()
    tables: tuple[tuple[re.Pattern[str], tuple[Function, ...]], ...] = ()

    @property
    def shown(self) -> tuple[Function, ...]:
        """Functions that the pages link to: behind the verdicts, and each table's own."""
        last = [functions[-1] for _, functions in self.tables if functions]
        shared = [f for _, functions in self.tables for f in functions if f in self.verdicts]
        return tuple(dict.fromkeys([*self.verdicts, *shared, *last]))

    def of_table(self, table_id: str) -> tuple[Function, ...]:
        """Functions behind a table, in order; empty if this notebook does not save it."""
        fitting = [entry for entry in self.tables if entry[0].fullmatch(table_id)]
        # "table1_LaMP_2_effects" fits "table1_<task>" as well; the longer pattern is its own.
        return max(fitting, key=lambda entry: len(entry[0].pattern), default=(None, ()))[1]

    def computing(self, csv: str) -> Function | None:
        """The function that computes the number of a verdict.

        It is the last one that both the verdict and its table have passed through; where they
        share only the study itself, the one that made the table.

        Args:
            csv: the verdict's table, such as "tables/x.csv".
        """
        functions = self.of_table(Path(csv).stem)
        shared = [f for f in functions if f in self.verdicts and f.name != _STUDY]
        candidates = shared or list(functions) or list(self.verdicts)
        return candidates[-1] if candidates else None

    def judging(self, csv: str) -> Function | None:
        """The function that made a verdict whose number its table does not hold.

        Among the functions behind the verdicts it is the first after the study that the table
        comes from.

        Args:
            csv: as for :meth:`computing`.
        """
        behind = self.of_table(Path(csv).stem)
        start = max((i for i, f in enumerate(self.verdicts) if f in behind), default=-1) + 1
        later = [f for f in self.verdicts[start:] if f.name != _STUDY]
        return later[0] if later else self.computing(csv)


def read_trail(notebook: Path) -> Trail:
    """Read an executed (or source) notebook's runnable cells; none of them is run."""
    reader = _Reader()
    for cell in read_notebook(notebook).runnable():
        try:
            tree = ast.parse(text_of(cell))
        except SyntaxError:
            continue  # a line in IPython's own syntax: no library call that could be followed
        reader.block(tree.body)
    return Trail(tuple(dict.fromkeys(reader.verdicts)), tuple(reader.tables))


class _Reader:
    """Walks statements in order and remembers which calls every name was made by."""

    def __init__(self) -> None:
        self.modules: dict[str, str] = {}  # name in the notebook -> dotted name below sections
        self.known: dict[str, list[Function]] = {}
        self.verdicts: list[Function] = []
        self.tables: list[tuple[re.Pattern[str], tuple[Function, ...]]] = []

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            if isinstance(statement, ast.ImportFrom):
                self._imported(statement)
            elif isinstance(statement, ast.For):
                self._bind(statement.target, self.origins(statement.iter))
                self.block(statement.body)
            elif isinstance(statement, ast.If):
                self.block(statement.body)
                self.block(statement.orelse)
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    self._assign(target, statement.value)
            elif isinstance(statement, ast.AugAssign):
                self._bind(statement.target, self.origins(statement.value), add=True)
            elif isinstance(statement, ast.Expr):
                self.origins(statement.value)

    def _imported(self, statement: ast.ImportFrom) -> None:
        source = statement.module or ""
        if source != _FOLLOWED and not source.startswith(f"{_FOLLOWED}."):
            return
        below = source.removeprefix(_FOLLOWED).lstrip(".")
        for alias in statement.names:
            name = f"{below}.{alias.name}".lstrip(".")
            if name.partition(".")[0] not in _ASIDE:
                self.modules[alias.asname or alias.name] = name

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=False):
                self._assign(one, its)
        else:
            self._bind(target, self.origins(value), add=isinstance(target, ast.Subscript))

    def _bind(self, target: ast.expr, found: list[Function], *, add: bool = False) -> None:
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                before = self.known.get(node.id, []) if add else []
                self.known[node.id] = list(dict.fromkeys([*before, *found]))

    def origins(self, node: ast.AST) -> list[Function]:
        """Library functions that an expression's value has passed through, first to last."""
        found: list[Function] = []
        for child in _in_order(node):
            if isinstance(child, ast.comprehension):
                self._bind(child.target, self.origins(child.iter))
            found += self.origins(child)
        if isinstance(node, ast.Name):
            found += self.known.get(node.id, [])
        elif isinstance(node, ast.Call):
            self._note(node)
            called = self._called(node)
            if called is not None:
                found.append(called)
        return list(dict.fromkeys(found))

    def _called(self, node: ast.Call) -> Function | None:
        function = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            module, name = self.modules.get(function.value.id, ""), function.attr
        elif isinstance(function, ast.Name):
            module, _, name = self.modules.get(function.id, "").rpartition(".")
        else:
            return None
        return Function(module, name) if module else None

    def _note(self, node: ast.Call) -> None:
        """Remember what is saved."""
        if not isinstance(node.func, ast.Name) or len(node.args) < 2:
            return
        if node.func.id == "save_verdicts":
            self.verdicts += self.origins(node.args[0])
        elif node.func.id == "save_table":
            saved = (re.compile(_pattern(node.args[1])), tuple(self.origins(node.args[0])))
            self.tables.append(saved)


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """Children in the order in which Python evaluates them: generators before their element."""
    children = list(ast.iter_child_nodes(node))
    yield from sorted(children, key=lambda child: not isinstance(child, ast.comprehension))


def _pattern(node: ast.expr) -> str:
    """What a table id may be: its literal parts, and anything where the notebook fills in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"\w+?"
            for part in node.values
        )
    return re.escape(str(node.value)) if isinstance(node, ast.Constant) else r"\w+"
