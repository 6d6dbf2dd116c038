from __future__ import annotations

from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.sources import SourceTree

FILES = {
    "__init__.py": 'HOMES = {"Chameleon": "chameleon_lib.core.chameleon"}\n',
    "core/__init__.py": "from chameleon_lib.core.ccs import fit\nfrom .edit import apply as use\n",
    "core/ccs.py": "def fit():\n    from chameleon_lib.lamp import load\n    return load()\n",
    "core/edit.py": "from . import algebra\n",
    "core/algebra.py": "PI = 3\n",
    "core/chameleon.py": "from .ccs import fit\n",
    "lamp.py": "def load():\n    return 1\n",
    "core/weights/model.json": "{}\n",
    "core/style.css": "p {}\n",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "chameleon_lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_imports_inside_functions_and_relative_ones_are_followed(base: Path) -> None:
    sources = SourceTree(base)
    assert list(sources.closure(["chameleon_lib.core.ccs"])) == [
        "chameleon_lib.core.ccs",
        "chameleon_lib.lamp",
    ]
    assert "chameleon_lib.core.algebra" in sources.closure(["chameleon_lib.core.edit"])


def test_a_name_from_a_package_leads_to_its_home_and_not_to_its_siblings(base: Path) -> None:
    found = SourceTree(base).closure(["chameleon_lib.core:use"])
    assert list(found) == ["chameleon_lib.core.algebra", "chameleon_lib.core.edit"]


def test_a_name_from_a_lazy_table_leads_to_everything_the_table_names(base: Path) -> None:
    found = SourceTree(base).closure(["chameleon_lib:Chameleon"])
    assert {"chameleon_lib.core.chameleon", "chameleon_lib.core.ccs"} <= set(found)


def test_digests_hold_model_files_beside_the_code_but_no_style(base: Path) -> None:
    names = list(SourceTree(base).digests(["chameleon_lib.core.algebra"], data=True))
    assert names == ["chameleon_lib/core/algebra.py", "chameleon_lib/core/weights/model.json"]


def test_prose_in_a_module_leaves_its_digest_and_a_constant_changes_it(base: Path) -> None:
    path = base / "chameleon_lib/core/algebra.py"

    def digest() -> str:
        return SourceTree(base).digest(["chameleon_lib.core.algebra"])

    before = digest()
    path.write_text('"""Words."""\n# more\n\nPI = 3\n', encoding="utf-8")
    assert digest() == before
    path.write_text("PI = 3.0\n", encoding="utf-8")
    assert digest() != before


def test_a_module_that_does_not_exist_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match="chameleon_lib.nowhere"):
        SourceTree(base).closure(["chameleon_lib.nowhere"])
