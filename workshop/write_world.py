"""Write the embedded world as official LaMP files, as a script.

    python -m workshop.write_world --task LaMP_3 --out DIR

The files are what a run reads with ``--data DIR``. The planted truth goes into a file of its own
beside them; nothing of it stands in the questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from chameleon_lib.core.task import get_task
from chameleon_lib.data.lamp import write_lamp
from chameleon_lib.demo.world import SPLITS, World, WorldSettings, build_world
from chameleon_lib.errors import UserError
from chameleon_lib.kit.command_line import Parser
from chameleon_lib.kit.paths import replace_text
from workshop import run_script


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
    """Command line; every knob of :class:`WorldSettings` is an option.

    Raises:
        UserError: A bad value, in one sentence.
    """
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--task", required=True, help="LaMP_2, LaMP_3 or LaMP_7")
    parser.add_argument("--out", required=True, metavar="DIR", help="receives DIR/<task>/")
    for knob in fields(WorldSettings):
        default = knob.default
        if isinstance(default, tuple):  # users per split, shortest and longest history
            parser.add_argument(f"--{knob.name}", type=int, nargs=len(default), default=default)
        else:
            parser.add_argument(f"--{knob.name}", type=type(default), default=default)
    args = vars(parser.parse_args(argv))
    knobs: dict[str, Any] = {knob.name: args[knob.name] for knob in fields(WorldSettings)}
    for name, value in knobs.items():
        if isinstance(value, list):
            knobs[name] = tuple(value)
    settings = WorldSettings(**knobs)
    if min(settings.users) < 1:
        raise UserError(f"--users needs at least 1 user in train, dev and test: {settings.users}.")
    task = get_task(args["task"]).name
    folder = Path(args["out"]) / task
    try:
        written = write_world(build_world(task, settings), folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); give another --out."
        ) from error
    print(f"wrote {', '.join(path.name for path in written)} to {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
