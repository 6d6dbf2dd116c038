"""The time-budget study on tiny models: shares, pairs and what is found again in the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.baselines import dpo as dpo_module
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import check_table
from chameleon_lib.sections import fits as fits_module
from chameleon_lib.sections import tunings
from chameleon_lib.sections.loading import settings_for
from chameleon_lib.sections.per_user import study as per_user
from chameleon_lib.sections.results import Run, query_users
from chameleon_lib.sections.time_budget import study as module
from chameleon_lib.sections.time_budget import tables as time_budget_tables
from chameleon_lib.sections.time_budget.study import (
    POINTS,
    base_of,
    points_of,
    run,
    what_is_run,
)
from chameleon_lib.sections.time_budget.verdicts import verdicts
from tests.sections.finished import units
from tests.sections.small import BACKBONES, SETTINGS, small_profile, use_small_models

PROFILE = small_profile(tasks=("LaMP_2",), studied=BACKBONES)


@dataclass
class Budgeted:
    """A run, what reached every training of it, and the folder of its store."""

    run: Run
    folder: Path
    preferences: list[list[Any]] = field(default_factory=list)
    contrasts: list[list[Any]] = field(default_factory=list)
    examples: list[list[Any]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Budgeted]:
    folder = tmp_path_factory.mktemp("units")
    found = Budgeted(None, folder)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        for place, name, seen in (
            (tunings, "train_dpo", found.preferences),
            (dpo_module, "pair_rows", found.rows),
            (tunings, "train_aloe", found.examples),
            (fits_module, "fit_by_preference", found.contrasts),
        ):
            patch.setattr(place, name, _noted(getattr(place, name), seen))
        found.run = run(PROFILE, SETTINGS, store=ArtifactStore(folder))
        yield found


def _noted(work: Any, seen: list[list[Any]]) -> Any:
    def noted(backbone: Any, material: Any, *rest: Any, **options: Any) -> Any:
        seen.append(list(material))
        return work(backbone, material, *rest, **options)

    return noted


def test_every_label_has_every_method_on_every_family(done: Budgeted) -> None:
    names = [point.name for point in points_of(PROFILE)]
    assert names == ["paper's 10 min", "paper's 20 min", "paper's 40 min"] == done.run.conditions
    assert [(c.backbone, c.condition) for c in done.run.cells] == [
        (backbone, name) for backbone in BACKBONES for name in names
    ]
    for cell in done.run.cells:
        assert list(cell.answers) == ["instruct", "aloe", "dpo", "chameleon", "fitted"]
        [log] = cell.draws
        assert log["users"] == SETTINGS.group_size
        assert {len(scores["accuracy"]) for scores in cell.scores.values()} == {1}


def test_edits_learn_from_the_very_pairs_that_dpo_gets(done: Budgeted) -> None:
    small, full = done.run.cells[0].draws[0], done.run.cells[2].draws[0]
    n = full["dpo"]["queries"]
    for log, share in ((small, 0.4), (full, 1.0)):
        counts = {log[name]["queries"] for name in ("chameleon", "fitted", "dpo")}
        assert counts == {round(share * n)}
        assert len({log[name]["rows"] for name in ("chameleon", "fitted", "dpo")}) == 1
    # DPO draws its share from the whole group by itself; the fit is handed its share.
    fitted = done.contrasts[0]
    whole = done.preferences[0]
    assert len(whole) == n and len(fitted) == round(0.4 * n)
    assert {c.prompt for c in fitted} < {c.prompt for c in whole}
    assert {(c.prompt, c.chosen, c.rejected) for c in done.contrasts[2]} == {
        (c.prompt, c.chosen, c.rejected) for c in whole
    }


def test_the_share_that_dpo_trained_on_is_the_share_of_the_fit(done: Budgeted) -> None:
    assert len(done.rows) == len(done.contrasts) == 2 * 3
    for rows, contrasts in zip(done.rows, done.contrasts, strict=True):
        assert {r.prompt for r in rows} == {c.prompt for c in contrasts if c.rejected is not None}


def test_gold_answers_are_counted_where_they_are_seen(done: Budgeted) -> None:
    for cell in done.run.cells:
        [log] = cell.draws
        assert [log[name]["gold"] for name in ("chameleon", "fitted", "dpo")] == [0, 0, 0]
        assert log["aloe"]["gold"] == log["aloe"]["queries"] >= 1
    users = {example.user_id for part in done.examples for example in part}
    contrasts = {c.user_id for part in [*done.contrasts, *done.preferences] for c in part}
    tested = set(query_users(done.run, "LaMP_2"))
    trained = {user.id for user in done.run.data["LaMP_2"].train}
    assert tested and not tested & (users | contrasts) and users | contrasts <= trained


def test_costs_grow_with_the_share_and_hold_for_both_families(done: Budgeted) -> None:
    for small, full in (done.run.cells[:3:2], done.run.cells[3::2]):
        for name in ("chameleon", "fitted", "dpo", "aloe"):
            less, more = small.draws[0][name], full.draws[0][name]
            assert 0 < less["flops"] < more["flops"], name
            assert less["forward"] < more["forward"] and less["steps"] <= more["steps"]
            assert more["measured"]["seconds"] > 0
        assert full.draws[0]["aloe"]["generation"] == 0
        shared = {full.draws[0][name]["generation"] for name in ("chameleon", "fitted", "dpo")}
        assert len(shared) == 1 and shared.pop() > 0
        edits = full.draws[0]["fitted"]["trainable"]
        assert edits < full.draws[0]["dpo"]["trainable"] < full.draws[0]["aloe"]["trainable"]


def test_seen_users_are_those_whose_queries_were_trained_on(done: Budgeted) -> None:
    small, full = done.run.cells[0].draws[0], done.run.cells[2].draws[0]
    assert "seen" not in small["dpo"] and "seen" not in small["aloe"]
    preferred = {c.user_id for c in done.preferences[0] if c.rejected is not None}
    assert set(full["dpo"]["seen"]["users"]) == preferred
    assert len(full["dpo"]["seen"]["users"]) == full["dpo"]["rows"]
    group = {example.user_id for example in done.examples[0]}
    seen = full["aloe"]["seen"]
    assert set(seen["users"]) < group and len(seen["users"]) == full["aloe"]["queries"]
    assert set(seen["after"]) | set(seen["before"]) <= {0, 1}


def test_tables_and_verdicts_can_be_made_of_it(done: Budgeted) -> None:
    for name, kind in (
        ("points", "result"), ("learned", "control"), ("same_compute", "result"),
        ("same_quality", "result"),
    ):  # fmt: skip
        check_table(getattr(time_budget_tables, name)(done.run), name, "demo", kind)  # type: ignore[arg-type]
    assert len(verdicts(done.run, "04_time_budget")) == 10


def test_the_same_run_again_computes_nothing(
    done: Budgeted, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    before = units(done.folder)
    again = run(PROFILE, SETTINGS, store=ArtifactStore(done.folder))
    assert units(done.folder) == before
    for table in (time_budget_tables.points, time_budget_tables.learned):
        assert table(again).equals(table(done.run))


def test_all_that_table_one_has_trained_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    profile = small_profile(tasks=("LaMP_2",), backbones=BACKBONES[:1])
    per_user.run(profile, SETTINGS, store=ArtifactStore(tmp_path))
    before = _stages(tmp_path)
    monkeypatch.setattr(module, "points_of", lambda _: POINTS[-1:])
    run(profile, SETTINGS, store=ArtifactStore(tmp_path))
    new = _stages(tmp_path) - before
    # ALOE's largest share in the figure is no training of Table 1; users are asked what they saw.
    assert set(new) == {"aloe", "answers", "rates"} and new["aloe"] == new["rates"] == 1


def _stages(folder: Path) -> Counter[str]:
    """Stored units per stage."""
    return Counter(path.parent.parent.name for path in units(folder))


def test_profiles_of_real_data_run_all_labels_on_all_of_their_train_users() -> None:
    demo, paper = PROFILES["demo"], PROFILES["paper"]
    assert points_of(paper) == POINTS and len(points_of(demo)) == 3
    assert base_of(demo, settings_for(demo)) == 100
    assert base_of(paper, settings_for(paper)) == 1000
    assert [(p.minutes, p.pairs, p.gold) for p in POINTS] == [
        (10, 0.4, 0.07), (20, 0.6, 0.23), (30, 0.8, 0.39), (40, 1.0, 0.55),
    ]  # fmt: skip
    assert "1 of the paper's labels left out" in what_is_run(demo, settings_for(demo))
