from __future__ import annotations

import pytest

from chameleon_lib.kit.tables import check_table
from chameleon_lib.sections.controls import tables
from tests.sections.planted import planted_run, without_margins

BOTH = ("demo:decoder:0", "demo:encdec:0")


def arms(neither: float, insight: float, edit: float, both: float) -> dict[str, float]:
    return {"instruct": neither, "insight": insight, "chameleon": edit, "chameleon+insight": both}


@pytest.mark.parametrize(
    ("rates", "edit", "insight", "interaction"),
    [
        ((0.2, 0.4, 0.5, 0.7), 0.3, 0.2, 0.0),
        ((0.2, 0.8, 0.7, 0.8), 0.25, 0.35, -0.5),
        ((0.6, 0.6, 0.2, 0.2), -0.4, 0.0, 0.0),
    ],
)
def test_the_effects_of_the_2_x_2_are_those_that_were_planted(
    rates: tuple[float, float, float, float], edit: float, insight: float, interaction: float
) -> None:
    run = planted_run(arms(*rates), tasks=("LaMP_2",))
    frame = tables.two_by_two(run)
    mine = frame[frame["edit"] == "CHAMELEON (paper)"].set_index("effect")["change"]
    assert mine["main effect of the edit"] == pytest.approx(edit, abs=0.011)
    assert mine["main effect of the insight"] == pytest.approx(insight, abs=0.011)
    assert mine["interaction"] == pytest.approx(interaction, abs=0.021)
    assert mine["edit on top of the insight (C6 - C4)"] == pytest.approx(
        rates[3] - rates[1], abs=0.011
    )
    fitted = frame[frame["edit"] != "CHAMELEON (paper)"].set_index("effect")["change"]
    assert fitted["insight alone (C4 - C3)"] == mine["insight alone (C4 - C3)"]


def test_every_table_may_be_saved() -> None:
    table1 = planted_run({"chameleon": 0.8}, tasks=("LaMP_2", "LaMP_3"), backbones=BOTH)
    for frame in (tables.two_by_two(table1), tables.against_controls(table1)):
        assert len(check_table(frame, "controls", "demo")) == len(frame)
        assert not frame.isna().any(axis=None) and list(frame.columns[-2:]) == ["n", "seeds"]
        assert set(frame["task"]) == {"LaMP-2", "LaMP-3"} and set(frame["n"]) == {120}
        assert frame["margin change n"].between(1, 119).all()


def test_where_nobody_has_a_margin_its_cells_are_empty() -> None:
    run = without_margins(planted_run(tasks=("LaMP_2",)))
    for frame in (tables.two_by_two(run), tables.against_controls(run)):
        check_table(frame, "controls", "demo")
        assert frame["margin change"].isna().all() and set(frame["n"]) == {120}


def test_every_control_direction_stands_against_its_edit() -> None:
    run = planted_run({"chameleon": 0.8, "random": 0.8, "fitted_shuffled": 0.1}, tasks=("LaMP_2",))
    frame = tables.against_controls(run).set_index(["edit", "control"])
    paper = frame.loc["CHAMELEON (paper)"]
    assert len(paper) == len(tables.CONTROLS["chameleon"])
    assert abs(paper.loc["random directions", "change"]) < 0.1
    assert paper.loc["shuffled pairs", "change_low"] > 0.2
    assert frame.loc[("CHAMELEON fitted (ours)", "fitted on shuffled pairs"), "change_low"] > 0.1
