"""One user of your own, one query, one personalised answer: ``python -m chameleon_lib answer``."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from chameleon_lib.command_line import Parser
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import PUBLIC, for_data, get_profile
from chameleon_lib.lamp.importing import (
    add_table_options,
    read_table,
    table_options,
    write_import,
)
from chameleon_lib.lamp.records import User
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.own_users import Asked, ask, everyone_else, find_user, load_own

_INDENT = "    "


def _parser() -> Parser:
    parser = Parser(
        prog="python -m chameleon_lib answer",
        description="Answer a query of one of your own users, without and with the edit.",
        epilog="The edit is fitted on a group of the other users of the table; no held-out label "
        "of theirs is read.",
        allow_abbrev=False,
    )
    parser.add_argument("--data", metavar="DIR", help="folder that 'data import' wrote")
    parser.add_argument("--csv", metavar="FILE", help="or the table itself (csv, jsonl, parquet)")
    parser.add_argument("--task", required=True, help="LaMP_2, LaMP_3 or LaMP_7")
    parser.add_argument("--user", default="", metavar="ID", help="whose query; default: the first")
    parser.add_argument(
        "--query", default="", metavar="TEXT",
        help="the query; default: the user's first held-out row, whose own answer is known",
    )  # fmt: skip
    parser.add_argument("--profile", choices=PUBLIC, default="demo", help="size of the run")
    parser.add_argument("--backbone", default="", metavar="ID", help="default: the profile's first")
    add_table_options(parser, suffix="-column")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``.

    Raises:
        UserError: Whatever the user can put right, in one sentence.
    """
    args = _parser().parse_args(argv)
    if (args.data is None) == (args.csv is None):
        raise UserError("Give either --data DIR or --csv FILE.")
    if args.query and not args.query.strip():
        raise UserError("--query holds blanks alone; give the text that is asked.")
    profile = get_profile(for_data(args.profile, True))
    users = _users(args)
    user = find_user(users, args.user)
    data = everyone_else(profile, users, user)
    print(profile.banner)
    torch.set_num_threads(profile.threads)
    transformers_logging.disable_progress_bar()
    backbone = args.backbone or profile.studied[0]
    asked = ask(profile, backbone, data, user, " ".join(args.query.split()))
    print("\n".join(_lines(asked, backbone)))
    return 0


def _users(args: argparse.Namespace) -> list[User]:
    """The users of the folder, or of the table."""
    task = get_task(args.task).name
    if args.data is not None:
        return load_own(Path(args.data), task)
    report = read_table(Path(args.csv), task, table_options(args))
    print(report.kept())
    for row in report.summary():
        print(f"{_INDENT}{row['reason']}: {row['rows']} rows, first {row['first']}")
    # Through files, as with --data, so that both ways give the same users.
    with tempfile.TemporaryDirectory(prefix="chameleon-import-") as folder:
        write_import(report, Path(folder))
        return load_own(Path(folder), task)


def _lines(asked: Asked, backbone: str) -> list[str]:
    """What the command prints, from the history to the answers."""
    tour = asked.tour
    user = tour.user
    lines = [
        "",
        f"user {user.user.id} ({tour.study.task}), backbone {backbone}",
        f"query: {user.user.queries[0].text}",
        f"history: {len(user.items)} of {len(user.user.history)} items are shown to the model",
    ]
    for item in user.items:
        lines.append(f"{_INDENT}- {item.text}" + (f" -> {item.label}" if item.label else ""))
    lines += [
        f"insight: {user.insight_p}",
        f"neutral insight: {user.insight_n}",
        f"pairs: {len(tour.pairs)} of {asked.group()}, {len(tour.kept)} with different answers "
        "fit the edit",
        f"edited layers: {', '.join(map(str, tour.layers))} of {tour.study.backbone.n_layers} "
        "(paper), all of them (fitted)",
        f"margin: log-probability of {asked.compared}, in nats",
        "",
    ]
    table = asked.table()
    width = max(map(len, table["prompt and edit"]))
    for name, answer, margin in zip(
        table["prompt and edit"], table["answer"], table["margin (nats)"], strict=True
    ):
        shown = "  same" if math.isnan(margin) else f"{margin:+6.2f}"
        lines.append(f"{name:<{width}}  {shown}  {answer}")
    if table["margin (nats)"].isna().all():
        lines.append("The two answers are the same text, so there is no margin.")
    return lines
