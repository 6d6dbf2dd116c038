"""Tables and verdicts of section 4.5 on planted answers and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    OPPOSITE,
    REPRODUCED,
    TOO_FEW_USERS,
)
from chameleon_lib.kit.tables import check_table
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.sections.results import FAMILY_TITLES, Cell, Run
from chameleon_lib.sections.time_budget import seconds as measured
from chameleon_lib.sections.time_budget import tables, views
from chameleon_lib.sections.time_budget.study import POINTS, Point
from chameleon_lib.sections.time_budget.verdicts import verdicts
from tests.sections.planted import planted_run

BOTH = ("demo:decoder:0", "demo:encdec:0")
METHODS = ("chameleon", "fitted", "dpo", "aloe")
FLOPS = {"chameleon": 400, "fitted": 300, "dpo": 2000, "aloe": 1000}  # at the last label
PAIRS = 100  # FLOPs of writing all pairs


def log(point: Point, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"users": 100}
    for method in METHODS:
        share = point.share(method)
        part = share / POINTS[-1].share(method)
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
            "measured": {"seconds": 7.0, "pairs": 1.0},
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
            done = planted_run(
                planted, tasks=("LaMP_2",), backbones=(backbone,), n_users=n_users
            )
            logs = [log(point, changes)] * 2
            cells.append(replace(done.cells[0], condition=point.name, draws=logs))
    return replace(done, cells=cells)


def verdict_of(run: Run, ours: str, rival: str, family: str = "decoder") -> Verdict:
    title = f"within the same compute, {tables.TITLES[ours]} beats {tables.TITLES[rival]} "
    [found] = [
        v
        for v in verdicts(run, "04_time_budget")
        if title in v.claim and FAMILY_TITLES[family] in v.claim
    ]
    own = (ours, family) != ("chameleon", "decoder")
    assert ("beyond the paper" in found.claim) == own == (found.paper == "not in the paper")
    return found


def quality_of(run: Run) -> Verdict:
    return [v for v in verdicts(run, "04_time_budget") if "quality of DPO" in v.claim][0]


# --- where a rival stands ------------------------------------------------------------------------


def test_a_rival_stands_at_its_largest_share_within_our_budget() -> None:
    run = budget_run()
    assert tables.flops(run.cells[:1], "dpo") == pytest.approx(0.4 * 2100)
    # The budgets are 500 and 400. DPO starts at 840; ALOE at 7 of 55 parts of 1000.
    for ours in ("chameleon", "fitted"):
        assert tables.rival_within(run, "decoder", ours, "dpo") == ("paper's 10 min", False)
        assert tables.rival_within(run, "decoder", ours, "aloe") == ("paper's 10 min", True)
    rich = budget_run(chameleon={"flops": 2000})
    assert tables.rival_within(rich, "decoder", "chameleon", "dpo") == ("paper's 40 min", True)
    assert tables.rival_within(rich, "decoder", "fitted", "dpo") == ("paper's 10 min", False)
    # A budget that is met exactly is met.
    even = budget_run(chameleon={"flops": 900})
    assert tables.rival_within(even, "decoder", "chameleon", "aloe") == ("paper's 40 min", True)


def test_the_comparison_is_made_at_that_share() -> None:
    run = budget_run({"chameleon": 0.7, "aloe": 0.9}, {"aloe": 0.2})
    frame = tables.same_compute(run)
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
def test_a_planted_advantage_is_reproduced_and_holds_where_the_paper_is_silent(rival: str) -> None:
    run = budget_run({"chameleon": 0.9, "fitted": 0.9})
    paper = verdict_of(run, "chameleon", rival)
    assert paper.status == REPRODUCED and "no number is printed" in paper.paper
    for ours, family in (
        ("fitted", "decoder"), ("chameleon", "encoder-decoder"), ("fitted", "encoder-decoder"),
    ):  # fmt: skip
        own = verdict_of(run, ours, rival, family)
        assert (own.status, own.paper) == (HOLDS, "not in the paper")


@pytest.mark.parametrize("rival", ["dpo", "aloe"])
def test_no_difference_is_not_reproduced_and_a_loss_is_opposite(rival: str) -> None:
    nothing = budget_run()
    assert verdict_of(nothing, "chameleon", rival).status == NOT_REPRODUCED
    assert verdict_of(nothing, "fitted", rival).status == DOES_NOT_HOLD
    loss = budget_run({"chameleon": 0.1, "fitted": 0.1}, {rival: 0.9})
    assert verdict_of(loss, "chameleon", rival).status == OPPOSITE
    assert verdict_of(loss, "fitted", rival).status == OPPOSITE


def test_beating_a_collapsed_rival_without_a_gain_of_ones_own_is_a_direction_only() -> None:
    run = budget_run({}, {"dpo": 0.0})
    found = verdict_of(run, "chameleon", "dpo")
    assert found.status == DIRECTION_ONLY and "its smallest share, which costs more" in found.note


def test_few_users_allow_no_verdict() -> None:
    found = verdicts(budget_run({"chameleon": 0.9}, n_users=60), "04_time_budget")
    assert {verdict.status for verdict in found} == {TOO_FEW_USERS} and len(found) == 10


def test_equal_quality_holds_only_where_the_fitted_edit_is_as_good_and_cheap() -> None:
    good = {"fitted": 0.9, "dpo": 0.8}
    found = quality_of(budget_run(good, fitted={"trainable": 50}))
    assert found.status == HOLDS and "parameters 1/20, FLOPs 1/6.7" in found.note
    assert "at 100% of the pairs" in found.note
    assert found.ours is not None and found.ours.value == pytest.approx(0.1 + tables.TOLERANCE)
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
    frame = tables.same_quality(run)
    check_table(frame, "fig4_d_same_quality", "demo")
    decoder = frame[frame["family"] == FAMILY_TITLES["decoder"]]
    assert decoder["has DPO's quality"].tolist() == ["yes", "yes"]
    assert decoder["ratio of parameters"].tolist() == [0.05, 0.05]
    assert decoder["ratio of FLOPs"].tolist() == pytest.approx([0.06, 0.15])


# --- the other tables ----------------------------------------------------------------------------


def test_every_point_has_quality_and_cost() -> None:
    run = budget_run({"fitted": 0.9})
    frame = tables.points(run)
    check_table(frame, "fig4_b_points", "demo")
    assert len(frame) == 2 * 2 * 4
    best = frame[(frame["method"] == tables.TITLES["fitted"]) & (frame["share"] == 1)].iloc[0]
    assert best["accuracy change"] == pytest.approx(0.5) and best["accuracy"] == pytest.approx(0.9)
    assert (best["FLOPs"], best["FLOPs of the pairs"], best["FLOPs with pairs"]) == (300, 100, 400)
    aloe = frame[frame["method"] == tables.TITLES["aloe"]]
    assert aloe["gold labels"].tolist() == [7, 55, 7, 55]
    assert not any("second" in column for column in frame.columns)


def test_a_rival_has_learned_if_every_loss_fell_and_seen_users_gain() -> None:
    frame = tables.learned(budget_run())
    check_table(frame, "fig4_a_learned", "demo", "control")
    assert frame["learned"].tolist() == ["yes"] * 4
    row = frame.iloc[0]
    assert (row["loss, first quarter"], row["loss, last quarter"]) == (1.0, 0.5)
    assert row["accuracy change on seen users"] == pytest.approx(0.75)
    assert (row["n"], row["seeds"]) == (3, 2)
    rising = tables.learned(budget_run(dpo={"loss": [0.5, 0.6]}))
    assert rising["learned"].tolist() == ["no", "yes"] * 2
    assert rising["trainings whose loss fell"].tolist() == ["0 of 2", "2 of 2"] * 2
    same = {"users": list("abcd"), "after": [1, 0, 1, 0], "before": [1, 0, 0, 1]}
    assert tables.learned(budget_run(aloe={"seen": same}))["learned"].tolist() == ["yes", "no"] * 2


def test_the_compared_tables_do_not_know_how_long_anything_took() -> None:
    slow = {name: {"measured": {"seconds": 99.0, "pairs": 9.0}} for name in METHODS}
    one, other = budget_run(), budget_run(None, None, 120, **slow)
    for table in (tables.points, tables.learned, tables.same_quality):
        assert table(one).equals(table(other))
    fast = measured.seconds(budget_run(fitted={"measured": {"seconds": 2.0, "pairs": 1.0}}))
    row = fast[fast["method"] == tables.TITLES["fitted"]].iloc[0]
    assert row["seconds with pairs"] == 3 and row["against DPO"] == pytest.approx(2 / 7)


def test_seconds_are_written_beside_the_compared_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    frame = measured.seconds(budget_run())
    where = measured.save_measured(frame, "04_seconds", "demo", "seconds with pairs", "seconds")
    assert str(tmp_path) not in where
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    folder = Path("demo/measured")
    assert written == [folder / "04_seconds.csv", folder / "04_seconds.png"]


def test_the_figure_and_the_words_name_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    run = budget_run({"fitted": 0.9})
    points = tables.points(run)
    shown = views.compute_figure(points, "demo")
    assert "+0.500" in shown.metadata["alt"] and "120 test users" in shown.metadata["caption"]
    assert (tmp_path / "demo/figures/04_compute.svg").is_file()
    words = views.summary(
        verdicts(run, "x"), tables.learned(run), tables.same_quality(run), "demo"
    )
    assert "1/20 of DPO's parameters with 1/6.7" in words and "+0.750 on seen users" in words
    void = tables.learned(budget_run(dpo={"loss": [0.5, 0.6]}))
    assert "void" in views.summary([], void, tables.same_quality(run), "demo")
    text = views.readable(points)
    assert text["share"].tolist()[:2] == ["40%", "40%"] and text["FLOPs"].iloc[0] == "1.60e+02"
