"""Write the embedded world as official LaMP files: ``python -m chameleon_lib world``.

The files are what a run reads with ``--data DIR``. The planted truth goes into a file of its own
beside them; nothing of it stands in the questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from chameleon_lib.backbones.demo.scenes import SPLITS
from chameleon_lib.backbones.demo.world import World, WorldSettings, build_world
from chameleon_lib.command_line import Parser
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text
from chameleon_lib.lamp.data import write_lamp
from chameleon_lib.lamp.tasks import get_task


def _parser() -> Parser:
    default = WorldSettings()
    parser = Parser(
        prog="python -m chameleon_lib world",
        description="Write users with planted tastes as official LaMP files.",
        allow_abbrev=False,
    )
    parser.add_argument("--task", required=True, help="LaMP_2, LaMP_3 or LaMP_7")
    parser.add_argument("--out", required=True, metavar="DIR", help="receives DIR/<task>/")
    for split, count in zip(SPLITS, default.users, strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help="users")
    parser.add_argument(
        "--history", type=int, nargs=2, default=default.history, metavar=("A", "B"),
        help="smallest and largest history length",
    )  # fmt: skip
    for name, meaning in (
        ("strength", "probability that the taste decides"),
        ("noise", "probability that a history label is random"),
        ("agree", "share of queries on which user and generic answer agree"),
        ("common", "probability that a user's taste is the one common taste"),
    ):
        parser.add_argument(
            f"--{name}", type=float, default=getattr(default, name), metavar="F", help=meaning
        )
    parser.add_argument("--seed", type=int, default=default.seed, metavar="N")
    return parser


def write_world(world: World, folder: Path) -> list[Path]:
    """Write the three splits and ``truth.json``.

    Args:
        world: Users of one task, at least one per split.
        folder: Receives ``{split}_questions.json``, ``{split}_outputs.json`` and ``truth.json``,
            each under a temporary name first.

    Returns:
        The files, ``truth.json`` last.
    """
    written = []
    for split in SPLITS:
        questions, outputs = write_lamp(world.users[split], folder, split)
        written += [questions, *([outputs] if outputs else [])]
    truth = {
        "task": world.task,
        "settings": asdict(world.settings),
        "users": {user_id: asdict(truth) for user_id, truth in world.truth.items()},
    }
    path = folder / "truth.json"
    replace_text(path, json.dumps(truth, indent=1, ensure_ascii=False) + "\n")
    return [*written, path]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``.

    Raises:
        UserError: A bad value, in one sentence.
    """
    args = _parser().parse_args(argv)
    users = (args.train, args.dev, args.test)
    if min(users) < 1:
        raise UserError(f"--train, --dev and --test need at least 1 user each, got {users}.")
    low, high = args.history
    if not 1 <= low <= high:
        raise UserError(f"--history needs 1 <= A <= B, got {low} {high}.")
    settings = WorldSettings(
        users=users,
        history=(low, high),
        strength=args.strength,
        noise=args.noise,
        agree=args.agree,
        common=args.common,
        seed=args.seed,
    )
    task = get_task(args.task).name
    folder = Path(args.out) / task
    try:
        written = write_world(build_world(task, settings), folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); give another --out."
        ) from error
    print(f"wrote {', '.join(path.name for path in written)} to {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
