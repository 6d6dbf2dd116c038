"""`python -m chameleon_lib`: the command line of the kit."""

from __future__ import annotations

import sys

from chameleon_lib.kit.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
