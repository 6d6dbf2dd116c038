"""`python -m workshop.explored 01 03`: run notebooks with the Explore cells that a run skips.

They run on the same store, into a folder below the cache; the outputs that readers see and the
ledger stay as they are.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from chameleon_lib.kit import paths
from chameleon_lib.kit.kernels import kernel_environment, private_jupyter
from chameleon_lib.kit.notebooks import SKIP_TAG, discover, select
from chameleon_lib.kit.profiles import PROFILES


def run_explored(source: Path, outputs: Path) -> int:
    """Run every cell of a notebook as a demo run.

    Args:
        source: the notebook; it is not changed.
        outputs: folder for its outputs.

    Returns:
        Number of Explore cells that ran.
    """
    book = nbformat.read(source, as_version=4)
    explored = 0
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        explored += SKIP_TAG in tags
        cell.metadata["tags"] = [tag for tag in tags if tag != SKIP_TAG]
    environment = kernel_environment(PROFILES["demo"], outputs / "progress" / source.stem)
    client = NotebookClient(book, timeout=None, kernel_name="python3",
                            resources={"metadata": {"path": str(outputs)}})  # fmt: skip
    with private_jupyter():
        client.execute(env=environment | {"CHAMELEON_OUTPUTS": str(outputs)})
    return explored


def main(numbers: list[str]) -> None:
    """Run the notebooks of these numbers, or all; what fails ends it with its traceback."""
    outputs = paths.cache_dir() / "explore"
    shutil.rmtree(outputs, ignore_errors=True)
    outputs.mkdir(parents=True)
    if paths.outputs_dir("demo").is_dir():  # the report reads what the others have written
        ignored = shutil.ignore_patterns("notebooks", "html", "*.partial*")
        shutil.copytree(paths.outputs_dir("demo"), outputs / "demo", ignore=ignored)
    for notebook in select(discover(paths.notebooks_dir()), numbers):
        print(f"{notebook.name}: {run_explored(notebook.path, outputs)} Explore cells ran")


if __name__ == "__main__":
    main(sys.argv[1:])
