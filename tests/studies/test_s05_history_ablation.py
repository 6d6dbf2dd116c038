"""Section 4.6: tables, verdicts and figures on planted answers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from chameleon_lib.kit import paths
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
)
from chameleon_lib.kit.tables import check_table
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies import s05_history_ablation as study
from chameleon_lib.studies.methods import title_of
from chameleon_lib.studies.run import Arm, Cell, Run
from chameleon_lib.studies.s05_selections import Selection
from tests.studies.planted import (
    BOTH,
    FEW,
    MANY,
    NEAREST,
    PAPER,
    RANDOM,
    RAW,
    RECENT,
    SELECTIONS,
    K,
    Selected,
    planted_choices,
    planted_history,
    rescored,
    scores_of,
)

# --- tables --------------------------------------------------------------------------------------

CHAMELEON, INSTRUCT = "CHAMELEON (paper)", "Instruct (A.3, no insight)"


@pytest.fixture(scope="module")
def run() -> Run:
    rates = {PAPER: {"chameleon": 0.9, "insight": 0.7}}
    return planted_history(rates, tasks=("LaMP_2",), backbones=BOTH)


def score(run: Run, selection: Selection, method: str) -> float:
    [cell] = run.at("LaMP_2", "demo:decoder", selection.name)
    return float(scores_of(cell, method, "accuracy").mean())


def test_every_table_has_its_counts_and_intervals(run: Run) -> None:
    for name in ("levels", "effects", "against_controls"):
        frame = getattr(study, name)(run, "LaMP_2")
        assert len(check_table(frame, name, "demo")) == len(frame) > 0
        assert list(frame.columns[-2:]) == ["n", "seeds"] and set(frame["n"]) == {120}
    check_table(study.prompts(run, "LaMP_2"), "prompts", "demo", "diagnostic")


def test_levels_have_a_row_per_family_condition_and_method(run: Run) -> None:
    frame = study.levels(run, "LaMP_2")
    assert len(frame) == 2 * (4 * len(SELECTIONS) - 2)
    row = frame.set_index(["model", "rule", "items", "method"]).loc[
        (title_of("demo:decoder"), "pca", K, CHAMELEON)
    ]
    assert row["accuracy"] == pytest.approx(score(run, PAPER, "chameleon"))
    assert row["accuracy"] > 0.85 and row["seeds"] == 2 and row["prompt"] == "as trained"


def test_rules_are_compared_where_both_have_the_method(run: Run) -> None:
    frame = study.against_controls(run, "LaMP_2")
    raw = frame[frame["compared"] == "pca minus pca raw"]
    assert CHAMELEON not in set(raw["method"]) and len(raw) == 2 * 2
    rest = frame[frame["compared"] != "pca minus pca raw"]
    assert set(rest["compared"]) == {f"pca minus {r}" for r in ("random", "recent", "nearest")}
    assert set(rest.groupby("compared").size()) == {2 * 4}
    assert set(frame["items"]) == {K}
    found = raw.set_index(["model", "method"])["accuracy"]
    expected = score(run, PAPER, "insight") - score(run, RAW, "insight")
    here = found[title_of("demo:decoder"), "A.3 with insight, no edit"]
    assert here == pytest.approx(expected) and here > 0.2


def test_prompts_count_insights_drops_and_pairs(run: Run) -> None:
    frame = study.prompts(run, "LaMP_2")
    first = frame.iloc[0]
    assert (first["rule"], first["items"]) == ("pca", FEW.k)
    assert first["insights that name the taste"] == pytest.approx(0.1)
    assert first["insights that name the taste_low"] < 0.1
    assert (first["items in the prompt"], first["items dropped"]) == (K - 1, 0)
    assert (first["pairs kept"], first["pairs identical"], first["seeds"]) == (4.5, 6.0, 2)
    assert first["edited layers"] == "0 | 1"
    raw = frame[frame["rule"] == "pca raw"].iloc[0]
    assert np.isnan(raw["pairs kept"]) and raw["seeds"] == 1
    assert raw["items dropped"] == SELECTIONS.index(RAW)


def test_choices_are_compared_with_the_papers_and_with_the_planted_taste(run: Run) -> None:
    choices = planted_choices(run, "LaMP_2")
    frame = study.chosen(run, "LaMP_2", choices).set_index("rule")
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


def test_rules_are_not_compared_by_margins_to_different_generic_answers() -> None:
    run = planted_history(tasks=("LaMP_2",))
    assert "margin" in study.against_controls(run, "LaMP_2")
    data = {task: replace(data, truth=None) for task, data in run.data.items()}
    cells = [without_one(cell, at) for at, cell in enumerate(run.cells)]
    real = replace(run, data=data, cells=cells)
    frame = study.against_controls(real, "LaMP_2")
    assert "margin" not in frame and frame["accuracy"].notna().all()


def without_one(cell: Cell, at: int) -> Cell:
    """The cell with another query without a margin than every other condition."""

    def lost(_: Arm, margin: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(margin)) == at, np.nan, margin)

    return rescored(cell, "margin", lost)


# --- verdicts ------------------------------------------------------------------------------------

TASKS = ("LaMP_2", "LaMP_3")


def verdicts_of(run: Run) -> dict[str, Verdict]:
    """The verdicts of a run with one task and family, by what they are about."""
    [task] = run.data
    found = study.verdicts(study.claims(run, task), "05_x")
    names = ("more", "too much", "rule", "rule, prompt", "raw, prompt")
    return dict(zip(names, found, strict=True))


def ch(rate: float, instruct: float = 0.4) -> dict[str, float]:
    return {"chameleon": rate, "instruct": instruct}


NUMBER, RULE = ("more", "too much"), ("rule", "rule, prompt", "raw, prompt")
ALL = {"chameleon": 0.9, "insight": 0.9}
PLANTED: dict[str, tuple[Selected, dict[str, str]]] = {
    "gains, then losses": ({PAPER: ch(0.9), MANY: ch(0.4)}, dict.fromkeys(NUMBER, REPRODUCED)),
    "so does the prompt": (
        {PAPER: ch(0.9, 0.9), MANY: ch(0.4, 0.4)}, dict.fromkeys(NUMBER, DIRECTION_ONLY)
    ),
    "nothing": (
        {}, dict.fromkeys(NUMBER, NOT_REPRODUCED) | dict.fromkeys(RULE, DOES_NOT_HOLD)
    ),
    "losses, then gains": (
        {FEW: ch(0.9), PAPER: ch(0.4), MANY: ch(0.9)}, dict.fromkeys(NUMBER, OPPOSITE)
    ),
    "better than every control": (
        {PAPER: ALL, RAW: {"insight": 0.9}}, dict.fromkeys(RULE, HOLDS)
    ),
    "as good as random": ({PAPER: ch(0.9), RANDOM: ch(0.9)}, {"rule": DOES_NOT_HOLD}),
    "as good as recent": ({PAPER: ch(0.9), RECENT: ch(0.9)}, {"rule": DIRECTION_ONLY}),
    "as good as nearest": ({PAPER: ch(0.9), NEAREST: ch(0.9)}, {"rule": DIRECTION_ONLY}),
    "worse than random": ({RANDOM: ALL}, dict.fromkeys(RULE, OPPOSITE)),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("rates", "expected"), PLANTED.values(), ids=list(PLANTED))
def test_a_verdict_says_what_was_planted(
    task: str, rates: Selected, expected: dict[str, str]
) -> None:
    found = verdicts_of(planted_history(rates, tasks=(task,)))
    assert {name: found[name].status for name in expected} == expected
    assert "change of Instruct" in found["more"].note
    assert all(name in found["rule"].note for name in ("random", "recent", "nearest"))
    assert all("beyond the paper" in found[name].claim for name in RULE)
    ours = found["more"].ours
    assert ours is not None and ours.low < ours.high  # not the same answers


def test_a_claim_without_its_conditions_was_not_run() -> None:
    run = planted_history(conditions=(PAPER, RANDOM))
    statuses = {name: v.status for name, v in verdicts_of(run).items()}
    assert statuses["more"] == statuses["too much"] == statuses["raw, prompt"] == NOT_RUN
    assert statuses["rule"] == statuses["rule, prompt"] == DOES_NOT_HOLD
    frame = study.claim_frame(study.claims(run, "LaMP_3"))
    assert set(frame["control"]) == {"the change itself", "minus random"} and len(frame) == 4


def test_a_rule_that_left_no_pair_is_not_judged_and_is_no_control() -> None:
    run = planted_history({PAPER: ch(0.9)}, without_pairs=(MANY, RECENT))
    found = verdicts_of(run)
    assert found["too much"].status == NOT_RUN and found["more"].status == REPRODUCED
    assert "nearest" in found["rule"].note and "recent" not in found["rule"].note
    none = verdicts_of(planted_history(without_pairs=(RANDOM,)))
    assert none["rule"].status == NOT_RUN and none["rule, prompt"].status == DOES_NOT_HOLD


def test_the_papers_reading_stands_beside_the_decoder_alone() -> None:
    claim = study.number_claim
    run = planted_history(backbones=("demo:decoder:0", "demo:encdec:0"), tasks=TASKS)
    papers = [claim(run, "LaMP_2", model, 5, 10).paper for model in run.models]
    assert papers == ["~+0.014 (plot reading)", "not shown in the paper"]
    assert claim(run, "LaMP_3", "demo:decoder", 10, 25, -1).paper == "~-0.101 (plot reading)"
    assert claim(run, "LaMP_2", "demo:decoder", 10, 30, -1).paper == "not shown in the paper"


# --- figures -------------------------------------------------------------------------------------

PUBLISH = Publisher("demo", "05_history_ablation")


@pytest.fixture(scope="module")
def drawn() -> Run:
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


def test_the_items_figure_has_the_papers_rule_alone_and_says_its_levels(drawn: Run) -> None:
    frame = study.levels(drawn, "LaMP_2")
    study.items_figure(frame, "LaMP_2", "demo:decoder", PUBLISH)
    side = saved("05_items_LaMP_2_decoder")
    assert "CHAMELEON (paper) from +0.200 to +0.600" in side["alt"]
    assert "120 test users" in side["caption"]
    rows = (paths.figures_dir("demo") / "05_items_LaMP_2_decoder.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 4


def test_the_other_figures_are_accepted(drawn: Run) -> None:
    study.rules_figure(study.against_controls(drawn, "LaMP_2"), "LaMP_2", PUBLISH)
    assert "14 values of accuracy, PCA minus control" in saved("05_rules_LaMP_2")["alt"]
    picked = study.chosen(drawn, "LaMP_2", planted_choices(drawn, "LaMP_2"))
    study.taste_figure(picked, "LaMP_2", PUBLISH)
    assert "pca from +0.000" in saved("05_taste_LaMP_2")["alt"]


def test_selections_without_a_pair_are_said_and_leave_the_others_alone() -> None:
    paper = (FEW, PAPER, MANY)
    run = planted_history(tasks=("LaMP_2",), without_pairs=paper)
    prompts = study.prompts(run, "LaMP_2").set_index(["rule", "items"])
    assert prompts["groups without a pair"].tolist() == [2, 2, 2, 0, 0, 0, 0]
    assert prompts.loc[("pca", K), "edited layers"] == "none | none"
    levels = study.levels(run, "LaMP_2")
    study.items_figure(levels, "LaMP_2", "demo:decoder", PUBLISH)
    assert "CHAMELEON" not in saved("05_items_LaMP_2_decoder")["alt"]
    assert set(study.against_controls(run, "LaMP_2")["method"]) == {
        "Instruct (A.3, no insight)", "A.3 with insight, no edit",
    }  # fmt: skip
