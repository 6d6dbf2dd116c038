from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from chameleon_lib.kit import environment
from chameleon_lib.kit.paths import environment_file


def test_the_standard_library_reading_equals_that_of_pyyaml() -> None:
    parsed = yaml.safe_load(environment_file().read_text(encoding="utf-8"))
    (pip,) = [item["pip"] for item in parsed["dependencies"] if isinstance(item, dict)]
    assert environment.requirements() == pip
    assert f"python={environment.python_version()}" in parsed["dependencies"]


def test_every_package_is_pinned_says_who_needs_it_and_the_library_comes_last() -> None:
    lines = [
        line for line in environment_file().read_text(encoding="utf-8").splitlines()
        if line.startswith("      - ")
    ]  # fmt: skip
    assert all("  # " in line for line in lines)
    assert environment.requirements()[-1] == "-e ."
    assert all(item.count("==") == 1 for item in environment.requirements()[:-1])


@pytest.mark.parametrize(
    "line", ["[torch, numpy]", "&pins torch==2", "|", "'torch==2'", '"torch==2"', "{a: b}"]
)
def test_shapes_it_cannot_read_are_refused_by_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "environment.yml"
    text = f"name: x\ndependencies:\n  - python=3.11\n  - pip:\n      - {line}\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="environment.yml line 5"):
        environment.requirements(path)


def test_problems_name_what_is_missing_and_what_differs() -> None:
    pins = [f"pytest=={metadata.version('pytest')}", "pytest==0.1", "no-such-package==1", "-e ."]
    problems = environment.satisfied(pins)
    assert problems == [
        f"pytest is {metadata.version('pytest')}, wanted 0.1",
        "no-such-package is not installed",
    ]
    assert environment.satisfied(pins, any_version=True) == problems[1:]


def test_the_script_runs_without_any_installed_package() -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", str(environment.__file__), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("--requirements").stdout.splitlines() == environment.requirements()
    assert run("--hash").stdout.strip() == environment.environment_hash()
    check = run("--check")
    assert check.returncode == 1 and "torch is not installed" in check.stdout
    assert run("--nonsense").returncode == 2
