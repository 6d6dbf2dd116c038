"""The engine of Ray Data, where Ray is installed; the same counts as of the local one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from chameleon_lib.serving.engines import RayEngine
from chameleon_lib.serving.files import fit_lock
from chameleon_lib.serving.population import fit_population, open_for_fit
from chameleon_lib.serving.shards import ASIDE, FAILED, FITTED
from workshop.standin import StandIn, manifest, users

pytest.importorskip("ray", reason="Ray Data is optional")


@pytest.mark.slow
def test_nobody_is_lost_or_fitted_twice_and_who_kills_workers_is_set_aside(tmp_path: Path) -> None:
    some = [*users(120)]
    with fit_lock(tmp_path / "store"):
        store = open_for_fit(tmp_path / "store", manifest(), len(some))
        work = StandIn(store.manifest, tmp_path / "fits", poison=("user11",), once=("user5",),
                       bad=("user3",))  # fmt: skip
        done = fit_population(store, work, some, RayEngine(2), flush=0.0)
    assert done.states == {FITTED: 118, FAILED: 1, ASIDE: 1}
    keys = [cells["user"] for cells in store.rows(("user",))]
    assert len(keys) == len(set(keys)) == 120
    row = store.row("user11")
    assert row is not None and "3 times" in row.note
    counts = Counter(line.split()[0] for line in (tmp_path / "fits").read_text().splitlines())
    assert len(counts) == 118 and set(counts.values()) == {1}
