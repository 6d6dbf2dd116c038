"""What tests of several folders share: the committed demo run, its pages written anew."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from chameleon_lib.kit import paths
from chameleon_lib.kit.report import build

# Results; the pages are made from them.
RESULTS = ("figures", "notebooks", "tables", "verdicts", "run_facts.json")


@pytest.fixture(scope="session")
def demo_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the committed demo run, its pages built by the present code (read only)."""
    committed = paths.root() / "outputs" / "demo"
    if not (committed / "index.html").is_file():
        pytest.skip("outputs/demo is not complete here; ./run_all.sh makes it")
    outputs = tmp_path_factory.mktemp("outputs")
    folder = outputs / "demo"
    folder.mkdir()
    for name in RESULTS:
        source = committed / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAMELEON_OUTPUTS", str(outputs))
        build("demo")
    return folder


@pytest.fixture(scope="session")
def committed_demo() -> Path:
    """outputs/demo as it was committed; a run of the reader's own in its place is no drift."""
    folder = paths.root() / "outputs" / "demo"
    if not (folder / "index.html").is_file():
        pytest.skip("outputs/demo is not complete here; ./run_all.sh makes it")
    asked = subprocess.run(
        ["git", "status", "--porcelain", "--", str(folder)],
        cwd=paths.root(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if asked.returncode == 0 and asked.stdout.strip():
        pytest.skip("outputs/demo holds a run of your own, not the committed one")
    return folder
