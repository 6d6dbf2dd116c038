"""Before any work starts: what the machine lacks, and what is wrong with the users' files.

Only where a notebook will really run. The demo asks for nothing and loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from chameleon_lib.kit import paths
from chameleon_lib.kit.board import say
from chameleon_lib.kit.forecast.scope import Scope
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.needs import require
from chameleon_lib.kit.plan import Run

_CHECKED = "checked_data.json"
_LOADER = "chameleon_lib.sections.data"
_DATA_PARAMETER = "data_dir"


def scope_of(run: Run) -> Scope:
    """The size of a run, as its notebooks will see it."""
    return Scope(run.profile, run.overrides.get("users", 0), run.overrides.get("seeds", 0))


def check(run: Run, stale: Sequence[str]) -> None:
    """Refuse a run that cannot go through.

    Args:
        run: The request.
        stale: Numbers of the notebooks that will run.

    Raises:
        NotReady: The machine lacks something the profile needs; one line for each.
        UserError: The data folder holds no valid users.
    """
    reading = [n for n in run.selected if n.number in stale and _DATA_PARAMETER in n.parameters()]
    if not reading:
        return
    for sentence in require(scope_of(run), list(stale)):
        say(sentence)
    if run.profile.data != "demo":
        _check_data(run, [n.number for n in reading])


def _check_data(run: Run, numbers: Sequence[str]) -> None:
    """Load every user once, unless these very files were found right by this very code."""
    folder = str(run.overrides.get(_DATA_PARAMETER, ""))
    stamp = paths.cache_dir() / _CHECKED
    key = digest([_listing(Path(folder)), run.library.digests([_LOADER]), run.profile.name])
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if folder and isinstance(known, dict) and known.get(folder) == key:
        return
    from chameleon_lib.sections.data import available_tasks, load_task_data

    tasks, _ = available_tasks(run.profile, folder)
    if folder:
        say(f"Checking {folder} for notebooks {', '.join(numbers)}")
    for task in tasks:
        load_task_data(run.profile, task, folder, int(run.overrides.get("users", 0)))
    paths.replace_text(stamp, json.dumps({folder: key}))


def _listing(folder: Path) -> list[list[object]]:
    """Name, size and time of every file: what has to change for another content."""
    found = []
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else []:
        state = path.stat()
        found.append([path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns])
    return found
