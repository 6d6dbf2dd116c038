"""Section 4.5: the study on tiny models; tables and verdicts on planted answers and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core import chameleon
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    OPPOSITE,
    REPRODUCED,
)
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import check_table
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.rivals import aloe, dpo
from chameleon_lib.rivals.registry import trained_rival
from chameleon_lib.studies import s01_per_user as per_user
from chameleon_lib.studies import s04_time_budget as study
from chameleon_lib.studies.methods import method_of, title_of
from chameleon_lib.studies.run import Cell, Run
from chameleon_lib.studies.s04_time_budget import POINTS, TOLERANCE, Point, verdicts
from chameleon_lib.studies.sweeps import places_of
from tests.studies.finished import listen, units
from tests.studies.planted import BOTH, answers_of, planted_run
from tests.studies.small import BACKBONES, SETTINGS, small_profile, use_small_models

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
            (dpo, "train_dpo", found.preferences),
            (dpo, "pair_rows", found.rows),
            (aloe, "train_aloe", found.examples),
            (chameleon, "fit_by_preference", found.contrasts),
        ):
            listen(patch, place, name, seen.append)
        found.run = study.run(PROFILE, SETTINGS, store=ArtifactStore(folder))
        yield found


def test_every_label_has_every_method_on_every_family(done: Budgeted) -> None:
    names = [point.name for point in study.points_of(PROFILE)]
    assert names == ["paper's 10 min", "paper's 20 min", "paper's 40 min"] == done.run.conditions
    assert [(c.backbone, c.condition) for c in done.run.cells] == [
        (backbone, name) for backbone in BACKBONES for name in names
    ]
    for cell in done.run.cells:
        assert list(answers_of(cell)) == ["instruct", "aloe", "dpo", "chameleon", "fitted"]
        [log] = cell.draws
        assert log["users"] == SETTINGS.group_size
        assert len(cell.answers) == 5


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
    tested = set(done.run.test_users["LaMP_2"])
    trained = {user.id for user in done.run.data["LaMP_2"].train}
    assert tested and not tested & (users | contrasts) and users | contrasts <= trained


def test_costs_grow_with_the_share_and_hold_for_both_families(done: Budgeted) -> None:
    for small, full in (done.run.cells[:3:2], done.run.cells[3::2]):
        for name in ("chameleon", "fitted", "dpo", "aloe"):
            less, more = small.draws[0][name], full.draws[0][name]
            assert 0 < less["flops"] < more["flops"], name
            assert less["forward"] < more["forward"] and less["steps"] <= more["steps"]
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
        check_table(getattr(study, name)(done.run), name, "demo", kind)  # type: ignore[arg-type]
    assert len(verdicts(done.run, "04_time_budget")) == 10


def test_the_same_run_again_computes_nothing(
    done: Budgeted, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    before = units(done.folder)
    again = study.run(PROFILE, SETTINGS, store=ArtifactStore(done.folder))
    assert units(done.folder) == before
    for table in (study.points, study.learned):
        assert table(again).equals(table(done.run))


def test_all_that_table_one_has_trained_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    profile = small_profile(tasks=("LaMP_2",), backbones=BACKBONES[:1])
    per_user.run(profile, SETTINGS, store=ArtifactStore(tmp_path))
    before = _stages(tmp_path)
    monkeypatch.setattr(study, "points_of", lambda _: POINTS[-1:])
    study.run(profile, SETTINGS, store=ArtifactStore(tmp_path))
    new = _stages(tmp_path) - before
    # ALOE's largest share in the figure is no training of Table 1; users are asked what they saw.
    assert set(new) == {"aloe", "answers"} and new["aloe"] == 1


def _stages(folder: Path) -> Counter[str]:
    """Stored units per stage."""
    return Counter(path.parent.parent.name for path in units(folder))


# --- planted answers and costs -------------------------------------------------------------------

DECODER, ENCDEC = "demo:decoder", "demo:encdec"
METHODS = ("chameleon", "fitted", "dpo", "aloe")
FLOPS = {"chameleon": 400, "fitted": 300, "dpo": 2000, "aloe": 1000}  # at the last label
PAIRS = 100  # FLOPs of writing all pairs


def log(point: Point, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"users": 100}
    for method in METHODS:
        rival = trained_rival("aloe" if method == "aloe" else "dpo")  # edits get the share of DPO
        share = point.share(rival)
        part = share / POINTS[-1].share(rival)
        found[method] = {
            "share": share,
            "queries": round(100 * share),
            "gold": round(100 * share) if method == "aloe" else 0,
            "rows": 10,
            "steps": 4,
            "trainable": {"fitted": 50, "dpo": 1000}.get(method, 2000),
            "forward": 30,
            "backward": 20,
            "flops": FLOPS[method] * part,
            "generation": 0 if method == "aloe" else PAIRS * part,
            "loss": [1.0, 0.9, 0.6, 0.5],
            "seen": {"users": list("aabc"), "after": [1, 1, 1, 1], "before": [0, 1, 0, 0]},
            **changes.get(method, {}),
        }
    return found


def budget_run(
    rates: Mapping[str, float] | None = None,
    first: Mapping[str, float] | None = None,
    n_users: int = 120,
    **changes: Mapping[str, Any],
) -> Run:
    """Two labels, both families; ``rates`` at the last label, ``first`` at the first."""
    cells: list[Cell] = []
    rates, first = {"instruct": 0.4, **(rates or {})}, {"instruct": 0.4, **(first or {})}
    for backbone in BOTH:
        for point, planted in ((POINTS[0], first), (POINTS[-1], rates)):
            done = planted_run(planted, tasks=("LaMP_2",), backbones=(backbone,), n_users=n_users)
            logs = [log(point, changes)] * 2
            cells.append(replace(done.cells[0], condition=point.name, draws=logs))
    return replace(done, cells=cells)


def verdict_of(run: Run, ours: str, rival: str, model: str = DECODER) -> Verdict:
    title = f"within the same compute, {method_of(ours).title} beats {method_of(rival).title} "
    [found] = [
        v
        for v in verdicts(run, "04_time_budget")
        if title in v.claim and title_of(model) in v.claim
    ]
    own = (ours, model) != ("chameleon", DECODER)
    assert ("beyond the paper" in found.claim) == own == (found.paper == "not in the paper")
    return found


def quality_of(run: Run) -> Verdict:
    return [v for v in verdicts(run, "04_time_budget") if "quality of DPO" in v.claim][0]


# --- where a rival stands ------------------------------------------------------------------------


def test_a_rival_stands_at_its_largest_share_within_our_budget() -> None:
    def stands(run: Run, ours: str, rival: str) -> tuple[str, bool]:
        place, inside = study.rival_within(places_of(run, study.TASK, DECODER), ours, rival)
        return place.condition, inside

    run = budget_run()
    first, *_ = places_of(run, study.TASK, DECODER)
    assert study.flops(first, "dpo") == pytest.approx(0.4 * 2100)
    # The budgets are 500 and 400. DPO starts at 840; ALOE at 7 of 55 parts of 1000.
    for ours in ("chameleon", "fitted"):
        assert stands(run, ours, "dpo") == ("paper's 10 min", False)
        assert stands(run, ours, "aloe") == ("paper's 10 min", True)
    rich = budget_run(chameleon={"flops": 2000})
    assert stands(rich, "chameleon", "dpo") == ("paper's 40 min", True)
    assert stands(rich, "fitted", "dpo") == ("paper's 10 min", False)
    # A budget that is met exactly is met.
    even = budget_run(chameleon={"flops": 900})
    assert stands(even, "chameleon", "aloe") == ("paper's 40 min", True)


def test_the_comparison_is_made_at_that_share() -> None:
    run = budget_run({"chameleon": 0.7, "aloe": 0.9}, {"aloe": 0.2})
    frame = study.same_compute(run)
    check_table(frame, "fig4_c_same_compute", "demo")
    row = frame[(frame["ours"].str.startswith("CHAMELEON (paper)"))
                & frame["against"].str.startswith("ALOE")].iloc[0]  # fmt: skip
    assert row["share of the rival"] == 0.07 and row["within the budget"] == "yes"
    assert row["accuracy, ours minus rival"] == pytest.approx(0.5)
    assert (row["FLOPs, ours"], row["n"], row["seeds"]) == (500, 120, 2)
    rich = budget_run({"chameleon": 0.7, "aloe": 0.9}, {"aloe": 0.2}, chameleon={"flops": 2000})
    assert verdict_of(rich, "chameleon", "aloe").status == OPPOSITE
    assert verdict_of(run, "chameleon", "aloe").status == REPRODUCED


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rival", ["dpo", "aloe"])
@pytest.mark.parametrize(
    ("rates", "first", "paper", "own"),
    [
        ({"chameleon": 0.9, "fitted": 0.9}, {}, REPRODUCED, HOLDS),
        ({}, {}, NOT_REPRODUCED, DOES_NOT_HOLD),
        ({"chameleon": 0.1, "fitted": 0.1}, {"dpo": 0.9, "aloe": 0.9}, OPPOSITE, OPPOSITE),
    ],
    ids=["an advantage", "no difference", "a loss"],
)
def test_a_verdict_says_what_was_planted(
    rival: str, rates: Mapping[str, float], first: Mapping[str, float], paper: str, own: str
) -> None:
    run = budget_run(rates, first)
    found = verdict_of(run, "chameleon", rival)
    assert found.status == paper and "no number is printed" in found.paper
    for ours, model in (("fitted", DECODER), ("chameleon", ENCDEC), ("fitted", ENCDEC)):
        beyond = verdict_of(run, ours, rival, model)
        assert (beyond.status, beyond.paper) == (own, "not in the paper")


def test_beating_a_collapsed_rival_without_a_gain_of_ones_own_is_a_direction_only() -> None:
    run = budget_run({}, {"dpo": 0.0})
    found = verdict_of(run, "chameleon", "dpo")
    assert found.status == DIRECTION_ONLY and "its smallest share, which costs more" in found.note


def test_equal_quality_holds_only_where_the_fitted_edit_is_as_good_and_cheap() -> None:
    good = {"fitted": 0.9, "dpo": 0.8}
    found = quality_of(budget_run(good, fitted={"trainable": 50}))
    assert found.status == HOLDS and "parameters 1/20, FLOPs 1/6.7" in found.note
    assert "at 100% of the pairs" in found.note
    assert found.ours is not None and found.ours.value == pytest.approx(0.1 + TOLERANCE)
    assert not found.plain and "plus 0.02" in found.claim
    assert verdict_of(budget_run(good), "fitted", "dpo").plain
    many = budget_run(good, fitted={"trainable": 101})
    slow = budget_run(good, fitted={"flops": 700})
    assert quality_of(many).status == quality_of(slow).status == DOES_NOT_HOLD
    worse = budget_run({"fitted": 0.5, "dpo": 0.8})
    assert quality_of(worse).status == OPPOSITE
    assert quality_of(budget_run()).status == DOES_NOT_HOLD  # alike, but not shown within 0.02
    unlike = quality_of(budget_run({"fitted": 0.4, "dpo": 0.1}))
    assert unlike.status == DIRECTION_ONLY  # better than a DPO that fell, no gain of its own


def test_quality_is_judged_at_the_largest_share_whatever_the_others_reach() -> None:
    lucky = quality_of(budget_run({"fitted": 0.5, "dpo": 0.8}, {"fitted": 0.95}))
    assert lucky.status == OPPOSITE and "at 100% of the pairs" in lucky.note
    run = budget_run({"fitted": 0.9, "dpo": 0.6}, {"fitted": 0.85})
    found = quality_of(run)
    assert "at 100% of the pairs" in found.note and "FLOPs 1/6.7" in found.note
    frame = study.same_quality(run)
    check_table(frame, "fig4_d_same_quality", "demo")
    decoder = frame[frame["model"] == title_of(DECODER)]
    assert decoder["has DPO's quality"].tolist() == ["yes", "yes"]
    assert decoder["ratio of parameters"].tolist() == [0.05, 0.05]
    assert decoder["ratio of FLOPs"].tolist() == pytest.approx([0.06, 0.15])


# --- the other tables ----------------------------------------------------------------------------


def test_every_point_has_quality_and_cost() -> None:
    run = budget_run({"fitted": 0.9})
    frame = study.points(run)
    check_table(frame, "fig4_b_points", "demo")
    assert len(frame) == 2 * 2 * 4
    best = frame[(frame["method"] == method_of("fitted").title) & (frame["share"] == 1)].iloc[0]
    assert best["accuracy change"] == pytest.approx(0.5) and best["accuracy"] == pytest.approx(0.9)
    assert (best["FLOPs"], best["FLOPs of the pairs"], best["FLOPs with pairs"]) == (300, 100, 400)
    gold = frame[frame["method"] == method_of("aloe").title]
    assert gold["gold labels"].tolist() == [7, 55, 7, 55]
    assert not any("second" in column for column in frame.columns)


def test_a_rival_has_learned_if_every_loss_fell_and_seen_users_gain() -> None:
    frame = study.learned(budget_run())
    check_table(frame, "fig4_a_learned", "demo", "control")
    assert frame["learned"].tolist() == ["yes"] * 4
    row = frame.iloc[0]
    assert (row["loss, first quarter"], row["loss, last quarter"]) == (1.0, 0.5)
    assert row["accuracy change on seen users"] == pytest.approx(0.75)
    assert (row["n"], row["seeds"]) == (3, 2)
    rising = study.learned(budget_run(dpo={"loss": [0.5, 0.6]}))
    assert rising["learned"].tolist() == ["no", "yes"] * 2
    assert rising["trainings whose loss fell"].tolist() == ["0 of 2", "2 of 2"] * 2
    same = {"users": list("abcd"), "after": [1, 0, 1, 0], "before": [1, 0, 0, 1]}
    assert study.learned(budget_run(aloe={"seen": same}))["learned"].tolist() == ["yes", "no"] * 2


def test_the_figure_and_the_tables_for_reading_name_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    points = study.points(budget_run({"fitted": 0.9}))
    shown = study.compute_figure(points, Publisher("demo", "04_time_budget"))
    assert "+0.500" in shown.metadata["alt"] and "120 test users" in shown.metadata["caption"]
    assert (tmp_path / "demo/figures/04_compute.svg").is_file()
    text = study.readable(points)
    assert text["share"].tolist()[:2] == ["40%", "40%"] and text["FLOPs"].iloc[0] == "1.60e+02"
