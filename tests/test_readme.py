"""What the README promises exists: commands, options, links, and the check of every change."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from chameleon_lib import cli
from chameleon_lib.kit.notebooks import discover
from chameleon_lib.kit.paths import notebooks_dir, root
from chameleon_lib.kit.profiles import PUBLIC
from chameleon_lib.kit.report import what_came_out
from chameleon_lib.kit.verdicts import load_verdicts

TEXT = (root() / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", TEXT)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()] + SPANS
LINKS = sorted({link for link in re.findall(r"\]\(([^)\s]+)\)", TEXT) if "://" not in link})


def options(command: str) -> list[str]:
    return re.findall(r"(?<!\S)--[a-z][a-z-]*", command)


def test_the_first_two_blocks_are_the_two_commands() -> None:
    assert BLOCKS[:2] == ["./run_all.sh\n", "./run_all.sh --test\n"]


def test_every_change_is_checked_by_exactly_the_readmes_test_command() -> None:
    lines = (root() / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    called = [line for line in lines if "run_all" in line]
    assert called == [f"exec {BLOCKS[1].strip()}"] and lines[-1] == called[0]


@pytest.mark.parametrize("link", LINKS)
def test_every_relative_link_resolves(link: str) -> None:
    path = link.partition("#")[0]
    if path.startswith("outputs/") and not (root() / "outputs" / "demo" / "index.html").is_file():
        pytest.skip("outputs/demo is not complete here; ./run_all.sh makes it")
    assert (root() / path).exists(), f"README.md links to {link}, which is not here"


def test_every_picture_has_an_alt_text() -> None:
    pictures = re.findall(r"!\[([^]]*)\]\(", TEXT)
    assert pictures and all(len(alt) > 20 for alt in pictures)


@pytest.mark.parametrize(
    "command", sorted({c for c in COMMANDS if c.startswith("python -m chameleon_lib ")})
)
def test_every_library_command_exists_with_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.split()[3:]
    name = words[: 2 if words[0] in ("data", "profiles") else 1]  # those have commands of their own
    try:
        code: object = cli.main([*name, "--help"])
    except SystemExit as ended:
        code = ended.code
    missing = set(options(command)) - set(options(capsys.readouterr().out))
    assert code == 0 and not missing, f"{name} has no option {sorted(missing)}"


def test_every_other_option_is_one_of_run_all() -> None:
    result = subprocess.run(
        [str(root() / "run_all.sh"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    known = set(options(result.stdout))
    mentioned = {
        option
        for command in COMMANDS
        if command.startswith(("./run_all.sh", "--"))
        for option in options(command)
    }
    assert {"--test", "--lab", "--only", "--data", "--users", "--list", "--plan"} <= mentioned
    assert mentioned <= known, f"run_all.sh knows no {sorted(mentioned - known)}"


def test_the_command_for_own_files_reaches_a_parameter_of_its_notebook(tmp_path: Path) -> None:
    assert "./run_all.sh --only 01 --data DIR --users N" in COMMANDS
    words = ["plan", "--only", "01", "--data", str(tmp_path), "--users", "3"]
    assert cli.main(words) == 0


def test_every_profile_and_every_notebook_is_named() -> None:
    for name in PUBLIC:
        assert f"| `{name}` |" in TEXT
    for notebook in discover(notebooks_dir()):
        assert f"(notebooks/{notebook.name}.ipynb)" in TEXT
    linked = re.findall(r"\[(\d\d)_\w+\]\(notebooks", TEXT)
    assert linked == [notebook.number for notebook in discover(notebooks_dir())]


def test_the_layout_names_what_is_there() -> None:
    layout = TEXT.split("## The map")[1].split("```")[1]
    lines = re.findall(r"^( *)(\S+(?: \S+)*)  ", layout, flags=re.MULTILINE)
    names = [(indent, name) for indent, words in lines for name in words.split()]
    missing = [
        name
        for indent, name in names
        if name != "outputs/demo/"
        and not (root() / ("chameleon_lib" if indent else "") / name).exists()
    ]
    assert len(names) > 8 and missing == []


def test_the_version_cited_is_that_of_the_package() -> None:
    project = tomllib.loads((root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version {project['version']}" in TEXT


def test_what_came_out_is_that_of_the_committed_run(committed_demo: Path) -> None:
    assert what_came_out(load_verdicts("demo", committed_demo / "verdicts")) in TEXT
