from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lib.kit import paths
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import DIRECTION_ONLY, DOES_NOT_HOLD, HOLDS, NOT_REPRODUCED, OPPOSITE
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import check_table
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies import s01_per_user as table1
from chameleon_lib.studies import s06_controls as controls
from chameleon_lib.studies import s06_ledger as ledgers
from chameleon_lib.studies.methods import controls_of
from chameleon_lib.studies.run import Run
from chameleon_lib.studies.s06_controls import AGREEMENTS
from chameleon_lib.studies.s06_readings import DEFAULT
from tests.studies.finished import Finished, units
from tests.studies.planted import BOTH, conditions_run, margins_of, planted_run, swapped
from tests.studies.small import use_small_models

MARGIN = "paper's edit, margin change"
PUBLISH = Publisher("demo", "06_controls")


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
    frame = controls.two_by_two(run.frame)
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
    for frame in (controls.two_by_two(table1.frame), controls.against_controls(table1.frame)):
        assert len(check_table(frame, "controls", "demo")) == len(frame)
        assert not frame.isna().any(axis=None) and list(frame.columns[-2:]) == ["n", "seeds"]
        assert set(frame["task"]) == {"LaMP-2", "LaMP-3"} and set(frame["n"]) == {120}
        assert frame["margin change n"].between(1, 119).all()


def test_every_control_direction_stands_against_its_edit() -> None:
    run = planted_run({"chameleon": 0.8, "random": 0.8, "fitted_shuffled": 0.1}, tasks=("LaMP_2",))
    frame = controls.against_controls(run.frame).set_index(["edit", "control"])
    paper = frame.loc["CHAMELEON (paper)"]
    assert len(paper) == len(controls_of("chameleon")) == 10
    assert abs(paper.loc["random directions", "change"]) < 0.1
    assert paper.loc["shuffled pairs", "change_low"] > 0.2
    assert frame.loc[("CHAMELEON fitted (ours)", "fitted on shuffled pairs"), "change_low"] > 0.1


# --- verdicts -------------------------------------------------------------------------------------

INSIGHT = "A13 insight in the prompt"
ALL, ORDER = "A11 positions: all", "B4 order: remove, then boost"
NULL = {DEFAULT: {"chameleon": 0.4}, ALL: {"chameleon": 0.4}, ORDER: {"chameleon": 0.4}}


def run_of(task: str = "LaMP_2", n_users: int = 120, **rates: float) -> Run:
    known = {name.replace("_and_", "+"): rate for name, rate in rates.items()}
    return planted_run(known, tasks=(task,), backbones=BOTH[:1], n_users=n_users)


def ledger_of(rates: Mapping[str, Mapping[str, float]] = NULL, task: str = "LaMP_2") -> Run:
    return conditions_run(rates, tasks=(task,), backbones=BOTH[:1])


def judged(table: Run, ledger: Run | None = None) -> list[Verdict]:
    """Verdicts: paper's edit personal, beyond the insight; the same of the fitted; the ledger's."""
    found = controls.verdicts(table, "06_controls")
    found += ledgers.verdicts(ledger or ledger_of(), "06_controls")
    assert len({verdict.claim for verdict in found}) == len(found) == 5
    return found


GAINS = {"chameleon": 0.9, "chameleon_and_insight": 0.9}
LOSSES = {"instruct": 0.8, "insight": 0.8, "chameleon": 0.2, "chameleon_and_insight": 0.2}


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        (GAINS, (HOLDS, HOLDS, DOES_NOT_HOLD)),
        # No control has the gain of the edit alone, so its direction is its own.
        ({**GAINS, "insight": 0.9}, (HOLDS, DOES_NOT_HOLD, DOES_NOT_HOLD)),
        (LOSSES, (OPPOSITE,) * 3),
        ({}, (DOES_NOT_HOLD,) * 3),
    ],
    ids=["a gain of its own", "one that the insight has as well", "a loss", "nothing"],
)
def test_a_verdict_says_what_was_planted(
    task: str, rates: dict[str, float], expected: tuple[str, ...]
) -> None:
    personal, beyond, fitted, *_ = judged(run_of(task, **rates))
    assert (personal.status, beyond.status, fitted.status) == expected
    assert "insight" not in personal.note


@pytest.mark.parametrize("control", controls_of("chameleon", "claim", "personal"))
def test_a_gain_that_a_common_direction_has_is_not_personal(control: str) -> None:
    personal, beyond, *_ = judged(run_of(**{**GAINS, control: 0.9}))
    assert personal.status == DIRECTION_ONLY and control.replace("_", " ") in personal.note
    assert beyond.status == HOLDS


def test_labels_shuffled_between_edit_and_instruct_reproduce_nothing() -> None:
    gain = run_of(chameleon=0.9, fitted=0.9, chameleon_and_insight=0.9, fitted_and_insight=0.9)
    assert [v.status for v in judged(gain)[:4]] == [HOLDS] * 4
    for number, edit in enumerate(("chameleon", "fitted")):
        shuffled = swapped(swapped(gain, edit, "instruct"), f"{edit}+insight", "insight")
        own = judged(shuffled)[2 * number : 2 * number + 2]
        assert [v.status for v in own] == [DOES_NOT_HOLD] * 2
    shuffled = swapped(gain, "chameleon", "instruct")
    [paper] = [v for v in table1.verdicts(shuffled, "01_per_user") if " Instruct (" in v.claim
               and "fitted" not in v.claim and "beyond" not in v.claim]  # fmt: skip
    assert paper.status == NOT_REPRODUCED


def test_a_reading_that_rescues_the_edit_is_named_with_its_width() -> None:
    rates = {**NULL, ALL: {"chameleon": 0.9}, ORDER: {"chameleon": 0.1}}
    for task in ("LaMP_2", "LaMP_3"):
        ledger = ledger_of(rates, task)
        *_, rescue = judged(run_of(), ledger)
        assert rescue.status == HOLDS and ALL in rescue.note and "2 comparisons" in rescue.note
        assert rescue.ours is not None and rescue.ours.low > 0
        assert not rescue.plain and "interval widened" in rescue.claim


@pytest.mark.parametrize(
    ("rates", "status"),
    [
        ({**NULL, INSIGHT: {"insight": 0.9, "chameleon": 0.9}}, DOES_NOT_HOLD),
        ({name: {"chameleon": 0.9} for name in NULL}, DIRECTION_ONLY),
        ({name: {"instruct": 0.9, "chameleon": 0.2} for name in NULL}, OPPOSITE),
        (NULL, DOES_NOT_HOLD),
    ],
    ids=["a better prompt", "as good as a default that helps", "all lose", "none changes anything"],
)
def test_what_rescues_no_edit(rates: Mapping[str, Mapping[str, float]], status: str) -> None:
    *_, rescue = judged(run_of(), ledger_of(rates))
    assert rescue.status == status


# --- agreement and figures ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame(finished: Finished) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        return controls.agreements(finished.run, ArtifactStore(finished.folder))


def test_every_cell_of_table_1_has_its_agreements_and_effects(
    frame: pd.DataFrame, finished: Finished
) -> None:
    assert len(check_table(frame, "agreement", "demo")) == len(finished.run.cells)
    pairs = frame[AGREEMENTS["pairs"]]
    assert pairs.is_monotonic_decreasing and pairs.between(-1, 1).all()
    for name in controls.HALVES:
        assert frame[AGREEMENTS[name]].between(0, 1).all()
    assert frame[controls.CHANCE].between(0.01, 0.3).all()
    cell = finished.run.cells[0]
    row = frame[(frame["backbone"] == cell.backbone) & (frame["task"] == "LaMP-3")].iloc[0]
    [log] = cell.draws
    expected = [r["pair_cosine"] for r in log["rows"] if r["layer"] in log["layers"]]
    assert row["n"] == len(finished.run.test_users["LaMP_3"]) and row["seeds"] == 1
    assert row[f"{MARGIN} n"] == np.isfinite(margins_of(cell, "chameleon")).sum()
    assert row[AGREEMENTS["pairs"]] == pytest.approx(sum(expected) / len(expected))


def test_halves_of_one_direction_agree_and_are_stored(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)

    def same(*_: object) -> dict[str, torch.Tensor]:
        layers = len(finished.run.cells[0].draws[0]["rows"])
        return {name: torch.ones(layers, 4) for name in controls.HALVES}

    monkeypatch.setattr(controls, "_directions", same)
    run = replace(finished.run, cells=finished.run.cells[:1])
    run = replace(run, settings=run.settings.with_(ccs_tries=3))  # not what the store has
    before = units(finished.folder)
    found = controls.agreements(run, ArtifactStore(finished.folder)).iloc[0]
    assert [found[AGREEMENTS[name]] for name in controls.HALVES] == pytest.approx([1, 1, 1])
    assert len(units(finished.folder)) == len(before) + 1


def planted(changes: list[float]) -> pd.DataFrame:
    rows = [
        {
            "task": "LaMP-2",
            "backbone": f"demo:decoder:{place}",
            **dict.fromkeys(AGREEMENTS.values(), 0.9 - 0.1 * place),
            controls.CHANCE: 0.07,
            **{f"{title}, margin change{end}": value + shift
               for title in ("paper's edit", "fitted edit")
               for end, shift in (("", 0), ("_low", -0.1), ("_high", 0.1))},
            **{f"{title}, margin change n": 85 for title in ("paper's edit", "fitted edit")},
            "n": 120,
            "seeds": 3,
        }
        for place, value in enumerate(changes)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "correlation"), [([3, 2, 1], 1), ([1, 2, 3], -1), ([2, 1, 2], 0)]
)
def test_agreement_and_margin_change_are_correlated_by_rank(
    changes: list[float], correlation: float
) -> None:
    found = controls.correlations(planted(changes)).set_index("agreement")
    assert found.loc[AGREEMENTS["pairs"], MARGIN] == pytest.approx(correlation, abs=1e-9)
    assert list(found.index) == list(AGREEMENTS.values()) and set(found["n"]) == {3}


def test_the_figure_orders_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    shown = controls.agreement_figure(planted([3, 2, 1]), PUBLISH)
    assert "from +1.000 to +3.000; 6 of" in shown.metadata["alt"]
    assert "n = 3 cells" in shown.metadata["caption"]
    assert "over 85 test users" in shown.metadata["caption"]
    shown = controls.agreement_figure(planted([float("nan")]), PUBLISH)
    assert "from undefined to undefined" in shown.metadata["alt"]


def test_insight_edit_and_control_directions_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    run = run_of(**{"chameleon": 0.9, "chameleon_and_insight": 0.9, "random": 0.1})
    shown = controls.factorial_figure(controls.two_by_two(run.frame), "LaMP_2", PUBLISH)
    data = pd.read_csv(paths.figures_dir("demo") / "06_insight_edit_LaMP_2.csv")
    assert len(data) == 7 * 2 and "120 test users" in shown.metadata["caption"]
    assert f"to {data['value'].max():+.3f}; " in shown.metadata["alt"]
    shown = controls.control_figure(controls.against_controls(run.frame), "LaMP_2", PUBLISH)
    assert "10 of the intervals leave out 0" in shown.metadata["alt"]
