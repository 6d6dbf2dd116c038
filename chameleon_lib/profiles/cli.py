"""``python -m chameleon_lib profiles list|show|forget``: the profile store at the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from chameleon_lib.command_line import Parser
from chameleon_lib.errors import UserError
from chameleon_lib.profiles.forget import Forgotten
from chameleon_lib.profiles.store import ProfileInfo, ProfileStore


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``.

    Returns:
        0, or 1 where a user may not be forgotten completely.

    Raises:
        UserError: A bad value, in one sentence.
    """
    options = _parser().parse_args(argv)
    folder = Path(options.store)
    if not folder.is_dir():
        raise UserError(f"There is no profile store {folder}; give the folder of ProfileStore.")
    store = ProfileStore(folder)
    if options.action == "list":
        return _list(store)
    if options.action == "show":
        return _show(store, options.key)
    return _forget(store, options)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m chameleon_lib profiles",
        description="List, show and forget stored edit profiles.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    for name, meaning in (
        ("list", "all profiles"),
        ("show", "one profile: where it came from and what it edits"),
        ("forget", "remove a user's profiles, cached records and the files that show the texts"),
    ):
        action = actions.add_parser(name, help=meaning, description=meaning, allow_abbrev=False)
        if name == "show":
            action.add_argument("key", metavar="KEY", help="user or group")
        if name == "forget":
            action.add_argument("user", metavar="USER", help="id of the user, as it was fitted")
            action.add_argument("--cache", metavar="DIR", help="also clean this cache (.chameleon)")
            action.add_argument("--outputs", metavar="DIR", help="also clean these outputs")
            action.add_argument(
                "--serving", action="append", default=[], metavar="DIR",
                help="also clean this serving folder; those that profiles of the store were "
                "exported into are known, unless they were moved (may be given more than once)",
            )  # fmt: skip
            action.add_argument(
                "--texts", metavar="FILE", help="texts of the user to look for, one a line"
            )
        action.add_argument("--store", required=True, metavar="DIR", help="the profile store")
    return parser


def _list(store: ProfileStore) -> int:
    found = store.list()
    for info in found:
        print(_line(info))
    print(f"{_count(len(found), 'profile')}, {sum(info.bytes for info in found):,} bytes")
    return 0


def _line(info: ProfileInfo) -> str:
    whose = f"group {info.group!r} of {info.n_users}" if info.group else "one user"
    refit = f"; {info.forgotten} forgotten, fit it again" if info.forgotten else ""
    revision = f"@{info.revision}" if info.revision else ""
    return (
        f"{info.id}  {whose}, {info.task}, {info.backbone}{revision}, {info.n_pairs} pairs, "
        f"{info.bytes:,} bytes{refit}"
    )


def _show(store: ProfileStore, key: str) -> int:
    print(_line(store.info(key)))
    content = store.directory.get(key).content
    shown = {name: content[name] for name in ("edit", "backbone", "pairs", "prompts", "settings")}
    print(json.dumps(shown, indent=1, sort_keys=True))
    return 0


def _forget(store: ProfileStore, options: argparse.Namespace) -> int:
    texts: tuple[str, ...] = ()
    if options.texts is not None:
        try:
            texts = tuple(Path(options.texts).read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{options.texts} cannot be read ({error}); give a UTF-8 file with one text a line."
            ) from error
    done = store.forget(
        options.user,
        cache=options.cache,
        outputs=options.outputs,
        texts=texts,
        serving=options.serving,
    )
    for sentence in sentences(done):
        print(sentence)
    return 1 if done.unreadable else 0


def sentences(done: Forgotten) -> list[str]:
    """What was done, and what is left to do."""
    said = []
    if done.nothing:
        said.append("Nothing of this user was found.")
    else:
        stages = ", ".join(f"{stage} {count}" for stage, count in done.units.items())
        records = _count(sum(done.units.values()), "cached record")
        records += f" ({stages})" if stages else ""
        said.append(
            f"Removed {_count(len(done.profiles), 'profile')}, {records} and "
            f"{_count(len(done.files), 'file')} with the user's texts."
        )
    if done.unclaimed:
        unclaimed = _count(done.unclaimed, "cached record")
        said.append(f"Removed {unclaimed} without a note of whose it is.")
    said += [f"  {path}" for path in done.files]
    if done.exports:
        exports = _count(len(done.exports), "export")
        said.append(f"Removed {exports}; restart the servers that may have loaded them.")
        said += [f"  {path}" for path in done.exports]
    if done.profiles:
        ids = ", ".join(done.profiles)
        said.append(f"Copies of exports outside the serving folders are yours to remove: {ids}.")
    if done.groups:
        said.append(f"Fit these groups again without the user: {', '.join(done.groups)}.")
    if done.waiting:
        said.append(f"These groups wait for a new fit since earlier: {', '.join(done.waiting)}.")
    if done.stale_exports:
        said.append("After the new fit, replace their exports ('export --all --prune'):")
        said += [f"  {path}" for path in done.stale_exports]
    for path in done.absent:
        said.append(
            f"Profiles were exported into {path}, which is not there: if it was moved, repeat "
            "with --serving."
        )
    for path in done.unreadable:
        said.append(f"{path} is damaged and may be the user's: delete it, or restore and repeat.")
    if not done.nothing:
        said.append("Take the user out of your data files, or the next run makes all of it again.")
    return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
