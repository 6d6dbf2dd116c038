"""`python -m chameleon_lib`: the command line of the kit."""

from __future__ import annotations

import os
import sys

try:
    from chameleon_lib.cli import main
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "typer":
        raise
    from chameleon_lib.kit.plan import main  # nothing is installed yet


def run() -> int:
    """The exit code; 1 where nobody reads on, as when typer itself comes upon the closed pipe."""
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # What is left to be written goes nowhere, or Python complains once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(run())
