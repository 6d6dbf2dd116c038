"""`python -m chameleon_lib page`: the pages of a profile anew, from what its notebooks left."""

from __future__ import annotations

from collections.abc import Sequence

from chameleon_lib.command_line import Parser
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.profiles import PUBLIC


def main(argv: Sequence[str]) -> int:
    """Write index.html and html/ of a profile; no notebook runs.

    Args:
        argv: command line without the program and command name.

    Returns:
        0.

    Raises:
        UserError: if no notebook of the profile has been executed.
    """
    parser = Parser(
        prog="python -m chameleon_lib page",
        description="Write outputs/<profile>/index.html and html/ from stored results.",
        allow_abbrev=False,
    )
    parser.add_argument("--profile", choices=PUBLIC, default="demo", help="whose pages")
    profile = parser.parse_args(argv).profile
    if not any(paths.executed_dir(profile).glob("*.ipynb")):
        folder = paths.display(paths.executed_dir(profile))
        raise UserError(f"{folder} holds no executed notebook: run ./run_all.sh first.")
    from chameleon_lib.kit.report import build

    print(f"Read: {paths.display(build(profile))}")
    return 0
