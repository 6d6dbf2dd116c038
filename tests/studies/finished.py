"""One run of small models over two tasks, with what reached its fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from chameleon_lib.core import chameleon
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.rivals import aloe, dpo
from chameleon_lib.rivals.rows import GoldExample
from chameleon_lib.studies import s01_per_user as cells_module
from chameleon_lib.studies.data import TaskData, load_task_data
from chameleon_lib.studies.run import Run
from chameleon_lib.studies.s01_per_user import run
from tests.studies.planted import texts_of
from tests.studies.small import SETTINGS, small_profile, use_small_models

TASKS = ("LaMP_3", "LaMP_7")
PROFILE = small_profile(tasks=TASKS)


@dataclass
class Watch:
    """What reached a fit: groups of users, contrasts and pair texts; ALOE's and DPO's rows."""

    groups: list[list[PreparedUser]] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    examples: list[GoldExample] = field(default_factory=list)
    preferences: list[Contrast] = field(default_factory=list)


@dataclass(frozen=True)
class Finished:
    """The run, what its fits saw, and the folder of its store."""

    run: Run
    watch: Watch
    folder: Path


def finish(folder: Path) -> Finished:
    """Compute the run into ``folder``."""
    watch = Watch()
    build = cells_module.build_draw

    def build_draw(study: Any, group: Any, *rest: Any) -> Any:
        watch.groups.append(list(group.users))
        watch.queries += [pair.query for pair in group.pairs]
        return build(study, group, *rest)

    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        patch.setattr(cells_module, "build_draw", build_draw)
        listen(patch, chameleon, "fit_by_preference", watch.contrasts.extend)
        listen(patch, aloe, "train_aloe", watch.examples.extend)
        listen(patch, dpo, "train_dpo", watch.preferences.extend)
        return Finished(run(PROFILE, SETTINGS, store=ArtifactStore(folder)), watch, folder)


def listen(
    patch: pytest.MonkeyPatch, module: ModuleType, name: str, hear: Callable[[list[Any]], object]
) -> None:
    """Give ``hear`` the material, the second argument, of every call of a function."""
    work = getattr(module, name)

    def heard(backbone: Any, material: Any, *rest: Any, **options: Any) -> Any:
        hear(list(material))
        return work(backbone, material, *rest, **options)

    patch.setattr(module, name, heard)


def units(folder: Path) -> dict[Path, int]:
    """Every stored unit with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.unit")}


def assert_same(one: Run, other: Run) -> None:
    """Both runs have the same cells with the same answers, scores and logs."""
    assert len(one.cells) == len(other.cells)
    for mine, theirs in zip(one.cells, other.cells, strict=True):
        assert (mine.users, mine.counts, mine.draws) == (theirs.users, theirs.counts, theirs.draws)
        assert texts_of(mine) == texts_of(theirs)
        for arm, answers in mine.answers.items():
            for name, values in answers.scores.items():
                np.testing.assert_array_equal(values, theirs.answers[arm].scores[name])


def with_golds(*parts: str) -> Any:
    """``load_task_data`` with every gold of some parts replaced by "1"."""

    def load(*args: Any) -> TaskData:
        data = load_task_data(*args)
        changed: dict[str, Any] = {
            part: tuple(
                replace(user, queries=tuple(replace(query, gold="1") for query in user.queries))
                for user in getattr(data, part)
            )
            for part in parts
        }
        return replace(data, **changed)

    return load
