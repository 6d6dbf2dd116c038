"""How a run is divided into cells and handed to workers; nothing is computed here."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies import run as grid
from chameleon_lib.studies import study as loading
from chameleon_lib.studies import study as study_module
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.run import Cell, Plan, run_grid
from tests.demo.small import HashEmbedder
from tests.studies.finished import PROFILE, TASKS
from tests.studies.small import BACKBONES, SETTINGS, open_small, small_profile


def test_the_groups_are_drawn_by_the_seeds_that_the_settings_or_the_call_name(
    tmp_path: Path,
) -> None:
    plans: list[Plan] = []

    def compute(plan: Plan, _backbone: str) -> list[Cell]:
        plans.append(plan)
        return []

    seeded = SETTINGS.with_(group_draws=2, group_seeds=(4, 9))
    for draws in (0, 3):
        run_grid(compute, PROFILE, seeded, draws=draws, store=ArtifactStore(tmp_path))
    assert [plan.draws for plan in plans] == [(4, 9)] * 4 + [(0, 1, 2)] * 4
    assert pickle.loads(pickle.dumps(plans[0])) == plans[0]


def test_several_workers_fill_the_store_stage_by_stage_and_the_longest_task_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    warmed: list[tuple[str, list[tuple[str, str]], int, int]] = []

    def warm(phases: Any, *, workers: int, threads: int, preload: Sequence[str]) -> None:
        assert preload and all(find_spec(module) for module in preload)
        for label, work, units in phases:
            pickle.dumps(work)  # a worker has to import it by name
            warmed.append((label, [(p.task, name) for p, name in units], workers, threads))

    monkeypatch.setattr(grid, "warm", warm)
    run_grid(_compute_nothing, PROFILE, SETTINGS, store=ArtifactStore(tmp_path), workers=2)
    every = [(task, name) for task in reversed(TASKS) for name in BACKBONES]
    once = [(task, part) for task in reversed(TASKS) for part in ("train", "test")]
    assert warmed == [
        ("history selection", once, 2, 1), ("insights", every, 2, 1), ("cells", every, 2, 1),
    ]  # fmt: skip
    run_grid(_compute_nothing, PROFILE, SETTINGS, store=ArtifactStore(tmp_path), workers=1)
    assert len(warmed) == 3


def _compute_nothing(_plan: Plan, _backbone: str) -> list[Cell]:
    return []


def test_only_one_backbone_of_the_hub_has_to_be_opened_for_the_next_cell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All backbones are asked which users they can read; the one of the cell is asked last."""
    names = ("someone/first", "someone/second")
    opened: list[str] = []

    def load(source: str, **_options: Any) -> Any:
        opened.append(source)
        return open_small(BACKBONES[names.index(source)])

    monkeypatch.setattr(loading, "_latest", {})
    monkeypatch.setattr(loading, "load_backbone", load)
    monkeypatch.setattr(study_module, "open_embedder", lambda *_: HashEmbedder())
    profile = replace(small_profile(tasks=("LaMP_3",), n_test=2), backbones=names)
    data = load_task_data(profile, "LaMP_3")
    plan = Plan(profile, SETTINGS, "LaMP_3", "", 0, (0,), tmp_path)
    for name in names:
        common = plan.common_users(data, last=name)
        assert common <= {user.id for user in data.test}
        plan.study(name).prepare(data.test)
    assert opened == ["someone/second", "someone/first", "someone/second"]
