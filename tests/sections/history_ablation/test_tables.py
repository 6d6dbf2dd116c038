from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chameleon_lib.kit.tables import check_table
from chameleon_lib.sections.history_ablation import tables as history_tables
from chameleon_lib.sections.results import FAMILY_TITLES, Run
from tests.sections.history_ablation.planted_history import (
    CONDITIONS,
    FEW,
    PAPER,
    RAW,
    K,
    planted_choices,
    planted_history,
)
from tests.sections.planted import without_margins

BOTH = ("demo:decoder:0", "demo:encdec:0")
CHAMELEON, INSTRUCT = "CHAMELEON (paper)", "Instruct (A.3, no insight)"


@pytest.fixture(scope="module")
def run() -> Run:
    rates = {PAPER: {"chameleon": 0.9, "insight": 0.7}}
    return planted_history(rates, tasks=("LaMP_2",), backbones=BOTH)


def score(run: Run, condition: str, method: str) -> float:
    [cell] = run.of("LaMP_2", "decoder", condition)
    return float(cell.scores[method]["accuracy"].mean())


def test_every_table_has_its_counts_and_intervals(run: Run) -> None:
    for name in ("levels", "effects", "against_controls"):
        frame = getattr(history_tables, name)(run, "LaMP_2")
        assert len(check_table(frame, name, "demo")) == len(frame) > 0
        assert list(frame.columns[-2:]) == ["n", "seeds"] and set(frame["n"]) == {120}
    check_table(history_tables.prompts(run, "LaMP_2"), "prompts", "demo", "diagnostic")


def test_a_margin_is_counted_on_those_who_have_one(run: Run) -> None:
    for name in ("levels", "effects", "against_controls"):
        measure = "margin change" if name == "effects" else "margin"
        frame = getattr(history_tables, name)(run, "LaMP_2")
        assert frame[f"{measure} n"].between(1, 119).all()
        empty = getattr(history_tables, name)(without_margins(run), "LaMP_2")
        check_table(empty, name, "demo")
        assert empty[measure].isna().all() and set(empty["n"]) == {120}


def test_levels_have_a_row_per_family_condition_and_method(run: Run) -> None:
    frame = history_tables.levels(run, "LaMP_2")
    assert len(frame) == 2 * (4 * len(CONDITIONS) - 2)
    row = frame.set_index(["family", "rule", "items", "method"]).loc[
        (FAMILY_TITLES["decoder"], "pca", K, CHAMELEON)
    ]
    assert row["accuracy"] == pytest.approx(score(run, PAPER, "chameleon"))
    assert row["accuracy"] > 0.85 and row["seeds"] == 2 and row["prompt"] == "as trained"


def test_the_papers_plot_stands_beside_its_own_rule_method_and_family(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(history_tables.PLOT, ("LaMP_2", "accuracy"), {K: 0.396})
    frame = history_tables.levels(run, "LaMP_2")
    [row] = frame[frame["paper accuracy"].notna()].to_dict("records")
    assert (row["family"], row["rule"], row["items"]) == (FAMILY_TITLES["decoder"], "pca", K)
    assert row["method"] == CHAMELEON and row["paper accuracy"] == 0.396
    assert history_tables.PLOT["LaMP_3", "mae"][25] == 0.306


def test_effects_compare_with_instruct_under_the_same_items(run: Run) -> None:
    frame = history_tables.effects(run, "LaMP_2")
    assert INSTRUCT not in set(frame["method"])
    found = frame.set_index(["family", "rule", "items", "method"])["accuracy change"]
    expected = score(run, PAPER, "chameleon") - score(run, PAPER, "instruct")
    assert found[FAMILY_TITLES["decoder"], "pca", K, CHAMELEON] == pytest.approx(expected)


def test_rules_are_compared_where_both_have_the_method(run: Run) -> None:
    frame = history_tables.against_controls(run, "LaMP_2")
    raw = frame[frame["compared"] == "pca minus pca raw"]
    assert CHAMELEON not in set(raw["method"]) and len(raw) == 2 * 2
    rest = frame[frame["compared"] != "pca minus pca raw"]
    assert set(rest["compared"]) == {f"pca minus {r}" for r in ("random", "recent", "nearest")}
    assert set(rest.groupby("compared").size()) == {2 * 4}
    assert set(frame["items"]) == {K}
    found = raw.set_index(["family", "method"])["accuracy"]
    expected = score(run, PAPER, "insight") - score(run, RAW, "insight")
    here = found[FAMILY_TITLES["decoder"], "A.3 with insight, no edit"]
    assert here == pytest.approx(expected) and here > 0.2


def test_prompts_count_insights_drops_and_pairs(run: Run) -> None:
    frame = history_tables.prompts(run, "LaMP_2")
    first = frame.iloc[0]
    assert (first["rule"], first["items"]) == ("pca", int(FEW.split()[2]))
    assert first["insights that name the taste"] == pytest.approx(0.1)
    assert first["insights that name the taste_low"] < 0.1
    assert (first["items in the prompt"], first["items dropped"]) == (K - 1, 0)
    assert (first["pairs kept"], first["pairs identical"], first["seeds"]) == (4.5, 6.0, 2)
    assert first["edited layers"] == "0 | 1"
    raw = frame[frame["rule"] == "pca raw"].iloc[0]
    assert np.isnan(raw["pairs kept"]) and raw["seeds"] == 1
    assert raw["items dropped"] == CONDITIONS.index(RAW)


def test_choices_are_compared_with_the_papers_and_with_the_planted_taste(run: Run) -> None:
    choices = planted_choices(run, "LaMP_2")
    frame = history_tables.chosen(run, "LaMP_2", choices).set_index("rule")
    check_table(frame.reset_index(), "chosen", "demo")
    assert frame.loc["pca", "overlap with pca"] == 1.0
    same = [set(a) & set(b) for a, b in zip(choices["pca", K], choices["random", K], strict=True)]
    expected = np.mean([len(part) / K for part in same])
    assert frame.loc["random", "overlap with pca"] == pytest.approx(expected)
    data = run.data["LaMP_2"]
    lengths = np.array([len(user.history) for user in data.test])
    assert frame.loc["pca", "overlap by chance"] == pytest.approx(np.mean(K / lengths))
    assert data.truth is not None
    whole = np.mean(
        [np.mean([i.label == data.truth[u.id].taste.tag for i in u.history]) for u in data.test]
    )
    assert frame.loc["pca", "taste"] < whole < frame.loc["random", "taste"]
    assert frame.loc["pca", "taste in the whole history"] == pytest.approx(whole)
    assert frame.loc["random", "taste"] > 0.95


def test_without_a_planted_tag_nothing_is_said_of_the_taste(run: Run) -> None:
    choices = planted_choices(run, "LaMP_2")
    blind = {task: replace(part, truth=None) for task, part in run.data.items()}
    assert "taste" not in history_tables.chosen(replace(run, data=blind), "LaMP_2", choices)
    for cell in run.cells:
        assert "named" in cell.scores["insight"]
    unnamed = [
        replace(cell, scores={m: {n: v for n, v in s.items() if n != "named"}
                              for m, s in cell.scores.items()})
        for cell in run.cells
    ]  # fmt: skip
    frame = history_tables.prompts(replace(run, cells=unnamed), "LaMP_2")
    assert not [column for column in frame if "taste" in column]


def test_rules_are_not_compared_by_margins_to_different_generic_answers() -> None:
    run = planted_history(tasks=("LaMP_2",))
    assert "margin" in history_tables.against_controls(run, "LaMP_2")
    data = {task: replace(data, truth=None) for task, data in run.data.items()}
    cells = [
        replace(cell, scores={name: without_some(rows, at) for name, rows in cell.scores.items()})
        for at, cell in enumerate(run.cells)
    ]
    real = replace(run, data=data, cells=cells)
    frame = history_tables.against_controls(real, "LaMP_2")
    assert "margin" not in frame and frame["accuracy"].notna().all()


def without_some(scores: dict[str, np.ndarray], at: int) -> dict[str, np.ndarray]:
    """Scores in which every condition leaves another query without a margin."""
    margin = scores["margin"].copy()
    margin[:, at % margin.shape[1]] = np.nan
    return {**scores, "margin": margin}
