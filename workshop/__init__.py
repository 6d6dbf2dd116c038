"""What made the files that the library ships: the embedded models, their acceptance and cards.

Scripts, run from the checkout as ``python -m workshop.<name>``; the library imports none of them.
"""

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
