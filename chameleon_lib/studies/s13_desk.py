"""Runs the study of poisoned histories, unit by unit.

A unit of work is an arena of a task under one seed; every condition of it is kept in the store, so
that a run that was killed goes on behind the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.pool import warm
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import Progress, tell
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.s13_arenas import Own, Pool
from chameleon_lib.studies.s13_bench import GUARDS, IN_OWN, IN_POOL, MODEL, Asked, Bench

MODULES = (
    "chameleon_lib.studies.s13_attacks", "chameleon_lib.studies.s13_lora",
    "chameleon_lib.studies.s13_arenas", "chameleon_lib.studies.s13_bench",
    "chameleon_lib.core.fitting", "chameleon_lib.core.robust", "chameleon_lib.core.checks",
    "chameleon_lib.backbones",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Poisoning:
    """What came out.

    Attributes:
        asked: The run.
        title: Model and users.
        rows: One row per arm and user: ``task``, ``arena``, ``attack``, ``malicious``, ``method``,
            ``guard``, ``seed``, ``user``, ``answer``, ``right``, ``nats`` (of the user's own
            answer, per token), and per aim ``hit`` (the answer does what the attacker wants) and
            ``odds`` (nats of the attacker's answer over the user's own).
        guards: What the guards did per arm: items, pairs and users left out, changes, checks.
        digest: Of all people.
    """

    asked: Asked
    title: str
    rows: pd.DataFrame
    guards: pd.DataFrame
    digest: str


def run(
    profile: RunProfile,
    backbone: str = MODEL,
    *,
    folder: str = "",
    victims: int = 34,
    group: int = 100,
    seeds: Sequence[int] = (0, 1, 2),
    malicious: Sequence[int] = (1, 30),
    steps: int = 8,
    store: ArtifactStore | None = None,
) -> Poisoning:
    """Everything; what was done before is read from the store.

    Args: see :class:`Asked`.

    Raises:
        UserError: A model that is no decoder with weights of its own, or too few users.
    """
    if min(victims, group) < 4 or not seeds:
        raise UserError(
            f"victims is {victims}, group {group} and seeds {list(seeds)}; give four users or more "
            "of both, and a seed."
        )
    root = (store or ArtifactStore()).root
    asked = Asked(
        profile, backbone, folder, victims, group, tuple(seeds), tuple(malicious), steps, root
    )
    units = [
        (asked, task, arena, seed)
        for task in reversed(asked.tasks) for arena in (IN_POOL, IN_OWN) for seed in asked.seeds
    ]  # fmt: skip
    phase = ("poisoned histories", _fill, units)
    warm([phase], workers=profile.workers, threads=profile.threads)
    parts = [_desk(asked).unit(task, arena, seed) for _, task, arena, seed in units]
    rows, logs = (pd.DataFrame([row for part in parts for row in part[name]])
                  for name in ("rows", "logs"))  # fmt: skip
    desk = _desk(asked)
    people = digest([repr(desk.crowd(task, seed)) for task in asked.tasks for seed in asked.seeds])
    return Poisoning(asked, f"{desk.backbone.name}, {desk.title}", rows, logs, people)


def _fill(asked: Asked, task: str, arena: str, seed: int) -> None:
    """Leaves one unit in the store."""
    _desk(asked).unit(task, arena, seed)


@lru_cache(maxsize=1)
def _desk(asked: Asked) -> Desk:
    """The desk of a worker process, which opens its model once."""
    return Desk(asked)


class Desk(Bench):
    """The bench, with the store of what was done at it."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.store = ArtifactStore(asked.root)

    def unit(self, task: str, arena: str, seed: int) -> dict[str, list[dict[str, Any]]]:
        """The rows and the log of an arena of a task under one seed."""
        a = self.asked
        inputs = {
            "model": self.backbone.fingerprint, "task": task, "arena": arena, "seed": seed,
            "folder": a.folder and digest([repr(self.crowd(task, seed))]),
            "sizes": [a.victims, a.group, list(a.malicious), a.steps],
            "settings": self.settings.canonical(), "guards": repr(GUARDS),
        }  # fmt: skip

        at_work = (Own if arena == IN_OWN else Pool)(self, task, seed)
        steps, title = at_work.steps, f"{self.backbone.name} {task}: {arena}, seed {seed}"
        found: dict[str, list[dict[str, Any]]] = {"rows": [], "logs": []}
        with Progress(f"{title}, conditions", len(steps)) as progress:
            for at, told in enumerate(steps):

                def compute(at: int = at, told: str = told) -> dict[str, list[dict[str, Any]]]:
                    tell(f"{title}: {told}")
                    return at_work.filled(at)

                part = self.store.get_or_compute(
                    "poisoned", inputs | {"step": told}, compute, modules=(*MODULES, __name__)
                )
                for name, lines in found.items():
                    lines += part[name]
                progress.advance()
        return found
