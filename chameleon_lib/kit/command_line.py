"""Values that several commands take, and the parser of the commands that run without typer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from chameleon_lib.errors import UserError
from chameleon_lib.kit.notebooks import PATHS
from chameleon_lib.kit.profiles import model_id

# Parameters with an option of their own, which checks the value and chooses the profile by it.
_OPTION_OF = {
    "profile": "profile",
    "data_dir": "data",
    "users": "users",
    "seeds": "seeds",
    "backbones": "backbone",
}


class Parser(argparse.ArgumentParser):
    """argparse that refuses in one sentence instead of a usage screen."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]} (see {self.prog} --help).")


def positive(text: str) -> int:
    """The whole number of 1 or more that an option takes."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def notebook_numbers(text: str) -> list[str]:
    """The numbers that `--only` takes, two digits each; none for an empty text.

    Raises:
        UserError: for separators without a number, which must not pass for all notebooks.
    """
    numbers = [part.strip() for part in text.split(",") if part.strip()]
    if text and not numbers:
        raise UserError("--only takes notebook numbers such as 01,03.")
    return [number.zfill(2) for number in numbers]


def overrides(
    data: str | None,
    users: int | None,
    seeds: int | None,
    settings: Sequence[str],
    backbones: Sequence[str] = (),
) -> dict[str, Any]:
    """Parameter values from the options; those of ``--set`` are text, which each notebook reads.

    A kernel works in a folder of its own, so a path is made one from where the reader stands.

    Raises:
        UserError: for a missing folder or file, or a `--set` that is malformed or names a
            parameter with an option of its own.
    """
    numbers = {"users": users, "seeds": seeds}
    values: dict[str, Any] = {name: n for name, n in numbers.items() if n is not None}
    if backbones:
        values["backbones"] = [model_id(name) for name in backbones]
    if data is not None:
        values["data_dir"] = _found(data, "data folder")
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--set takes NAME=VALUE, not '{text}'.")
        if name in _OPTION_OF:
            raise UserError(f"--set does not take {name}: use --{_OPTION_OF[name]}.")
        values[name] = _found(value, name) if name in PATHS and value else value
    return values


def _found(path: str, what: str) -> str:
    if not Path(path).exists():
        raise UserError(f"There is no {what} {path}.")
    return str(Path(path).absolute())
