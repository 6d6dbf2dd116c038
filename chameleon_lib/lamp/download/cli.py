"""``python -m chameleon_lib data lamp``: download the official LaMP files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from chameleon_lib.command_line import Parser, positive
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.download import (
    BASE_URL,
    LOCK,
    PARTS,
    SPLITS,
    Manners,
    OfficialFile,
    download,
    folder_of,
    official_files,
)
from chameleon_lib.lamp.download.meter import Meter


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return value


def _parser() -> Parser:
    parser = Parser(
        prog="python -m chameleon_lib data lamp",
        description="Download the official LaMP files, check every record, and note their hashes. "
        "An interrupted download goes on where it stopped; finished files are verified and not "
        "asked for again. The usual proxy variables count (https_proxy, all_proxy, no_proxy).",
        allow_abbrev=False,
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="receives the files")
    parser.add_argument(
        "--task", action="append", default=[], metavar="TASK",
        help="LaMP_2, LaMP_3 or LaMP_7; repeatable (default: all three)",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=SPLITS, default="user",
        help="user: disjoint users, the paper's (default); time: the same users in all parts",
    )  # fmt: skip
    parser.add_argument(
        "--parts", default=",".join(PARTS), metavar="A,B", help="parts, default %(default)s"
    )
    parser.add_argument(
        "--base-url", default=BASE_URL, metavar="URL", help="a mirror (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=Manners.timeout, metavar="S",
        help="seconds without data until a connection is given up (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--attempts", type=positive, default=Manners.attempts, metavar="N",
        help="attempts without progress until a file is given up (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--accept-changed", action="store_true",
        help="take files whose size, number of records or hash is not the known one",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="name the files and download nothing")
    return parser


def main(argv: Sequence[str]) -> int:
    """Command line; see ``--help``.

    Raises:
        UserError: A bad option, or a file that cannot be had or is not what its name says.
    """
    options = _parser().parse_args(argv)
    parts = [part.strip() for part in options.parts.split(",") if part.strip()]
    if not parts:
        raise UserError(f"--parts takes some of {', '.join(PARTS)}, with commas between.")
    files = official_files(options.task, options.split, parts)
    if options.list:
        print("\n".join(_listed(options.base_url, file) for file in files))
        return 0
    folder = Path(options.to)
    fetched = download(
        folder,
        files,
        listener=Meter(),
        base_url=options.base_url,
        manners=Manners(timeout=options.timeout, attempts=options.attempts),
        accept_changed=options.accept_changed,
    )
    print(f"{fetched} of {len(files)} files downloaded, the others were in place; {folder / LOCK}")
    if "test" in parts:
        print("LaMP withholds the labels of its test part: there is no test_outputs.json.")
    use = folder / folder_of(options.split)
    print(f"Use them with: ./run_all.sh --profile laptop --data {use}")
    return 0


def _listed(base_url: str, file: OfficialFile) -> str:
    size = f", {file.bytes / 1e6:,.1f} MB when last seen" if file.bytes else ""
    return f"{base_url.rstrip('/')}/{file.path}  ({file.records:,} {file.kind}{size})"
