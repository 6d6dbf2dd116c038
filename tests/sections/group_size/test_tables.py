from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chameleon_lib.kit.tables import check_table
from chameleon_lib.sections.group_size.agreement import chance
from chameleon_lib.sections.group_size.ladder import OTHER, OWN
from chameleon_lib.sections.group_size.tables import (
    agreement,
    cells_of,
    curve,
    groups_of,
    pairs,
    size_of,
    title_of,
)
from chameleon_lib.sections.results import FAMILY_TITLES, Run, agreeing
from tests.sections.group_size.planted_sizes import CONDITIONS, planted_sizes
from tests.sections.planted import without_margins

BOTH = ("demo:decoder:0", "demo:encdec:0")
RATES = {OWN: {"chameleon": 0.5}, "20 users": {"chameleon": 0.7}, "100 users": {"fitted": 0.9}}


@pytest.fixture(scope="module")
def run() -> Run:
    return planted_sizes(RATES, tasks=("LaMP_2", "LaMP_3"), backbones=BOTH)


def test_conditions_stand_in_the_order_of_their_sizes_whatever_the_order_of_the_cells(
    run: Run,
) -> None:
    turned = replace(run, cells=run.cells[::-1])
    for some in (run, turned):
        found = cells_of(some, "LaMP_2", "decoder")
        assert {name: size_of(cells) for name, cells in found.items()} == CONDITIONS
        assert list(found)[2:] == ["20 users", "100 users"]
        assert [size_of(cells) for cells in groups_of(some, "LaMP_2", "decoder")] == [20, 100]


@pytest.mark.parametrize(("task", "metric"), [("LaMP_2", "accuracy"), ("LaMP_3", "mae")])
def test_the_curve_has_every_method_at_every_size_with_level_and_change(
    run: Run, task: str, metric: str
) -> None:
    frame = check_table(curve(run, task), "x", "demo")
    different = int((~agreeing(run, task)).sum())
    assert set(frame["margin change n"]) == {different} and different < 120
    empty = check_table(curve(without_margins(run), task), "x", "demo")
    assert set(empty["margin change n"]) == {0} and set(empty["n"]) == {120}
    one = frame[frame["family"] == FAMILY_TITLES["decoder"]]
    assert len(frame) == 2 * len(one) and set(frame["n"]) == {120}
    assert one.groupby("users").size().to_dict() == {0: 1, 1: 4, 20: 6, 100: 6}
    assert set(one[one["users"] == 1]["directions"]) == {"the user's own", "one other user's"}
    plain = one[one["users"] == 0].iloc[0]
    assert (plain["method"], plain["seeds"]) == ("Instruct (A.3, no insight)", 1)
    assert plain[f"{metric} change"] == plain[f"{metric} change_low"] == 0
    for _, row in one[one["users"] > 0].iterrows():
        level, change = row[metric] - plain[metric], row[f"{metric} change"]
        assert change == pytest.approx(level) and row["seeds"] == 2


def test_levels_are_the_planted_rates() -> None:
    frame = curve(planted_sizes(RATES, tasks=("LaMP_2",)), "LaMP_2")
    keyed = frame.set_index(["directions", "users", "method"])["accuracy"]
    assert keyed["the user's own", 1, title_of("chameleon")] == pytest.approx(0.5)
    assert keyed["one other user's", 1, title_of("chameleon")] == pytest.approx(0.4)
    assert keyed["the group's", 20, title_of("chameleon")] == pytest.approx(0.7)
    assert keyed["the group's", 100, title_of("fitted")] == pytest.approx(0.9)


def test_the_spread_is_over_the_sets_of_train_users_and_empty_for_one_set() -> None:
    run = planted_sizes(tasks=("LaMP_2",))
    [cell] = run.of("LaMP_2", "decoder", "20 users")
    cell.scores["chameleon"]["accuracy"] = np.stack([np.full(120, 0.25), np.full(120, 0.75)])
    frame = curve(run, "LaMP_2")
    row = frame[(frame["users"] == 20) & (frame["method"] == title_of("chameleon"))].iloc[0]
    assert row["accuracy sd over sets"] == pytest.approx(np.sqrt(0.125))
    assert np.isnan(frame["accuracy sd over sets"].iloc[0])


def test_pairs_are_counted_per_direction_and_few_are_marked(run: Run) -> None:
    frame = check_table(pairs(run, "LaMP_2"), "x", "demo", "diagnostic")
    one = frame[frame["family"] == FAMILY_TITLES["decoder"]].set_index("condition")
    assert list(one.index) == list(CONDITIONS)
    assert one["pairs per direction"].to_dict() == {
        OWN: 1.0, OTHER: 1.0, "20 users": 20.0, "100 users": 100.0
    }  # fmt: skip
    few = one["fewer pairs than pairs_k_min"]
    assert [name for name in one.index if few[name]] == [OWN, OTHER, "20 users"]
    assert one["drop rate"]["100 users"] == pytest.approx(20 / 120)
    assert one["edited layers"]["100 users"] == "0,2 | 1,2"
    assert one["edited layers"][OTHER] == "0:30,2:50 | 0:30,2:50"
    assert (one["edited layers"][OWN], one["seeds"][OWN]) == ("0:30,2:50", 1)
    assert one["users"][OWN] == 80


def test_agreement_shows_mean_range_chance_and_shared_users(run: Run) -> None:
    frame = check_table(agreement(run, "LaMP_2"), "x", "demo", "diagnostic")
    one = frame[frame["family"] == FAMILY_TITLES["decoder"]]
    assert one.groupby("condition").size().to_dict() == {
        OWN: 4, OTHER: 4, "20 users": 8, "100 users": 8
    }  # fmt: skip
    keyed = one.set_index(["condition", "direction", "large group of the"])
    row = keyed.loc[("20 users", "θN (fitted)", "other draws")]
    assert (row["cosine"], row["lowest"], row["highest"]) == pytest.approx((0.15, 0.1, 0.2))
    assert row["users shared"] == pytest.approx(0.55) and row["chance"] == chance(16)
    assert (row["n"], row["seeds"]) == (20, 2)
    assert keyed.loc[("20 users", "θP (paper)", "own draw")]["users shared"] == 1
    assert keyed.loc[(OWN, "θP (paper)", "own draw")]["users shared"] == 0
    assert keyed.loc[(OWN, "θP (paper)", "own draw")]["n"] == 80


def test_with_one_draw_there_is_no_other_to_agree_with() -> None:
    run = planted_sizes()
    for cell in run.cells:
        for log in cell.draws:
            for thetas in log["agreement"].values():
                for name in thetas:
                    thetas[name] = {"own draw": 1.0}
            del log["shared"]
    assert set(agreement(run, "LaMP_3")["large group of the"]) == {"own draw"}
