"""The core stands on the ground: it imports nothing of ours but itself and errors, in no circle."""

from __future__ import annotations

import ast

from chameleon_lib.kit.paths import root

CORE = root() / "chameleon_lib" / "core"


def imports() -> dict[str, set[str]]:
    """Module of the core → library modules that it imports, wherever in the file."""
    found = {}
    for path in CORE.rglob("*.py"):
        name = ".".join(path.relative_to(root()).with_suffix("").parts).removesuffix(".__init__")
        used = found.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {
        name: {one for one in used if one.startswith("chameleon_lib.")}
        for name, used in found.items()
    }


def test_the_core_imports_itself_and_the_errors_alone() -> None:
    for name, used in imports().items():
        allowed = ("chameleon_lib.core", "chameleon_lib.errors")
        assert not [one for one in used if not one.startswith(allowed)], name


def test_no_module_of_the_core_imports_itself_through_others() -> None:
    left = imports()
    left = {name: {one for one in used if one in left} - {name} for name, used in left.items()}
    while left:
        ground = {name for name, used in left.items() if not used & left.keys()}
        assert ground, f"a circle among {sorted(left)}"
        left = {name: used for name, used in left.items() if name not in ground}
