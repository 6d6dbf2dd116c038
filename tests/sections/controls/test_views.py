from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from chameleon_lib.kit import paths
from chameleon_lib.sections.controls import dose, dose_tables, views
from chameleon_lib.sections.controls.ledger import ledger_effects
from chameleon_lib.sections.controls.tables import against_controls, two_by_two
from chameleon_lib.sections.controls.variants import DEFAULT
from chameleon_lib.sections.results import Run
from tests.sections.planted import planted_run, without_margins
from tests.sections.planted_conditions import conditions_run

ONE = ("demo:decoder:0",)


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))


@pytest.fixture(scope="module")
def table1() -> Run:
    rates = {"chameleon": 0.9, "chameleon+insight": 0.9, "random": 0.1}
    return planted_run(rates, tasks=("LaMP_2", "LaMP_3"), backbones=ONE)


@pytest.fixture(scope="module")
def ledger() -> Run:
    strengths = {f"A12 strength {a:g}": {"chameleon": 0.4 + a / 10} for a in (0.5, 2.0, 4.0)}
    same = {"B4 order: remove, then boost": {"chameleon": 0.5}}
    insight = {"A13 insight in the prompt": {"insight": 0.9, "chameleon": 0.9}}
    default = {DEFAULT: {"chameleon": 0.5}}
    return conditions_run({**default, **strengths, **same, **insight}, backbones=ONE)


def drawn(name: str) -> pd.DataFrame:
    """The frame behind a figure that was saved."""
    assert (paths.figures_dir("demo") / f"{name}.svg").is_file()
    return pd.read_csv(paths.figures_dir("demo") / f"{name}.csv")


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
def test_insight_and_edit_are_drawn_for_one_task(table1: Run, task: str) -> None:
    shown = views.factorial_figure(two_by_two(table1), task, "demo")
    frame = drawn(f"06_insight_edit_{task}")
    assert len(frame) == 7 * 2 and "120 test users" in shown.metadata["caption"]
    on_top = frame[frame["effect"].str.startswith("edit on top")]
    best = on_top[on_top["edit"] == "CHAMELEON (paper)"]
    assert f"{best['value'].iloc[0]:+.3f}" in shown.metadata["alt"]


def test_control_directions_are_drawn_and_counted(table1: Run) -> None:
    shown = views.control_figure(against_controls(table1), "LaMP_2", "demo")
    frame = drawn("06_directions_LaMP_2")
    assert "random directions" in set(frame["control"]) and len(frame) == 10
    assert "10 of the intervals leave out 0" in shown.metadata["alt"]


def test_the_ledger_leaves_out_what_changed_no_answer_and_names_it(ledger: Run) -> None:
    shown = views.ledger_figure(ledger, ledger_effects(ledger), "LaMP_2", "demo")
    frame = drawn("06_ledger_LaMP_2")
    assert set(frame["comparison"]) == {"against the default", "against Instruct"}
    assert len(frame) == 3 * 2 and not frame["reading"].str.contains("B4|A13").any()
    assert "changed answer B4 order: remove, then boost (" in shown.metadata["caption"]
    assert "the default edit against it: decoder +0.100 [" in shown.metadata["caption"]
    assert "3 readings" in shown.metadata["alt"]


def test_strengths_are_drawn_with_the_papers_in_its_place(ledger: Run) -> None:
    frame = views.strengths(ledger)
    paper = frame[frame["edit"] == "CHAMELEON (paper)"]
    assert paper["strength"].tolist() == [0.5, 1, 2, 4]
    assert paper["change"].tolist() == pytest.approx([0.05, 0.1, 0.2, 0.4], abs=0.01)
    shown = views.strength_figure(frame, "LaMP_2", "demo")
    assert set(frame["n"]) == {120} and frame["margin change n"].between(1, 119).all()
    assert "+0.100 at 1 and +0.400 at 4" in shown.metadata["alt"]
    assert len(drawn("06_strength_LaMP_2")) == 2 * 4


@pytest.mark.parametrize("metric", ["accuracy", "margin"])
def test_doses_are_drawn_from_weak_to_strong(metric: str) -> None:
    rates = {dose.name_of(s): {"chameleon": s} for s in (0.25, 0.75)}
    frame = dose_tables.responses(conditions_run(rates, backbones=ONE))
    shown = dose_tables.figure(frame, "LaMP_2", metric, "demo")
    assert len(drawn(f"06_dose_{metric}_LaMP_2")) == 3 * 2
    assert "paper's, decoder from -0." in shown.metadata["alt"]
    [users] = {*drawn(f"06_dose_{metric}_LaMP_2")["n"]}
    assert (users == 120) is (metric == "accuracy")
    assert f"over the same {users} test users" in shown.metadata["caption"]


def test_doses_without_a_margin_are_an_empty_picture() -> None:
    rates = {dose.name_of(s): {"chameleon": s} for s in (0.25, 0.75)}
    run = without_margins(conditions_run(rates, backbones=ONE))
    shown = dose_tables.figure(dose_tables.responses(run), "LaMP_2", "margin", "demo")
    assert "no user has a value" in shown.metadata["alt"]
    assert "over the same 0 test users" in shown.metadata["caption"]
