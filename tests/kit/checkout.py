"""A small checkout in a temporary folder: the real kit, tiny notebooks, a stub for the report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from chameleon_lib.kit.paths import root

PARAMETERS = 'profile: str = "demo"  # run profile\nseeds: int = 2  # repetitions'
REPORT = '''"""A stand-in that only proves when it is called."""
from pathlib import Path
from chameleon_lib.kit.paths import executed_dir, outputs_dir


def build(profile: str, only: list[str] | None = None, underway: str = "") -> Path:
    index = outputs_dir(profile) / "index.html"
    pages = sorted(p.read_text(encoding="utf-8") for p in executed_dir(profile).glob("??_*.ipynb"))
    index.write_text(underway + "".join(pages), encoding="utf-8")
    return index
'''
TABLE = """from chameleon_lib.kit.paths import replace_text, tables_dir
from chameleon_lib.constants import SIZE
replace_text(tables_dir(profile) / "size.csv", f"size,seeds\\n{SIZE},{seeds}\\n")
print(SIZE * seeds)"""


def notebook(
    folder: Path,
    name: str,
    code: Sequence[str],
    *,
    prose: str = "Section 4.2.",
    skipped: str = "",
    parameters: str = PARAMETERS,
) -> Path:
    """Write a source notebook with stable ids: prose, parameters, code cells, one skipped cell."""
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    book.metadata["kernelspec"]["language"] = "python"
    book.metadata["language_info"] = {"name": "python"}
    cells: list[Any] = [nbformat.v4.new_markdown_cell(f"# Title of {name}\n\n{prose}", id="claim")]
    declared = nbformat.v4.new_code_cell(parameters, id="parameters")
    declared.metadata["tags"] = ["parameters"]
    cells.append(declared)
    for number, source in enumerate(code):
        cells.append(nbformat.v4.new_code_cell(source, id=f"code-{number}"))
    if skipped:
        explore = nbformat.v4.new_code_cell(skipped, id="explore")
        explore.metadata["tags"] = ["skip-execution"]
        cells.append(explore)
    book.cells = cells
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


def environment(**extra: str) -> dict[str, str]:
    """This process's variables without what another test may have set."""
    names = ("CHAMELEON_CACHE", "CHAMELEON_OUTPUTS", "CHAMELEON_PROGRESS", "PYTHONPATH")
    return {n: v for n, v in os.environ.items() if n not in names} | extra


class Checkout:
    """A copy of the kit under `base`, driven by its own command line.

    Args:
        base: an empty folder; braces and blanks in its name are welcome.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.notebooks = base / "notebooks"
        self.outputs = base / "outputs" / "demo"
        self.executed = self.outputs / "notebooks"
        package = base / "chameleon_lib"
        unused = shutil.ignore_patterns("__pycache__", "templates")
        for name in ("kit", "cli"):
            shutil.copytree(root() / "chameleon_lib" / name, package / name, ignore=unused)
        for name in ("__init__.py", "__main__.py", "errors.py"):
            shutil.copy(root() / "chameleon_lib" / name, package / name)
        shutil.copy(root() / "environment.yml", base / "environment.yml")
        (package / "kit" / "report.py").write_text(REPORT, encoding="utf-8")
        self.constants = package / "constants.py"
        self.constants.write_text('"""Numbers."""\nSIZE = 21\n', encoding="utf-8")

    def limit_seconds(self, seconds: float) -> None:
        """Give a notebook of the demo that long."""
        profiles = self.base / "chameleon_lib" / "kit" / "profiles.py"
        text, usual = profiles.read_text(encoding="utf-8"), "timeout_minutes=120"
        assert usual in text
        shorter = text.replace(usual, f"timeout_minutes={seconds / 60}")
        profiles.write_text(shorter, encoding="utf-8")

    def command(self, *words: str) -> list[str]:
        """The command line of the kit."""
        return [sys.executable, "-m", "chameleon_lib", *words]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the kit's command line and wait."""
        return self.wait_for(self.command(*words))

    def wait_for(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout and wait."""
        return subprocess.run(
            command,
            cwd=self.base,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def files(self) -> dict[str, bytes]:
        """All outputs but the measured ones, by name."""
        return {
            path.relative_to(self.outputs).as_posix(): path.read_bytes()
            for path in sorted(self.outputs.rglob("*"))
            if path.is_file() and "measured" not in path.parts
        }
