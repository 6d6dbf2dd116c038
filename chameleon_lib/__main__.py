"""`python -m chameleon_lib`: the command line of the kit."""

from __future__ import annotations

import sys

try:
    from chameleon_lib.cli import main
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "typer":
        raise
    from chameleon_lib.kit.plan import main  # nothing is installed yet

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
