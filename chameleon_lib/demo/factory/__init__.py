"""What made the embedded models: examples, training, acceptance, cards. No run imports it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from chameleon_lib.errors import UserError


def run_script(main: Callable[[], int]) -> int:
    """The exit code of a script; whatever the user can put right is one sentence on stderr."""
    try:
        return main()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
