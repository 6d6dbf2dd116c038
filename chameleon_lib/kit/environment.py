"""Read the restricted shape of environment.yml and compare it with what is installed.

Standard library only and no import from the package: `run_all.sh` runs this file as a script
before anything is installed.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

DEFAULT_FILE = Path(__file__).resolve().parents[2] / "environment.yml"
_ITEM = re.compile(r"^(?P<indent> *)- (?P<value>[^#\s][^#]*?)\s*(?:#.*)?$")


def _items(path: Path, in_pip: bool) -> list[str]:
    """List items of `dependencies:`, either those below `- pip:` or those beside it."""
    found: list[str] = []
    section, pip_indent = "", -1
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line.startswith((" ", "-")):
            section = line.split(":")[0]
            continue
        item = _ITEM.match(line)
        if item is None or item["value"][0] in "[{&*|>\"'":
            raise ValueError(f"{path.name} line {number}: write one plain '- name==version' item.")
        if section != "dependencies":
            continue
        if item["value"] == "pip:":
            pip_indent = len(item["indent"])
        elif (0 <= pip_indent < len(item["indent"])) == in_pip:
            found.append(item["value"])
    return found


def requirements(path: Path = DEFAULT_FILE) -> list[str]:
    """The pip items in file order, such as `torch==2.13.0`; the last one is `-e .`.

    Raises:
        ValueError: naming the line, for a shape this reader does not know.
    """
    return _items(path, in_pip=True)


def python_version(path: Path = DEFAULT_FILE) -> str:
    """The Python minor that the file pins, such as `3.11`."""
    pins = [item for item in _items(path, in_pip=False) if item.startswith("python=")]
    if len(pins) != 1:
        raise ValueError(f"{path.name} must pin python=X.Y once.")
    return pins[0].removeprefix("python=").lstrip("=")


def satisfied(items: Sequence[str], *, any_version: bool = False) -> list[str]:
    """Compare pins with the running interpreter.

    Args:
        items: `name==version` items; items that start with `-` (such as `-e .`) are skipped,
            because the driver puts the checkout on the path itself.
        any_version: accept other versions and report only what is missing.

    Returns:
        One phrase per problem; empty if all is well.
    """
    problems = []
    for item in items:
        if item.startswith("-"):
            continue
        name, _, wanted = item.partition("==")
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed")
            continue
        # A local build such as 2.13.0+cpu satisfies the pin 2.13.0, as pip sees it.
        public = found if "+" in wanted else found.partition("+")[0]
        if wanted and public != wanted and not any_version:
            problems.append(f"{name} is {found}, wanted {wanted}")
    return problems


def environment_hash(path: Path = DEFAULT_FILE) -> str:
    """sha256 of environment.yml: the stamp of an installed environment."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str]) -> int:
    """Answer `run_all.sh`: 0 if all is well, 1 with one phrase per line if not, 2 for misuse."""
    command = argv[0] if len(argv) == 1 else ""
    if command == "--requirements":
        print("\n".join(requirements()))
        return 0
    if command == "--hash":
        print(environment_hash())
        return 0
    if command in ("--check", "--check-installed"):
        problems = satisfied(requirements(), any_version=command == "--check-installed")
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        if command == "--check" and running != python_version():
            problems.insert(0, f"Python is {running}, wanted {python_version()}")
        if problems:
            print("\n".join(problems))
        return 1 if problems else 0
    print("usage: environment.py --check | --check-installed | --requirements | --hash")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
