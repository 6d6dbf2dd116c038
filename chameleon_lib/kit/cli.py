"""`python -m chameleon_lib <command>`: one table of commands, each loaded only when it is used."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from chameleon_lib.command_line import Parser, notebook_numbers, positive
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.profiles import PUBLIC, QUANTIZE, for_data

# name -> (module:function of (argv) -> exit code, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("chameleon_lib.kit.cli:run", "run the notebooks that are not up to date"),
    "list": ("chameleon_lib.kit.cli:show_list", "list notebooks, titles and parameters"),
    "plan": ("chameleon_lib.kit.cli:show_plan", "say what would run, why, and what it would cost"),
    "lab": ("chameleon_lib.kit.lab:main", "open JupyterLab on notebooks/"),
    "explore": ("chameleon_lib.kit.explored:main", "run the notebooks with their Explore cells"),
    "verify": ("chameleon_lib.kit.verify:main", "compare a fresh run with the committed tables"),
    "readme": ("chameleon_lib.kit.readme:main", "write the verdict table of README.md"),
    "page": ("chameleon_lib.kit.page_cli:main", "write the pages anew from the stored results"),
    "screens": ("chameleon_lib.kit.screens:main", "picture the page, and JupyterLab after Run All"),
    "data": ("chameleon_lib.lamp.data_cli:main", "get LaMP files, or make them of your users"),
    "answer": (
        "chameleon_lib.sections.answer_cli:main",
        "answer a query of one of your own users",
    ),
    "bench": ("chameleon_lib.bench:main", "measure speed and memory"),
    "export": ("chameleon_lib.profiles.export_cli:main", "write stored profiles as adapters"),
    "acceptance": (
        "chameleon_lib.backbones.demo.acceptance:main",
        "check that the embedded models can show an effect",
    ),
    "candidates": (
        "chameleon_lib.sections.candidates:main",
        "compare what the demo's rates and steps were chosen from",
    ),
    "train": ("chameleon_lib.backbones.demo.train:main", "train the embedded models again"),
    "world": (
        "chameleon_lib.backbones.demo.world_cli:main",
        "write the embedded world as LaMP files",
    ),
    "profiles": ("chameleon_lib.profiles.cli:main", "list, show and forget stored edit profiles"),
}
# Parameters with an option of their own, which checks the value and chooses the profile by it.
_OPTION_OF = {"profile": "profile", "data_dir": "data", "users": "users", "seeds": "seeds"}
EXIT_CODES = "exit codes: 0 ok, 1 a notebook failed, 2 usage, 3 environment, 130 interrupted"


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: command line without the program name.

    Returns:
        The exit code; 2 with one sentence on stderr for whatever the user can put right.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"Unknown command '{argv[0]}': choose one of {', '.join(COMMANDS)}.")
        return _load(COMMANDS[argv[0]][0])(list(argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _help() -> str:
    lines = [f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m chameleon_lib <command> [options]", "", *lines, "", EXIT_CODES]
    )


def _load(target: str) -> Callable[[list[str]], int]:
    module, _, function = target.partition(":")
    loaded: Callable[[list[str]], int] = getattr(import_module(module), function)
    return loaded


def _parser(command: str) -> Parser:
    parser = Parser(
        prog=f"python -m chameleon_lib {command}",
        description=COMMANDS[command][1],
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    if command != "list":
        parser.add_argument(
            "--profile", choices=PUBLIC, default="demo", help="size of the run"
        )
    parser.add_argument("--only", default="", metavar="01,03", help="notebook numbers")
    if command != "list":
        parser.add_argument("--data", metavar="DIR", help="folder with LaMP files")
        parser.add_argument(
            "--quantize", choices=tuple(QUANTIZE), help="4-bit weights, with laptop or paper"
        )
        parser.add_argument("--users", type=positive, metavar="N", help="users per task")
        parser.add_argument("--seeds", type=positive, metavar="N", help="seeds")
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="any other parameter of a notebook, as a Python literal; repeatable",
        )
    return parser


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Parameter values from the options.

    Raises:
        UserError: for a missing data folder, or a `--set` that is malformed or names a parameter
            with an option of its own.
    """
    values: dict[str, Any] = {}
    for name in ("users", "seeds"):
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    if options.data is not None:
        folder = Path(options.data).absolute()
        if not folder.exists():
            raise UserError(f"There is no data folder {options.data}.")
        values["data_dir"] = str(folder)
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--set takes NAME=VALUE, not '{text}'.")
        if name in _OPTION_OF:
            raise UserError(f"--set does not take {name}: use --{_OPTION_OF[name]}.")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value  # a bare word is a string
    return values


def run(argv: Sequence[str]) -> int:
    """`run`: bring the outputs of a profile up to date."""
    from chameleon_lib.kit.driver import run_notebooks

    parser = _parser("run")
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="notebooks at a time"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="run notebooks that are up to date, too; finished units are still reused "
        "(delete .chameleon/ to compute everything again)",
    )
    options = parser.parse_args(argv)
    return run_notebooks(
        for_data(options.profile, options.data is not None, options.quantize),
        notebook_numbers(options.only),
        _overrides(options),
        force=options.force,
        jobs=options.jobs,
    )


def show_list(argv: Sequence[str]) -> int:
    """`list`: notebooks with titles and parameters."""
    from chameleon_lib.kit.notebooks import discover, select

    options = _parser("list").parse_args(argv)
    for notebook in select(discover(paths.notebooks_dir()), notebook_numbers(options.only)):
        print(f"{notebook.number}  {notebook.title()}")
        print(f"    {paths.display(notebook.path)}")
        for item in notebook.parameters().values():
            kind = f": {item.annotation}" if item.annotation else ""
            print(f"    {item.name}{kind} = {item.default!r}")
    return 0


def show_plan(argv: Sequence[str]) -> int:
    """`plan`: what would run, and why; what it would cost; what is missing here."""
    from chameleon_lib.kit import hub, needs
    from chameleon_lib.kit.forecast.report import Speed, text
    from chameleon_lib.kit.plan import Run
    from chameleon_lib.kit.preflight import scope_of

    parser = _parser("plan")
    parser.add_argument(
        "--tflops", metavar="R[,W]", help="TFLOP/s of the device: reading, and writing answers"
    )
    options = parser.parse_args(argv)
    profile = for_data(options.profile, options.data is not None, options.quantize)
    speed = None if options.tflops is None else Speed.parse(options.tflops)
    planned = Run(profile, _overrides(options), notebook_numbers(options.only))
    what_of: dict[str, list[str]] = {"run": [], "prose": [], "cached": []}
    for notebook, what, why in planned.plan():
        print(f"{notebook.number}  {what:<7}{notebook.name}{'  (' + why + ')' if why else ''}")
        what_of[what].append(notebook.number)
    if what_of["run"]:
        scope, stored = scope_of(planned), what_of["prose"] + what_of["cached"]
        print(f"\n{text(scope, what_of['run'], stored, speed=speed, present=hub.in_cache)}")
        stops, warns = needs.missing(scope, what_of["run"])
        if scope.profile.data != "demo" and options.data is None:
            stops.append("The users: name the folder of the LaMP files with --data.")
        lines = [f"  {sentence}" for sentence in (*stops, *warns)] or ["  nothing"]
        print("\n".join(["", "Missing on this machine:", *lines]))
    return 0
