"""Which library files a piece of code depends on, found by reading imports, not by running them.

A result is stale when the code that made it changed: not only the module that was named, but all
that it imports inside `chameleon_lib`. Comments, docstrings and layout do not count, so that
better prose throws nothing away.

Over-inclusive on purpose: imports inside functions count, and so does a string that spells a
library module (tables of lazy imports). `from package import name` follows only the module that
the package takes `name` from; importing `package.module` does not depend on its siblings.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest, file_digest
from chameleon_lib.kit.paths import root

PACKAGE = "chameleon_lib"
# Data and model files beside a module in use; templates and styles only dress the report.
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".txt", ".safetensors", ".npz", ".gz")


class SourceTree:
    """The package's source files, parsed at most once each: a snapshot of what is read.

    Args:
        base: folder that holds `chameleon_lib`; the checkout by default.
    """

    def __init__(self, base: Path | None = None) -> None:
        self.base = base or root()
        self._trees: dict[Path, ast.Module] = {}
        self._imports: dict[Path, list[str]] = {}
        self._homes: dict[str, str | None] = {}
        self._digests: dict[Path, str] = {}
        self._combined: dict[tuple[str, ...], str] = {}

    def find(self, name: str) -> Path | None:
        """The file of a dotted module name, or None if the package has no such module."""
        if name != PACKAGE and not name.startswith(PACKAGE + "."):
            return None
        stem = self.base.joinpath(*name.split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
        return None

    def tree(self, path: Path) -> ast.Module:
        """The syntax tree of a source file, without docstrings."""
        if path not in self._trees:
            parsed = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            self._trees[path] = _without_docstrings(parsed)
        return self._trees[path]

    def source_digest(self, path: Path) -> str:
        """sha256 of what a source file does: its tree, without comments, docstrings, layout."""
        if path not in self._digests:
            text = ast.dump(self.tree(path), annotate_fields=False)
            self._digests[path] = hashlib.sha256(text.encode("utf-8")).hexdigest()
        return self._digests[path]

    def closure(self, modules: Iterable[str]) -> dict[str, Path]:
        """The named modules and all library modules they use.

        Args:
            modules: dotted names; `chameleon_lib.core:fit_ccs` means "fit_ccs as taken from
                the package core".

        Returns:
            Module name -> file, sorted by name.

        Raises:
            UserError: if a named module is not part of the package.
        """
        found: dict[str, Path] = {}
        waiting: list[str] = []
        for name in modules:
            home = self._home(name)
            if home is None:
                raise UserError(f"'{name}' is not a module of {PACKAGE}.")
            waiting.append(home)
        while waiting:
            name = waiting.pop()
            path = self.find(name)
            if path is None or name in found:
                continue
            found[name] = path
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            if path not in self._imports:
                self._imports[path] = list(self.imports(self.tree(path), package))
            for used in self._imports[path]:
                if used not in self._homes:
                    self._homes[used] = self._home(used)
                home = self._homes[used]
                if home is not None and home not in found:
                    waiting.append(home)
        return dict(sorted(found.items()))

    def imports(self, tree: ast.Module, package: str = "") -> Iterator[str]:
        """Names as `closure` takes them, for all imports and module-like strings of a tree.

        Whoever walks the `__path__` of a package, as a registry does, imports all its modules.
        """
        known: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                source = _absolute(node, package)
                known |= {a.asname or a.name: f"{source}.{a.name}" for a in node.names}
        for node in ast.walk(tree):
            walked = None
            if isinstance(node, ast.Name) and node.id == "__path__":
                walked = package
            elif isinstance(node, ast.Attribute) and node.attr == "__path__":
                walked = known.get(getattr(node.value, "id", ""))
            if walked is not None:
                folder = self.base.joinpath(*walked.split("."))
                yield from (f"{walked}.{path.stem}" for path in sorted(folder.glob("[!_]*.py")))
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = _absolute(node, package)
                yield from (f"{source}:{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if node.value.startswith(PACKAGE + "."):
                    yield node.value

    def _home(self, name: str) -> str | None:
        """The module that defines what `name` stands for; None if it is not ours."""
        module, _, attribute = name.partition(":")
        path = self.find(module)
        if path is None:
            return None
        if not attribute or path.name != "__init__.py":
            return module
        if self.find(f"{module}.{attribute}") is not None:
            return f"{module}.{attribute}"
        for node in ast.walk(self.tree(path)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == attribute:
                        return self._home(f"{_absolute(node, module)}:{alias.name}") or module
        return module

    def digests(self, modules: Iterable[str], *, data: bool = False) -> dict[str, str]:
        """Content hashes of a closure, by path relative to the checkout.

        Args:
            modules: dotted names, as for `closure`.
            data: also the data and model files in the folders of the modules in use.
        """
        files = self.closure(modules)
        found = {self._relative(path): self.source_digest(path) for path in files.values()}
        if data:
            for folder in sorted({path.parent for path in files.values()}):
                for path in _data_files(folder):
                    found[self._relative(path)] = file_digest(path)
        return dict(sorted(found.items()))

    def digest(self, modules: Iterable[str]) -> str:
        """One hash of all code a closure holds, found once per set of names."""
        names = tuple(modules)
        if names not in self._combined:
            self._combined[names] = digest(self.digests(names))
        return self._combined[names]

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.base).as_posix()


@cache
def own_sources() -> SourceTree:
    """The checkout as this process first read it: a process runs the code that it imported."""
    return SourceTree()


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The absolute module name of a `from ... import`, seen from inside `package`."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    above = ".".join(parts[: len(parts) - (node.level - 1)])
    return f"{above}.{node.module}" if node.module else above


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            if isinstance(first.value.value, str):
                node.body = node.body[1:]
    return tree


def _data_files(folder: Path) -> Iterator[Path]:
    """Data files of one package folder and of its subfolders that hold no code."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in DATA_SUFFIXES and ".partial" not in path.name:
            yield path
        elif path.is_dir() and not path.name.startswith((".", "__")):
            if not any(path.glob("*.py")):
                yield from _data_files(path)
