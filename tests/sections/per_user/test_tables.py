from __future__ import annotations

from dataclasses import replace

import numpy as np
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
from chameleon_lib.lamp.baselines import baselines_for
from chameleon_lib.lamp.metrics import evaluate
from chameleon_lib.sections.estimates import paper_numbers
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.per_user import details as table1_details
from chameleon_lib.sections.per_user import tables as table1
from chameleon_lib.sections.per_user import views as table1_views
from chameleon_lib.sections.results import FAMILY_TITLES, Run, agreeing, query_golds
from tests.sections.planted import planted_run, swapped, without_margins

BOTH = ("demo:decoder:0", "demo:encdec:0")
TASKS = ("LaMP_2", "LaMP_3", "LaMP_7")


def verdicts_of(run: Run) -> tuple[Verdict, Verdict]:
    """The verdict on the paper's edit and the one on the fitted edit, of a run with one cell."""
    paper, aloe, fitted = table1.verdicts(run, "01_per_user")
    assert "beyond the paper" in fitted.claim and "beyond" not in paper.claim
    assert "beats ALOE" in aloe.claim
    return paper, fitted


def against_aloe(rates: dict[str, float]) -> str:
    """The verdict on the claim that CHAMELEON beats ALOE."""
    return table1.verdicts(planted_run(rates), "01_per_user")[1].status


@pytest.fixture(scope="module")
def run() -> Run:
    return planted_run({"chameleon": 0.9, "fitted": 0.8}, tasks=TASKS, backbones=BOTH)


# --- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3", "LaMP_7"])
def test_a_planted_gain_that_beats_its_controls_is_reproduced_and_holds(task: str) -> None:
    paper, fitted = verdicts_of(planted_run({"chameleon": 0.9, "fitted": 0.9}, tasks=(task,)))
    assert (paper.status, fitted.status) == (REPRODUCED, HOLDS)
    assert paper.ours is not None and (paper.n, paper.seeds) == (120, 2)


@pytest.mark.parametrize("control", table1.CLAIM_CONTROLS)
def test_a_gain_that_one_control_has_as_well_is_a_direction_only(control: str) -> None:
    paper, _ = verdicts_of(planted_run({"chameleon": 0.9, control: 0.9}))
    assert paper.status == DIRECTION_ONLY and control.replace("_", " ") in paper.note


@pytest.mark.parametrize("control", table1.FITTED_CONTROLS)
def test_a_fitted_gain_that_one_control_has_as_well_does_not_count_as_held(control: str) -> None:
    _, fitted = verdicts_of(planted_run({"fitted": 0.9, control: 0.9}))
    assert fitted.status == DIRECTION_ONLY


def test_no_effect_is_not_reproduced_and_does_not_hold() -> None:
    paper, fitted = verdicts_of(planted_run())
    assert (paper.status, fitted.status) == (NOT_REPRODUCED, DOES_NOT_HOLD)


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_is_opposite(task: str) -> None:
    rates = {"instruct": 0.8, "chameleon": 0.2, "fitted": 0.2}
    paper, fitted = verdicts_of(planted_run(rates, tasks=(task,)))
    assert (paper.status, fitted.status) == (OPPOSITE, OPPOSITE)


def test_a_gain_whose_scores_are_shuffled_with_the_baseline_is_not_reproduced() -> None:
    gain = planted_run({"chameleon": 0.9, "fitted": 0.9})
    paper, _ = verdicts_of(swapped(gain, "chameleon", "instruct"))
    _, fitted = verdicts_of(swapped(gain, "fitted", "instruct"))
    assert (paper.status, fitted.status) == (NOT_REPRODUCED, DOES_NOT_HOLD)


def test_aloe_is_beaten_with_llm_rec_or_the_claim_is_not_reproduced() -> None:
    assert against_aloe({"chameleon": 0.9}) == REPRODUCED
    assert against_aloe({"chameleon": 0.9, "llm_rec": 0.9}) == DIRECTION_ONLY
    assert against_aloe({"chameleon": 0.9, "aloe": 0.9}) == NOT_REPRODUCED
    assert against_aloe({"aloe": 0.9}) == OPPOSITE


@pytest.mark.parametrize("control", ["instruct", *table1.CLAIM_CONTROLS])
def test_a_gain_over_aloe_that_a_control_has_as_well_is_a_direction_only(control: str) -> None:
    assert against_aloe({"chameleon": 0.9, control: 0.9}) == DIRECTION_ONLY


def test_a_gain_over_an_aloe_that_harms_is_a_direction_only() -> None:
    assert against_aloe({"aloe": 0.1}) == DIRECTION_ONLY


def test_a_claim_about_a_rival_that_was_not_run_is_not_made() -> None:
    run = planted_run()
    [cell] = run.cells
    scores = {name: value for name, value in cell.scores.items() if name != "aloe"}
    found = table1.verdicts(replace(run, cells=[replace(cell, scores=scores)]), "x")
    assert len(found) == 2 and not [v for v in found if "ALOE" in v.claim]


def test_few_users_are_counted_and_not_judged() -> None:
    found = verdicts_of(planted_run({"chameleon": 0.9, "fitted": 0.9}, n_users=60))
    assert [v.status for v in found] == [TOO_FEW_USERS] * 2 and found[0].n == 60


@pytest.mark.parametrize(("task", "sign"), [("LaMP_2", "+"), ("LaMP_3", "-")])
def test_the_summary_has_a_word_for_an_interval_of_enough_users_alone(task: str, sign: str) -> None:
    rates = {"chameleon": 0.9}
    for n_users in (120, 60):
        run = planted_run(rates, tasks=(task,), n_users=n_users)
        said = table1_views.summary(run, {task: table1.effects(run, task)})
        words = ("helps", "hurts", "no effect")
        if n_users < 100:
            assert not any(word in said for word in words)
            assert f"the paper's edit {sign}" in said and "] and the fitted edit " in said
        else:
            assert f"the paper's edit helps ({sign}" in said
            assert "the fitted edit: no effect shown (" in said


def test_every_task_and_family_is_judged_on_every_claim_beside_the_papers_claim(run: Run) -> None:
    found = table1.verdicts(run, "01_per_user")
    assert len(found) == len(TASKS) * len(BOTH) * len(table1.CLAIMS)
    assert len({v.claim for v in found}) == len(found)
    by_claim = {v.claim: v.paper for v in found}
    claim = "LaMP-2, decoder (Mistral class): CHAMELEON's edit beats Instruct (accuracy change)"
    assert by_claim[claim] == "+0.198 (0.198 → 0.396)"
    error = "LaMP-3, decoder (Mistral class): CHAMELEON's edit beats Instruct (mae change)"
    assert by_claim[error] == "-0.090 (0.497 → 0.407)"
    rival = "LaMP-2, decoder (Mistral class): CHAMELEON's edit beats ALOE (accuracy change)"
    table = paper_numbers().set_index(["table", "task", "metric", "backbone", "method"])["value"]
    gain = [
        table["table1", "LaMP-2", "accuracy", "Mistral-7B-Instruct-v0.3", name]
        for name in ("ALOE", "CHAMELEON")
    ]
    assert by_claim[rival] == f"{gain[1] - gain[0]:+.3f} ({gain[0]:.3f} → {gain[1]:.3f})"
    own = [v for v in found if "beyond the paper" in v.claim]
    assert {v.paper for v in own} == {"not in the paper"} and {v.status for v in own} == {HOLDS}
    assert {v.split for v in found} == {"test users of the embedded world"}
    assert {v.csv for v in found} == {f"tables/table1_{task}_effects.csv" for task in TASKS}


def test_a_claim_about_official_users_says_so(run: Run) -> None:
    data = {task: replace(part, truth=None) for task, part in run.data.items()}
    assert {v.split for v in table1.verdicts(replace(run, data=data), "x")} == {
        "official dev users"
    }


# --- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_table_may_be_saved_as_a_result(run: Run, task: str) -> None:
    for name in ("results", "effects", "by_model", "floors"):
        frame = (getattr(table1, name, None) or getattr(table1_details, name))(run, task)
        assert len(check_table(frame, f"{name}_{task}", "demo")) == len(frame) > 0
        sparse = [c for c in frame if c.startswith("paper ") or c.endswith(("groups", " draw"))]
        measured = frame.drop(columns=sparse)
        assert list(measured.columns[-2:]) == ["n", "seeds"]
        assert not measured.isna().any(axis=None)


@pytest.mark.parametrize("name", ["results", "effects", "by_model"])
def test_a_rows_n_is_that_of_its_primary_metric_and_a_part_has_its_own(
    run: Run, name: str
) -> None:
    frame = getattr(table1, name)(run, "LaMP_2")
    same = int(agreeing(run, "LaMP_2").sum())
    margin = "margin change" if name == "effects" else "margin"
    assert 0 < same < 120 and set(frame["n"]) == {120} and set(frame[f"{margin} n"]) == {120 - same}
    if name == "effects":
        assert set(frame["accuracy change where users agree n"]) == {same}
    empty = check_table(getattr(table1, name)(without_margins(run), "LaMP_2"), name, "demo")
    assert empty[margin].isna().all() and set(empty[f"{margin} n"]) == {0}
    assert set(empty["n"]) == {120}


def test_results_show_every_method_with_the_papers_number_beside_it(run: Run) -> None:
    frame = table1.results(run, "LaMP_2")
    assert frame["method"].tolist() == [method.title for method in METHODS] * 2
    assert set(frame["family"]) == set(FAMILY_TITLES.values())
    first = frame[frame["family"] == FAMILY_TITLES["decoder"]].set_index("method")
    assert first.loc["Instruct (A.3, no insight)", "paper accuracy"] == 0.198
    assert first.loc["CHAMELEON (paper)", "paper accuracy"] == 0.396
    assert first["paper accuracy"].notna().sum() == 4
    golds = query_golds(run, "LaMP_2")
    answers = run.cells[0].answers["chameleon"]
    expected = np.mean([evaluate("LaMP_2", golds, a.texts)["f1"] for a in answers])
    assert first.loc["CHAMELEON (paper)", "f1"] == pytest.approx(expected)
    labels = frame.set_index("method")["gold labels"]
    assert set(labels[labels == "train"].index) == {
        "positive control: fitted on gold pairs",
        "ALOE (trained on gold answers)",
    }


def test_effects_are_differences_to_instruct_with_a_test_and_the_damage(run: Run) -> None:
    frame = table1.effects(run, "LaMP_2").set_index(["family", "method"])
    row = frame.loc[(FAMILY_TITLES["decoder"], "CHAMELEON (paper)")]
    right = run.cells[0].scores["chameleon"]["accuracy"]
    base = run.cells[0].scores["instruct"]["accuracy"]
    assert row["accuracy change"] == pytest.approx(right.mean() - base.mean())
    assert row["accuracy change_low"] > 0.3
    assert row["McNemar b"] == int(((right[0] == 1) & (base[0] == 0)).sum())
    assert row["McNemar c"] == int(((right[0] == 0) & (base[0] == 1)).sum())
    assert row["McNemar p"] < 1e-6
    assert "accuracy change where users agree" in frame.columns
    titles = {method.title for method in METHODS if "Plain" not in method.title}
    assert set(frame.index.get_level_values(1)) == titles - {"Instruct (A.3, no insight)"}
    assert "McNemar p" not in table1.effects(run, "LaMP_3").columns


def test_damage_exists_where_the_truth_is_planted_alone(run: Run) -> None:
    data = {task: replace(part, truth=None) for task, part in run.data.items()}
    frame = table1.effects(replace(run, data=data), "LaMP_3")
    assert not [column for column in frame.columns if "agree" in column]


def test_every_training_seed_has_rows_of_its_own(run: Run) -> None:
    frame = table1.by_model(run, "LaMP_3")
    assert set(frame["backbone"]) == set(BOTH)
    shown = set(frame["method"])
    assert "CHAMELEON (paper)" in shown and "control: shuffled pairs" in shown
    assert "control: P only" not in shown and "control: mean difference" not in shown
    mine = frame.set_index(["backbone", "method"]).loc[(BOTH[0], "CHAMELEON (paper)")]
    assert mine["mae"] == pytest.approx(run.cells[2].scores["chameleon"]["abs_error"].mean())


def test_the_spread_over_groups_and_the_range_of_random_directions_stand_beside_a_model() -> None:
    run = planted_run(tasks=("LaMP_2",))
    for method, levels in (("chameleon", (0.25, 0.75)), ("random", (0.6, 0.1))):
        run.cells[0].scores[method]["accuracy"] = np.stack([np.full(120, x) for x in levels])
    frame = table1.by_model(run, "LaMP_2").set_index("method")
    spread = frame["accuracy sd over groups"]
    assert spread["CHAMELEON (paper)"] == pytest.approx(np.sqrt(0.125))
    assert np.isnan(spread["Instruct (A.3, no insight)"])  # one group has no spread
    assert np.isnan(spread["control: random directions"])  # its draws are no groups
    ends = frame[["accuracy lowest draw", "accuracy highest draw"]]
    assert ends.loc["control: random directions"].tolist() == pytest.approx([0.1, 0.6])
    assert ends.drop(index="control: random directions").isna().all(axis=None)


def test_floors_need_no_model(run: Run) -> None:
    frame = table1_details.floors(run, "LaMP_3")
    names = [name.replace("_", " ") for name in baselines_for("LaMP_3")]
    assert frame["baseline"].tolist() == [name for name in names for _ in range(2)]
    assert frame["users"].tolist() == ["test users", "all users"] * len(names)
    golds = [float(gold) for gold in query_golds(run, "LaMP_3")]
    always5 = frame[(frame["baseline"] == "constant 5") & (frame["users"] == "test users")].iloc[0]
    assert always5["mae"] == pytest.approx(np.mean([5 - gold for gold in golds]))
    assert always5["valid rate"] == 1.0 and always5["n"] == 120
    assert set(frame["n"]) == {120, 132}


def test_directions_have_a_row_per_backbone_draw_and_layer(run: Run) -> None:
    frame = table1_details.directions(run, "LaMP_3")
    assert len(frame) == 2 * 2 * 3
    edited = frame[frame["edited"]].groupby(["backbone", "draw"])["layer"].apply(list).to_dict()
    assert edited == {(b, d): layers for b in BOTH for d, layers in ((0, [0, 1]), (1, [1]))}
    row = frame[(frame["draw"] == 1) & (frame["layer"] == 2)].iloc[0]
    assert row["ccs_loss"] == pytest.approx(0.3)
    assert (row["pairs kept"], row["pairs identical"], row["n"]) == (14, 6, 10)


def test_edit_ratios_stand_where_an_edit_acts(run: Run) -> None:
    frame = table1_details.directions(run, "LaMP_3")
    first = frame[(frame["backbone"] == BOTH[0]) & (frame["draw"] == 0)].set_index("layer")
    assert first["edit ratio"].tolist()[:2] == pytest.approx([0.75, 0.75])
    assert first["removal ratio"].tolist()[:2] == pytest.approx([0.075, 0.075])
    assert np.isnan(first.loc[2, "edit ratio"])
    assert first["fitted edit ratio"].tolist() == pytest.approx([0.3, 0.3, 0.3])


def test_edit_sizes_are_means_over_layers_queries_and_groups(run: Run) -> None:
    frame = table1_details.edit_sizes(run)
    assert len(frame) == len(TASKS) * len(run.families) * 5
    assert frame["edit"].tolist()[2] == "control: θP from neutral outputs"
    assert frame["edit"].tolist()[4] == "control: random directions"
    paper, fitted = (row for _, row in frame.head(2).iterrows())
    assert (paper["edit"], fitted["edit"]) == ("CHAMELEON (paper)", "CHAMELEON fitted (ours)")
    assert (paper["edited layers"], fitted["edited layers"]) == (1.5, 3.0)
    assert paper["edit ratio"] == pytest.approx(1.5 * 0.55)
    assert paper["edit ratio_low"] < paper["edit ratio"] < paper["edit ratio_high"]
    assert paper["boost ratio"] == pytest.approx(0.9 * 1.5 * 0.55)
    assert fitted["removal ratio"] == pytest.approx(0.1 * 1.5 * 0.2)
    assert (paper["n"], paper["seeds"]) == (2, 2 * len(BOTH) / len(run.families))
    assert list(frame.columns)[-2:] == ["n", "seeds"]


def test_the_sentence_on_sizes_says_which_control_pushes_less(run: Run) -> None:
    frame = table1_details.edit_sizes(run)
    said = table1_views.size_sentence(frame)
    places = len(TASKS) * len(run.families)
    assert "CHAMELEON (paper) changes an edited output by 82 % of its length" in said
    assert "control: random directions by 15 %" in said
    assert f"push less than the paper's edit in {places} of {places} places" in said
    assert f"within a tenth of its size in {places} of {places}." in said  # 0.75 beside 0.825
    assert f"in {places} of {places} places, so they are no control of its size;" in said
    alike = frame.assign(**{"edit ratio": 0.5, "edit ratio_low": 0.4, "edit ratio_high": 0.6})
    said = table1_views.size_sentence(alike)
    assert f"push less than the paper's edit in 0 of {places} places" in said and "50 %" in said
    assert "so none is shown to be too weak a control;" in said and "no control of" not in said
    some = (frame["edit"] == "CHAMELEON (paper)") & (frame["task"] == "LaMP-2")
    said = table1_views.size_sentence(alike.assign(**{"edit ratio_low": 0.4 + 0.3 * some}))
    assert f"in {len(run.families)} of {places} places, so there they are no control" in said
    neutral = frame["edit"] == "control: θP from neutral outputs"
    smaller = frame.assign(**{"edit ratio": frame["edit ratio"] - 0.3 * neutral})
    said = table1_views.size_sentence(smaller)
    assert f"within a tenth of its size in 0 of {places}." in said


def test_ratios_are_read_by_place_with_their_intervals(run: Run) -> None:
    frame = table1_details.edit_sizes(run)
    shown = table1_views.sizes_by_place(frame)
    assert len(shown) == len(TASKS) * len(run.families)
    first = frame.iloc[0]
    ends = first[["edit ratio", "edit ratio_low", "edit ratio_high"]]
    said = "{:.2f} [{:.2f}, {:.2f}]".format(*ends)
    assert shown.iloc[0]["CHAMELEON (paper)"] == said and shown.iloc[0]["n"] == 2


def test_pairs_are_counted_before_and_after_the_filter(run: Run) -> None:
    frame = table1_details.pair_counts(run)
    assert list(zip(frame["task"], frame["backbone"], strict=True)) == [
        (task.replace("_", "-"), name) for task in TASKS for name in BOTH
    ]
    row = frame.iloc[0]
    assert (row["pairs asked"], row["pairs kept"], row["n"], row["seeds"]) == (20.0, 14.5, 10, 2)
    assert row["drop rate"] == pytest.approx(5.5 / 20)
    assert (row["personal right"], row["neutral right"]) == (0.625, 1.0)
    assert row["personal right_low"] < 0.625 < row["personal right_high"]
    assert row["neutral right_low"] == 1.0 and row["personal right n"] == 10
    assert row["edited layers"] == "0,1 | 1"
    reasons = ["left out: no history", "left out: too long", "left out: empty insight"]
    assert row[reasons].tolist() == [4, 1, 2]
    assert row["history items dropped"] == 3


def test_real_data_has_no_right_pairs(run: Run) -> None:
    [cell, *_] = run.cells
    logs = [{k: v for k, v in log.items() if "right" not in k} for log in cell.draws]
    frame = table1_details.pair_counts(replace(run, cells=[replace(cell, draws=logs)]))
    assert not [column for column in frame.columns if "right" in column]


def test_trainings_are_listed_with_their_gold_answers_and_whether_they_learned() -> None:
    run = planted_run()
    assert table1_details.trainings(run).empty
    one = {"uses_gold": True, "queries": 10, "params": "full", "trainable_params": 7, "steps": 4,
           "mix": "standin", "mix_rows": 2, "rows": 12, "ties": 0, "departures": ("lr=0.1",),
           "loss": (4.0, 3.0, 2.0, 1.0),
           "seen": {"users": list("abcd"), "after": [0.0] * 4, "before": [1.0] * 4}}  # fmt: skip
    two = {**one, "uses_gold": False, "loss": (2.0, 2.0, 2.0, 3.0), "ties": 3}
    for log in run.cells[0].draws:
        log |= {"aloe": one, "dpo": two}
    frame = table1_details.trainings(run).set_index("method")
    aloe, dpo = (frame.loc[title] for title in frame.index)
    assert (aloe["gold answers seen"], dpo["gold answers seen"]) == (10, 0)
    assert (aloe["loss, first quarter"], aloe["loss, last quarter"]) == (4.0, 1.0)
    assert (dpo["loss, first quarter"], dpo["loss, last quarter"]) == (2.0, 3.0)
    assert (aloe["n"], aloe["seeds"], dpo["ties"]) == (4, 2, 3.0)
    assert (aloe["metric"], aloe["change on seen users"]) == ("mae", -1.0)
    assert frame["learned"].tolist() == ["yes", "no"]  # DPO gained, but its loss rose
    check_table(frame.reset_index(), "trainings", "demo", kind="diagnostic")
