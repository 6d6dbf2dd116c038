"""The argument parser of all commands."""

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
