"""Commands on users of one's own: LaMP files, tables, answers, fits, and anybody's predictions."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from typer import Argument
from typer import Option as Opt

from chameleon_lib.cli.options import PLAIN, PROFILE, TABLE, TASK, Profile, of_a_table
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.profiles import for_data

if TYPE_CHECKING:
    from chameleon_lib.core.task import User

app = typer.Typer(**PLAIN)
data_app = typer.Typer(help="Get LaMP files, or make them of your users.", **PLAIN)
app.add_typer(data_app, name="data")


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


@data_app.command("import")
@of_a_table()
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
@of_a_table()
def check_table(table: Path = TABLE, task: str = TASK, options: Any = None) -> int:
    """Say what an import of a table would read, keep, drop and ask; nothing is written."""
    from chameleon_lib.data.importing import look_at

    report = look_at(table, task, options)
    print(report.picture())
    return 2 if report.curated.questions or not report.curated.users else 0


@app.command()
@of_a_table("_column")
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
@of_a_table("_column")
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
