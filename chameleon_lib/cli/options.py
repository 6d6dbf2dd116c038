"""Options that several commands share, and those of a table of one's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, TypeVar

from typer import Argument
from typer import Option as Opt

R = TypeVar("R")

PROG = "python -m chameleon_lib"
EXIT_CODES = "exit codes: 0 ok, 1 a notebook failed, 2 usage, 3 environment, 130 interrupted"
PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}  # of every Typer

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
STORE = Opt(..., metavar="DIR", help="the profile store")
TABLE = Argument(..., help="csv, tsv, txt, json, jsonl, parquet, xlsx, also packed, or a folder")
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


def of_a_table(suffix: str = "") -> Callable[[Callable[..., R]], Callable[..., R]]:
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
