"""The house as a whole: imports go one way, and every code that is cited is defined."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon_lib.kit.paths import notebooks_dir, package_dir, root

SOURCES = [*sorted(package_dir().rglob("*.py")), *sorted(notebooks_dir().glob("*.ipynb"))]
CODES = {
    f"{letter}{number}"
    for letter, last in (("A", 23), ("B", 11), ("C", 15), ("R", 26))
    for number in range(1, last + 1)
}


def test_imports_go_one_way_and_no_room_imports_one_that_imports_it() -> None:
    # In a process of its own: import-linter silences the loggers that it finds.
    command = "from importlinter.cli import lint_imports_command as lint; lint()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=root(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_code_is_defined_on_one_page() -> None:
    page = (package_dir() / "METHOD.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| ([ABCR]\d+) \|", page, flags=re.MULTILINE)) == CODES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(root()).as_posix())
def test_sources_cite_codes_that_are_defined(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cited = set(re.findall(r"(?<![\w-])[ABCR]\d{1,2}(?![\w-])", text))
    assert cited <= CODES, f"METHOD.md defines no {', '.join(sorted(cited - CODES))}"
    assert "method reference" not in text.casefold(), "cite METHOD.md, or a section of the paper"
