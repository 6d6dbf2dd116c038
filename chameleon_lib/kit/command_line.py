"""Values that several commands take, and the parser of the commands that run without typer."""

from __future__ import annotations

import argparse
from typing import NoReturn

from chameleon_lib.errors import UserError


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
