"""``python -m chameleon_lib data users``: how users are rebuilt, and what counts as one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from chameleon_lib.command_line import Parser
from chameleon_lib.lamp.data import find_split, load_samples
from chameleon_lib.lamp.grouping import (
    DECLARATION,
    LAX,
    REBUILT,
    SAMPLES,
    STRICT,
    Choice,
    GroupingReport,
    declare,
    grouping_report,
    read_choice,
)
from chameleon_lib.lamp.tasks import get_task


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0 and up to 1")
    return value


def _parser() -> Parser:
    parser = Parser(
        prog="python -m chameleon_lib data users",
        description="Say how many users the samples of a file are by overlapping profiles, and how "
        "sure that is; with --declare, write what counts as a user into the data folder.",
        allow_abbrev=False,
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with LaMP files")
    parser.add_argument(
        "--task", default="LaMP_2", help="default %(default)s, which names no users"
    )
    parser.add_argument("--split", default="dev", help="train, dev or test (default: dev)")
    parser.add_argument(
        "--min-overlap", type=_share, metavar="J",
        help="Jaccard index from which two profiles belong to one user (default: what the folder "
        "declares, else 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--declare", choices=(REBUILT, SAMPLES),
        help=f"write into DIR/{DECLARATION} that users are rebuilt, or that every sample is one",
    )  # fmt: skip
    return parser


def table(report: GroupingReport) -> list[str]:
    """The report as lines of a name and a number."""
    counts = {
        "samples": report.samples,
        f"users, profiles overlapping by {report.min_overlap:g} or more": report.users,
        "samples of the largest user": report.largest,
        "samples alone with their user": report.alone,
        **{
            f"samples whose nearest overlaps by {low:g} to {high:g}": count
            for low, high, count in report.bands
        },
        f"ambiguous: would join another user at {LAX:g}": report.could_merge,
        f"ambiguous: would leave their user at {STRICT:g}": report.could_split,
        "connected through other samples only": report.chained,
        "connected by fewer than three items": report.thin,
    }
    whole = max(1, report.samples)
    return [f"{name:<52}{n:>7}{n / whole:>9.1%}" for name, n in counts.items()]


def main(argv: Sequence[str]) -> int:
    """Command line; see ``--help``.

    Raises:
        UserError: A bad option, or files that cannot be read.
    """
    options = _parser().parse_args(argv)
    folder, task = Path(options.data), get_task(options.task).name
    questions, outputs = find_split(folder, task, options.split)
    now = read_choice(folder, task)
    overlap = now.min_overlap if options.min_overlap is None else options.min_overlap
    print(f"{questions}")
    print("\n".join(table(grouping_report(load_samples(questions, outputs, task), overlap))))
    if options.declare:
        path = declare(folder, task, Choice(options.declare, overlap))
        print(f"{path}: {task} users are {options.declare}, overlap {overlap:g}.")
    else:
        print(f"A run over this folder takes {task} users as {now.users} ({now.min_overlap:g}).")
    return 0
