"""``python -m chameleon_lib data <command>``: bring data into the layout that ``--data`` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from chameleon_lib.errors import UserError

# name -> (module:function of (argv) -> exit code, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "lamp": ("chameleon_lib.lamp.download.cli:main", "download the official LaMP files"),
    "users": ("chameleon_lib.lamp.grouping_cli:main", "say how sure rebuilt users are"),
    "import": ("chameleon_lib.lamp.importing:main", "turn a table of your own users into files"),
}


def main(argv: Sequence[str]) -> int:
    """Run one subcommand.

    Raises:
        UserError: An unknown subcommand, or what the subcommand refuses.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m chameleon_lib data <command> [options]\n")
        print("\n".join(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()))
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise UserError(f"Unknown command 'data {argv[0]}': choose one of {', '.join(COMMANDS)}.")
    module, _, function = COMMANDS[argv[0]][0].partition(":")
    run: Callable[[list[str]], int] = getattr(import_module(module), function)
    return run(list(argv[1:]))
