from __future__ import annotations

import json

import pytest

from chameleon_lib.kit import paths
from chameleon_lib.sections.history_ablation import tables as history_tables
from chameleon_lib.sections.history_ablation import verdicts as history_verdicts
from chameleon_lib.sections.history_ablation import views as history_views
from chameleon_lib.sections.results import Run
from tests.sections.history_ablation.planted_history import (
    FEW,
    MANY,
    PAPER,
    K,
    planted_choices,
    planted_history,
)


@pytest.fixture(scope="module")
def run() -> Run:
    rates = {FEW: {"chameleon": 0.2}, PAPER: {"chameleon": 0.9}, MANY: {"chameleon": 0.6}}
    return planted_history(rates, tasks=("LaMP_2",))


@pytest.fixture(autouse=True)
def outputs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))


def saved(figure_id: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(
        (paths.figures_dir("demo") / f"{figure_id}.json").read_text()
    )
    return found


def test_the_items_figure_has_the_papers_rule_alone_and_says_its_levels(run: Run) -> None:
    frame = history_tables.levels(run, "LaMP_2")
    history_views.items_figure(frame, "LaMP_2", "decoder", "demo")
    side = saved("05_items_LaMP_2_decoder")
    assert f"CHAMELEON (paper): 0.200 at {K - 1}, 0.900 at {K}, 0.600 at {K + 2}" in side["alt"]
    assert "120 test users" in side["caption"] and "never saw" not in side["caption"]
    rows = (paths.figures_dir("demo") / "05_items_LaMP_2_decoder.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 4


def test_a_length_the_models_never_saw_is_said_in_the_caption(run: Run) -> None:
    frame = history_tables.levels(run, "LaMP_2")
    frame.loc[frame["items"] == K + 2, "prompt"] = "longer than trained"
    history_views.items_figure(frame, "LaMP_2", "decoder", "demo")
    assert "never saw" in saved("05_items_LaMP_2_decoder")["caption"]


def test_the_rules_figure_counts_who_is_better(run: Run) -> None:
    frame = history_tables.against_controls(run, "LaMP_2")
    history_views.rules_figure(frame, "LaMP_2", "demo")
    assert len(frame) == 2 + 3 * 4
    assert (
        "better in 3, worse in 0, and the interval includes no difference in 11"
        in (saved("05_rules_LaMP_2")["alt"])
    )
    worse = frame.assign(accuracy=-0.5, accuracy_low=-0.6, accuracy_high=-0.4)
    history_views.rules_figure(worse, "LaMP_2", "demo")
    assert "better in 0, worse in 14" in saved("05_rules_LaMP_2")["alt"]


def test_the_rules_figure_of_an_error_turns_the_sides() -> None:
    run = planted_history({PAPER: {"chameleon": 0.9}}, tasks=("LaMP_3",))
    history_views.rules_figure(history_tables.against_controls(run, "LaMP_3"), "LaMP_3", "demo")
    assert "better in 3, worse in 0" in saved("05_rules_LaMP_3")["alt"]


def test_the_taste_figure_stands_beside_the_whole_history(run: Run) -> None:
    picked = history_tables.chosen(run, "LaMP_2", planted_choices(run, "LaMP_2"))
    history_views.taste_figure(picked, "LaMP_2", "demo")
    alt = saved("05_taste_LaMP_2")["alt"]
    assert f"At {K} items: pca 0.00, random 1.00" in alt and "whole history 0.5" in alt


def test_the_summary_names_the_best_number_of_each_line_and_counts_the_words(run: Run) -> None:
    picked = history_tables.chosen(run, "LaMP_2", planted_choices(run, "LaMP_2"))
    verdicts = history_verdicts.judged(run, history_verdicts.claims(run, "LaMP_2"), "05_x")
    frame = history_tables.levels(run, "LaMP_2")
    text = history_views.summary(run, "LaMP_2", frame, picked, verdicts)
    assert f"CHAMELEON (paper): accuracy 0.200 at {K - 1}, 0.900 at {K}" in text
    assert f"best at {K} items" in text and "random 100%" in text
    assert "2 reproduced" in text and "Verdicts: " in text


def test_of_an_error_the_lowest_is_best() -> None:
    run = planted_history({FEW: {"chameleon": 0.9}}, tasks=("LaMP_3",))
    frame = history_tables.levels(run, "LaMP_3")
    text = history_views.summary(run, "LaMP_3", frame, frame[[]], [])
    [line] = [row for row in text.splitlines() if "CHAMELEON (paper)" in row]
    assert line.endswith(f"best at {K - 1} items.")


def test_selections_without_a_pair_are_said_and_leave_the_others_alone() -> None:
    paper = (FEW, PAPER, MANY)
    run = planted_history(tasks=("LaMP_2",), without_pairs=paper)
    prompts = history_tables.prompts(run, "LaMP_2").set_index(["rule", "items"])
    assert prompts["groups without a pair"].tolist() == [2, 2, 2, 0, 0, 0, 0]
    assert prompts.loc[("pca", K), "edited layers"] == "none | none"
    levels = history_tables.levels(run, "LaMP_2")
    history_views.items_figure(levels, "LaMP_2", "decoder", "demo")
    assert "CHAMELEON" not in saved("05_items_LaMP_2_decoder")["alt"]
    assert set(history_tables.against_controls(run, "LaMP_2")["method"]) == {
        "Instruct (A.3, no insight)", "A.3 with insight, no edit",
    }  # fmt: skip
    claims = history_verdicts.claims(run, "LaMP_2")
    verdicts = history_verdicts.judged(run, claims, "05_x")
    picked = history_tables.chosen(run, "LaMP_2", planted_choices(run, "LaMP_2"))
    said = history_views.summary(run, "LaMP_2", levels, picked, verdicts)
    assert "(Mistral class), CHAMELEON (paper): no group had a pair to make an edit of" in said
