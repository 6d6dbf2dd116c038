"""One run of small models over two tasks, with what reached its fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core import chameleon as fits_module
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.rivals import aloe as aloe_module
from chameleon_lib.rivals import dpo as dpo_module
from chameleon_lib.rivals.rows import GoldExample
from chameleon_lib.studies import s01_per_user as cells_module
from chameleon_lib.studies.run import Run
from chameleon_lib.studies.s01_per_user import run
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
    aloe, dpo = aloe_module.train_aloe, dpo_module.train_dpo
    build, fit = cells_module.build_draw, fits_module.fit_by_preference

    def build_draw(study: Any, group: Any, pairs: Any, *rest: Any) -> Any:
        watch.groups.append(list(group))
        watch.queries += [pair.query for pair in pairs]
        return build(study, group, pairs, *rest)

    def fit_by_preference(backbone: Any, contrasts: Sequence[Contrast], *a: Any, **k: Any) -> Any:
        watch.contrasts += contrasts
        return fit(backbone, contrasts, *a, **k)

    def train_aloe(backbone: Any, examples: Sequence[GoldExample], *a: Any, **k: Any) -> Any:
        watch.examples += examples
        return aloe(backbone, examples, *a, **k)

    def train_dpo(backbone: Any, contrasts: Sequence[Contrast], *a: Any, **k: Any) -> Any:
        watch.preferences += contrasts
        return dpo(backbone, contrasts, *a, **k)

    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        patch.setattr(cells_module, "build_draw", build_draw)
        patch.setattr(fits_module, "fit_by_preference", fit_by_preference)
        patch.setattr(aloe_module, "train_aloe", train_aloe)
        patch.setattr(dpo_module, "train_dpo", train_dpo)
        return Finished(run(PROFILE, SETTINGS, store=ArtifactStore(folder)), watch, folder)


def units(folder: Path) -> dict[Path, int]:
    """Every stored unit with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.unit")}
