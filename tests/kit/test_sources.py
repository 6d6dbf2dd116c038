from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.sources import SourceTree, own_sources
from chameleon_lib.kit.store import ArtifactStore

FILES = {
    "__init__.py": 'HOMES = {"Chameleon": "chameleon_lib.method.chameleon"}\n',
    "method/__init__.py": (
        "from chameleon_lib.method.ccs import fit\nfrom .edit import apply as use\n"
    ),
    "method/ccs.py": "def fit():\n    from chameleon_lib.texts import load\n    return load()\n",
    "method/edit.py": "from . import algebra\n",
    "method/algebra.py": "PI = 3\n",
    "method/chameleon.py": "from .ccs import fit\n",
    "texts.py": "def load():\n    return 1\n",
    "method/weights/model.json": "{}\n",
    "method/style.css": "p {}\n",
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
    assert list(sources.closure(["chameleon_lib.method.ccs"])) == [
        "chameleon_lib.method.ccs",
        "chameleon_lib.texts",
    ]
    assert "chameleon_lib.method.algebra" in sources.closure(["chameleon_lib.method.edit"])


def test_a_name_from_a_package_leads_to_its_home_and_not_to_its_siblings(base: Path) -> None:
    found = SourceTree(base).closure(["chameleon_lib.method:use"])
    assert list(found) == ["chameleon_lib.method.algebra", "chameleon_lib.method.edit"]


def test_a_name_from_a_lazy_table_leads_to_everything_the_table_names(base: Path) -> None:
    found = SourceTree(base).closure(["chameleon_lib:Chameleon"])
    assert {"chameleon_lib.method.chameleon", "chameleon_lib.method.ccs"} <= set(found)


@pytest.mark.parametrize("who", ["method/__init__.py", "texts.py"])
def test_whoever_walks_the_path_of_a_package_uses_all_its_modules(base: Path, who: str) -> None:
    walk = "import pkgutil\nfrom chameleon_lib import method\nFOUND = pkgutil.iter_modules({})\n"
    path = base / "chameleon_lib" / who
    own = path.name == "__init__.py"
    path.write_text(walk.format("__path__" if own else "method.__path__"), encoding="utf-8")
    found = SourceTree(base).closure([f"chameleon_lib.{'method' if own else 'texts'}"])
    assert {f"chameleon_lib.method.{name}" for name in ("algebra", "ccs", "edit")} <= set(found)


def test_digests_hold_model_files_beside_the_code_but_no_style(base: Path) -> None:
    names = list(SourceTree(base).digests(["chameleon_lib.method.algebra"], data=True))
    assert names == ["chameleon_lib/method/algebra.py", "chameleon_lib/method/weights/model.json"]


def test_prose_in_a_module_leaves_its_digest_and_a_constant_changes_it(base: Path) -> None:
    path = base / "chameleon_lib/method/algebra.py"

    def digest() -> str:
        return SourceTree(base).digest(["chameleon_lib.method.algebra"])

    before = digest()
    path.write_text('"""Words."""\n# more\n\nPI = 3\n', encoding="utf-8")
    assert digest() == before
    path.write_text("PI = 3.0\n", encoding="utf-8")
    assert digest() != before


def test_a_module_that_does_not_exist_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match="chameleon_lib.nowhere"):
        SourceTree(base).closure(["chameleon_lib.nowhere"])


def test_a_tree_is_a_snapshot_of_what_it_read_and_another_tree_reads_again(base: Path) -> None:
    path, names = base / "chameleon_lib/method/algebra.py", ["chameleon_lib.method.edit"]
    sources = SourceTree(base)
    before, other = sources.digest(names), sources.digest(["chameleon_lib.texts"])
    assert before != other
    path.write_text("PI = 4\n", encoding="utf-8")
    assert sources.digest(iter(names)) == before  # the process still runs the old code
    assert SourceTree(base).digest(names) != before
    assert SourceTree(base).digest(["chameleon_lib.texts"]) == other


def test_a_digest_is_found_once_and_stores_share_the_tree_of_the_process(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, asked = SourceTree(base), []
    closure = sources.closure

    def counting(modules: Iterable[str]) -> dict[str, Path]:
        asked.append(tuple(modules))
        return closure(asked[-1])

    monkeypatch.setattr(sources, "closure", counting)
    store = ArtifactStore(tmp_path, sources=sources)
    keys = {store.key("fit", at, ["chameleon_lib.method.ccs"]) for at in range(5)}
    assert len(keys) == 5 and asked == [("chameleon_lib.method.ccs",)]
    assert own_sources() is own_sources() and own_sources().base == paths.root()
    one, other = ArtifactStore(tmp_path), ArtifactStore(tmp_path / "other")
    assert one.key("fit", 1, ["chameleon_lib.errors"]) == other.key(
        "fit", 1, ["chameleon_lib.errors"]
    )
    monkeypatch.setattr(SourceTree, "closure", lambda *_: pytest.fail("read twice"))
    ArtifactStore(tmp_path).key("fit", 2, ["chameleon_lib.errors"])
