from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.task import is_valid_answer
from chameleon_lib.data.floors import floors_for as baselines_for
from chameleon_lib.data.lamp import write_lamp
from chameleon_lib.data.metrics import evaluate, per_sample_scores
from chameleon_lib.demo.world import habits_followed
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    OPPOSITE,
    REPRODUCED,
    TOO_FEW_USERS,
)
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import check_table
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.rivals.registry import prompted
from chameleon_lib.studies import run as grid
from chameleon_lib.studies import s01_per_user as table1
from chameleon_lib.studies.arms import reference_answers
from chameleon_lib.studies.data import TaskData, load_task_data, without_gold
from chameleon_lib.studies.forms import measures_of
from chameleon_lib.studies.frame import matrix, pick
from chameleon_lib.studies.methods import METHODS, controls_of, paper_numbers, title_of
from chameleon_lib.studies.run import Arm, Cell, Desk, Run, agreeing_queries
from chameleon_lib.studies.study import Study
from tests.studies.finished import PROFILE, TASKS, Finished, assert_same, units
from tests.studies.planted import (
    BOTH,
    agreeing,
    answers_of,
    keeping,
    leveled,
    planted_run,
    query_golds,
    scores_of,
    swapped,
    without_margins,
)
from tests.studies.small import BACKBONES, SETTINGS, methods_of, small_profile, use_small_models

DRAWS = (0, 3)  # seeds of the groups, not their number
FEW = small_profile(n_test=4)
SMALL = SETTINGS.with_(controls_random_draws=3, group_draws=2, group_seeds=DRAWS)


@dataclass(frozen=True)
class Made:
    """One cell with what it was made from."""

    study: Study
    data: TaskData
    test: list[PreparedUser]
    cell: Cell


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        store = ArtifactStore(tmp_path_factory.mktemp("units"))
        study = Study(FEW, "demo:decoder:0", "LaMP_7", SMALL, store)
        data = load_task_data(FEW, "LaMP_7")
        test, _ = found = study.prepare(without_gold(data.test))
        desk = Desk(study, data, test, found.counts)
        yield Made(study, data, test, table1.compute_cell(desk, DRAWS))


def test_a_cell_has_every_method_in_order_with_its_seeds(made: Made) -> None:
    cell = made.cell
    once = {m.id for m in METHODS if m.kind == "baseline"} | {r.id for r in prompted()}
    once |= {"neutral"}
    expected = []
    for name in methods_of(cell.backbone, cell.task):
        repeats = range(2 if name == "random" else 1)  # three were asked for; draws get as many
        arms = [Arm(name, draw, at) for draw in DRAWS for at in repeats]
        expected += [Arm(name)] if name in once else arms
    assert list(cell.answers) == expected
    assert (cell.backbone, cell.model, cell.task) == ("demo:decoder:0", "demo:decoder", "LaMP_7")


def test_every_score_is_that_of_the_answer_beside_it(made: Made) -> None:
    users = made.data.chosen(made.cell.users)
    golds = [str(query.gold) for user in users for query in user.queries]
    assert made.data.truth is not None
    tastes = [made.data.truth[user.id].taste for user in users for _ in user.queries]
    plain = made.cell.answers[Arm("instruct")].texts
    for answer in made.cell.answers.values():
        expected = dict(per_sample_scores("LaMP_7", golds, answer.texts))
        expected["valid"] = np.array([is_valid_answer("LaMP_7", t) for t in answer.texts])
        moved = [a != b for a, b in zip(answer.texts, plain, strict=True)]
        expected["changed"] = np.array(moved)
        expected["habits"] = np.array(
            [habits_followed(t, taste) for t, taste in zip(answer.texts, tastes, strict=True)]
        )
        expected["margin"] = answer.margin
        assert set(answer.scores) >= set(expected) >= {"rouge1", "rougeL"}
        for score, values in expected.items():
            np.testing.assert_allclose(answer.scores[score], values.astype(float))


def test_every_draw_has_a_group_of_its_own_and_logs_how_right_its_pairs_are(made: Made) -> None:
    first, second = made.cell.draws
    assert first != second
    for log in made.cell.draws:
        right = log["right"]
        assert log["users"] == SMALL.group_size == len(set(right["users"]))
        assert len(right["personal"]) == len(right["neutral"]) == log["pairs"]
        assert set(log["fits"]) >= {"fitted", "fitted_gold"}


def test_margins_compare_planted_answers_in_the_world_and_gold_with_neutral_elsewhere(
    made: Made,
) -> None:
    planted = reference_answers(made.study, made.data, made.test)
    assert made.data.truth is not None
    truths = [made.data.truth[user.user.id] for user in made.test]
    assert planted.personal == [text for truth in truths for text in truth.personal]
    assert planted.generic == [text for truth in truths for text in truth.generic]
    real = reference_answers(made.study, replace(made.data, truth=None), made.test)
    ids = [user.user.id for user in made.test]
    golds = {user.id: [str(q.gold) for q in user.queries] for user in made.data.test}
    assert real.personal == [gold for user in ids for gold in golds[user]]
    assert real.generic == [pair.answer_n for pair in made.study.pairs(made.test)]


# --- the study -----------------------------------------------------------------------------------

OWN_SCORES = {
    "LaMP_3": {"abs_error", "squared_error"},
    "LaMP_7": {"rouge1", "rougeL", "habits", *measures_of("LaMP_7")},
}


def test_every_cell_has_every_method_with_one_score_per_seed_and_query(
    finished: Finished,
) -> None:
    done = finished.run
    assert [(c.task, c.backbone) for c in done.cells] == [(t, b) for t in TASKS for b in BACKBONES]
    assert done.models == ["demo:decoder", "demo:encdec"]
    for cell in done.cells:
        n = len(cell.users)
        assert list(answers_of(cell)) == methods_of(cell.backbone, cell.task)
        assert 0 < n <= 8 and cell.counts["users"] == 8
        for method, answers in answers_of(cell).items():
            own = {"valid", "changed", "margin", *OWN_SCORES[cell.task]}
            assert len(answers) == (SETTINGS.controls_random_draws if method == "random" else 1)
            for answer in answers:
                assert set(answer.scores) - {"confusion"} == own and len(answer.texts) == n
                assert {values.shape for values in answer.scores.values()} == {(n,)}
    two, *_ = matrix(pick(done.frame, task="LaMP_3", method="random"), "valid")
    assert two.shape == (2 * SETTINGS.controls_random_draws, len(done.test_users["LaMP_3"]))


def test_a_margin_is_undefined_where_user_and_anyone_agree_and_nowhere_else(
    finished: Finished,
) -> None:
    done = finished.run
    for cell in done.cells:
        assert not scores_of(cell, "instruct", "changed").any()
        undefined = np.isnan(scores_of(cell, "chameleon", "margin")[0])
        assert undefined.tolist() == agreeing(done, cell.task).tolist()


def test_the_same_run_again_computes_nothing(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    before = units(finished.folder)
    again = table1.run(PROFILE, SETTINGS, store=ArtifactStore(finished.folder))
    assert units(finished.folder) == before and len(before) > 100
    assert_same(finished.run, again)


def test_all_backbones_are_scored_on_the_same_users(finished: Finished) -> None:
    done = finished.run
    for task in TASKS:
        users = done.test_users[task]  # one query per user in this world
        assert len(query_golds(done, task)) == len(agreeing(done, task)) == len(users)
        assert {tuple(cell.users) for cell in done.cells if cell.task == task} == {tuple(users)}
        planted = done.data[task].truth
        assert planted is not None and set(users) <= set(planted)


def test_a_user_one_backbone_cannot_use_is_left_out_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    study_type, lost = grid.Study, load_task_data(PROFILE, "LaMP_3").test[2].id

    class Picky(study_type):  # type: ignore[misc, valid-type]
        def prepare(self, users: Any) -> Any:
            found = super().prepare(users)
            if self.backbone_id == BACKBONES[0]:
                kept = [user for user in found.users if user.user.id != lost]
                return found._replace(users=kept)
            return found

    monkeypatch.setattr(grid, "Study", Picky)
    profile = small_profile(tasks=("LaMP_3",), n_test=4)
    done = table1.run(profile, SETTINGS, store=ArtifactStore(tmp_path))
    assert lost not in done.test_users["LaMP_3"] and done.test_users["LaMP_3"]
    sizes = {len(cell.answers[Arm("instruct")].texts) for cell in done.cells}
    assert sizes == {len(done.test_users["LaMP_3"])} <= {1, 2, 3}


def test_official_files_run_without_planted_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    users = load_task_data(small_profile(n_dev=30), "LaMP_3").dev
    write_lamp(users, tmp_path / "data" / "LaMP_3", "dev")
    profile = small_profile(name="demo-data", data="lamp", tasks=TASKS, backbones=BACKBONES[:1])
    store = ArtifactStore(tmp_path / "units")
    strict = SETTINGS.with_(pairs_on_too_few="error")
    done = table1.run(profile, strict, data_dir=str(tmp_path / "data"), max_users=6, store=store)
    assert list(done.data) == ["LaMP_3"] and len(done.notes) == 1 and "LaMP-7" in done.notes[0]
    assert done.settings.pairs_on_too_few == "warn"
    [cell] = done.cells
    assert list(answers_of(cell)) == methods_of(cell.backbone, cell.task)
    assert not agreeing(done, "LaMP_3").any() and "right" not in cell.draws[0]
    golds, neutral = query_golds(done, "LaMP_3"), cell.answers[Arm("neutral")].texts
    same = [gold == said for gold, said in zip(golds, neutral, strict=True)]
    assert np.isnan(cell.answers[Arm("instruct")].margin).tolist() == same


def test_two_runs_with_stores_of_their_own_give_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    profile = small_profile(tasks=("LaMP_3",), backbones=BACKBONES[:1], n_train=8, n_test=3)
    one, two = (
        table1.run(profile, SETTINGS, store=ArtifactStore(tmp_path / name), workers=1)
        for name in ("one", "two")
    )
    first, second = units(tmp_path / "one"), units(tmp_path / "two")
    assert len(first) == len(second) > 20  # the second run read nothing of the first
    assert_same(one, two)


# --- tables and verdicts -------------------------------------------------------------------------

EVERY = ("LaMP_2", "LaMP_3", "LaMP_7")


def verdicts_of(run: Run) -> tuple[Verdict, Verdict]:
    """The verdict on the paper's edit and the one on the fitted edit, of a run with one cell."""
    paper, aloe, fitted = table1.verdicts(run, "01_per_user")
    assert "beyond the paper" in fitted.claim and "beyond" not in paper.claim
    assert "beats ALOE" in aloe.claim
    return paper, fitted


@pytest.fixture(scope="module")
def run() -> Run:
    return planted_run({"chameleon": 0.9, "fitted": 0.8}, tasks=EVERY, backbones=BOTH)


# --- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", EVERY)
@pytest.mark.parametrize(
    ("rates", "paper", "own"),
    [
        ({"chameleon": 0.9, "fitted": 0.9}, REPRODUCED, HOLDS),
        ({}, NOT_REPRODUCED, DOES_NOT_HOLD),
        ({"instruct": 0.8, "chameleon": 0.2, "fitted": 0.2}, OPPOSITE, OPPOSITE),
    ],
    ids=["a gain that beats its controls", "no effect", "a loss"],
)
def test_a_verdict_says_what_was_planted(
    task: str, rates: dict[str, float], paper: str, own: str
) -> None:
    found = verdicts_of(planted_run(rates, tasks=(task,)))
    assert [v.status for v in found] == [paper, own]
    assert {(v.n, v.seeds) for v in found} == {(120, 2)}


@pytest.mark.parametrize("edit", ["chameleon", "fitted"])
def test_a_gain_that_one_control_has_as_well_is_a_direction_only(edit: str) -> None:
    for control in controls_of(edit, "claim"):
        found = verdicts_of(planted_run({edit: 0.9, control: 0.9}))[edit == "fitted"]
        assert found.status == DIRECTION_ONLY and control.replace("_", " ") in found.note


def test_a_gain_whose_scores_are_shuffled_with_the_baseline_is_not_reproduced() -> None:
    gain = planted_run({"chameleon": 0.9, "fitted": 0.9})
    paper, _ = verdicts_of(swapped(gain, "chameleon", "instruct"))
    _, fitted = verdicts_of(swapped(gain, "fitted", "instruct"))
    assert (paper.status, fitted.status) == (NOT_REPRODUCED, DOES_NOT_HOLD)


@pytest.mark.parametrize(
    ("rates", "status"),
    [
        ({"chameleon": 0.9}, REPRODUCED),
        ({"chameleon": 0.9, "aloe": 0.9}, NOT_REPRODUCED),
        ({"aloe": 0.9}, OPPOSITE),
        ({"aloe": 0.1}, DIRECTION_ONLY),  # an ALOE that harms is no rival
        *[
            ({"chameleon": 0.9, control: 0.9}, DIRECTION_ONLY)
            for control in ("llm_rec", "instruct", *controls_of("chameleon", "claim"))
        ],
    ],
)
def test_aloe_is_beaten_with_all_controls_or_the_claim_is_not_reproduced(
    rates: dict[str, float], status: str
) -> None:
    assert table1.verdicts(planted_run(rates), "01_per_user")[1].status == status


def test_a_claim_about_a_rival_that_was_not_run_is_not_made() -> None:
    run = planted_run()
    [cell] = run.cells
    without = keeping(cell, lambda arm: arm.method != "aloe")
    found = table1.verdicts(replace(run, cells=[without]), "x")
    assert len(found) == 2 and not [v for v in found if "ALOE" in v.claim]


def test_few_users_are_counted_and_not_judged() -> None:
    found = verdicts_of(planted_run({"chameleon": 0.9, "fitted": 0.9}, n_users=60))
    assert [v.status for v in found] == [TOO_FEW_USERS] * 2 and found[0].n == 60


def test_every_task_and_family_is_judged_on_every_claim_beside_the_papers_claim(run: Run) -> None:
    found = table1.verdicts(run, "01_per_user")
    assert len(found) == len(EVERY) * len(BOTH) * len(table1.questions())
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
    assert {v.csv for v in found} == {f"tables/table1_{task}_effects.csv" for task in EVERY}


# --- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", EVERY)
def test_every_table_may_be_saved_as_a_result(run: Run, task: str) -> None:
    agree = agreeing_queries(run, task)
    for name, frame in (
        ("results", table1.results(run.frame, task)),
        ("effects", table1.effects(run.frame, task, agree)),
        ("by_model", table1.by_model(run.frame, task)),
        ("floors", table1.floors(run, task)),
    ):
        assert len(check_table(frame, f"{name}_{task}", "demo")) == len(frame) > 0
        sparse = [c for c in frame if c.startswith("paper ") or c.endswith(("groups", " draw"))]
        measured = frame.drop(columns=sparse)
        assert list(measured.columns[-2:]) == ["n", "seeds"]
        assert not measured.isna().any(axis=None)


@pytest.mark.parametrize("name", ["results", "effects", "by_model"])
def test_a_rows_n_is_that_of_its_primary_metric_and_a_part_has_its_own(run: Run, name: str) -> None:
    args = [agreeing_queries(run, "LaMP_2")] if name == "effects" else []
    frame = getattr(table1, name)(run.frame, "LaMP_2", *args)
    same = int(agreeing(run, "LaMP_2").sum())
    margin = "margin change" if name == "effects" else "margin"
    assert 0 < same < 120 and set(frame["n"]) == {120} and set(frame[f"{margin} n"]) == {120 - same}
    if name == "effects":
        assert set(frame["accuracy change where users agree n"]) == {same}
    empty = check_table(getattr(table1, name)(without_margins(run).frame, "LaMP_2"), name, "demo")
    assert empty[margin].isna().all() and set(empty[f"{margin} n"]) == {0}
    assert set(empty["n"]) == {120}


def test_results_show_every_method_with_the_papers_number_beside_it(run: Run) -> None:
    frame = table1.results(run.frame, "LaMP_2")
    assert frame["method"].tolist() == [method.title for method in METHODS] * 2
    assert set(frame["model"]) == {title_of("demo:decoder"), title_of("demo:encdec")}
    first = frame[frame["model"] == title_of("demo:decoder")].set_index("method")
    assert first.loc["Instruct (A.3, no insight)", "paper accuracy"] == 0.198
    assert first.loc["CHAMELEON (paper)", "paper accuracy"] == 0.396
    assert first["paper accuracy"].notna().sum() == 4
    golds = query_golds(run, "LaMP_2")
    answers = answers_of(run.cells[0])["chameleon"]
    expected = np.mean([evaluate("LaMP_2", golds, a.texts)["f1"] for a in answers])
    assert first.loc["CHAMELEON (paper)", "f1"] == pytest.approx(expected)
    labels = frame.set_index("method")["gold labels"]
    assert set(labels[labels == "train"].index) == {
        "positive control: fitted on gold pairs",
        "ALOE (trained on gold answers)",
    }


def test_effects_are_differences_to_instruct_with_a_test_and_the_damage(run: Run) -> None:
    frame = table1.effects(run.frame, "LaMP_2", agreeing_queries(run, "LaMP_2"))
    frame = frame.set_index(["model", "method"])
    row = frame.loc[(title_of("demo:decoder"), "CHAMELEON (paper)")]
    right, base = (scores_of(run.cells[0], m, "accuracy") for m in ("chameleon", "instruct"))
    assert row["accuracy change"] == pytest.approx(right.mean() - base.mean())
    assert row["accuracy change_low"] > 0.3
    assert row["McNemar b"] == int(((right[0] == 1) & (base[0] == 0)).sum())
    assert row["McNemar c"] == int(((right[0] == 0) & (base[0] == 1)).sum())
    assert row["McNemar p"] < 1e-6
    assert "accuracy change where users agree" in frame.columns
    titles = {method.title for method in METHODS if "Plain" not in method.title}
    assert set(frame.index.get_level_values(1)) == titles - {"Instruct (A.3, no insight)"}
    assert "McNemar p" not in table1.effects(run.frame, "LaMP_3").columns


def test_every_training_seed_has_rows_of_its_own(run: Run) -> None:
    frame = table1.by_model(run.frame, "LaMP_3")
    assert set(frame["backbone"]) == set(BOTH)
    shown = set(frame["method"])
    assert "CHAMELEON (paper)" in shown and "control: shuffled pairs" in shown
    assert "control: P only" not in shown and "control: mean difference" not in shown
    mine = frame.set_index(["backbone", "method"]).loc[(BOTH[0], "CHAMELEON (paper)")]
    assert mine["mae"] == pytest.approx(scores_of(run.cells[2], "chameleon", "abs_error").mean())


def test_the_spread_over_groups_and_the_range_of_random_directions_stand_beside_a_model() -> None:
    run = planted_run(tasks=("LaMP_2",))
    [cell] = run.cells
    for method, levels in (("chameleon", (0.25, 0.75)), ("random", (0.6, 0.1))):
        cell = leveled(cell, method, "accuracy", levels)
    frame = table1.by_model(replace(run, cells=[cell]).frame, "LaMP_2").set_index("method")
    spread = frame["accuracy sd over groups"]
    assert spread["CHAMELEON (paper)"] == pytest.approx(np.sqrt(0.125))
    assert np.isnan(spread["Instruct (A.3, no insight)"])  # one group has no spread
    assert np.isnan(spread["control: random directions"])  # its draws are no groups
    ends = frame[["accuracy lowest draw", "accuracy highest draw"]]
    assert ends.loc["control: random directions"].tolist() == pytest.approx([0.1, 0.6])
    assert ends.drop(index="control: random directions").isna().all(axis=None)


def test_floors_need_no_model(run: Run) -> None:
    frame = table1.floors(run, "LaMP_3")
    names = [name.replace("_", " ") for name in baselines_for("LaMP_3")]
    assert frame["baseline"].tolist() == [name for name in names for _ in range(2)]
    assert frame["users"].tolist() == ["test users", "all users"] * len(names)
    golds = [float(gold) for gold in query_golds(run, "LaMP_3")]
    always5 = frame[(frame["baseline"] == "constant 5") & (frame["users"] == "test users")].iloc[0]
    assert always5["mae"] == pytest.approx(np.mean([5 - gold for gold in golds]))
    assert always5["valid rate"] == 1.0 and always5["n"] == 120
    assert set(frame["n"]) == {120, 132}


def test_directions_have_a_row_per_backbone_draw_and_layer(run: Run) -> None:
    frame = table1.directions(run, "LaMP_3")
    assert len(frame) == 2 * 2 * 3
    edited = frame[frame["edited"]].groupby(["backbone", "draw"])["layer"].apply(list).to_dict()
    assert edited == {(b, d): layers for b in BOTH for d, layers in ((0, [0, 1]), (1, [1]))}
    row = frame[(frame["draw"] == 1) & (frame["layer"] == 2)].iloc[0]
    assert row["ccs_loss"] == pytest.approx(0.3)
    assert (row["pairs kept"], row["pairs identical"], row["n"]) == (14, 6, 10)


def test_edit_sizes_are_means_over_layers_queries_and_groups(run: Run) -> None:
    frame = table1.edit_sizes(run)
    assert len(frame) == len(EVERY) * len(run.models) * 5
    assert frame["edit"].tolist()[2] == "control: θP from neutral outputs"
    assert frame["edit"].tolist()[4] == "control: random directions"
    paper, fitted = (row for _, row in frame.head(2).iterrows())
    assert (paper["edit"], fitted["edit"]) == ("CHAMELEON (paper)", "CHAMELEON fitted (ours)")
    assert (paper["edited layers"], fitted["edited layers"]) == (1.5, 3.0)
    assert paper["edit ratio"] == pytest.approx(1.5 * 0.55)
    assert paper["edit ratio_low"] < paper["edit ratio"] < paper["edit ratio_high"]
    assert paper["boost ratio"] == pytest.approx(0.9 * 1.5 * 0.55)
    assert fitted["removal ratio"] == pytest.approx(0.1 * 1.5 * 0.2)
    assert (paper["n"], paper["seeds"]) == (2, 2 * len(BOTH) / len(run.models))
    assert list(frame.columns)[-2:] == ["n", "seeds"]


def test_pairs_are_counted_before_and_after_the_filter(run: Run) -> None:
    frame = table1.pair_counts(run)
    assert list(zip(frame["task"], frame["backbone"], strict=True)) == [
        (task.replace("_", "-"), name) for task in EVERY for name in BOTH
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


def test_trainings_are_listed_with_their_gold_answers_and_whether_they_learned() -> None:
    run = planted_run()
    assert not [log for cell in run.cells for log in cell.draws if "aloe" in log]
    one = {"uses_gold": True, "queries": 10, "params": "full", "trainable_params": 7, "steps": 4,
           "mix": "standin", "mix_rows": 2, "rows": 12, "ties": 0, "departures": ("lr=0.1",),
           "loss": (4.0, 3.0, 2.0, 1.0),
           "seen": {"users": list("abcd"), "after": [0.0] * 4, "before": [1.0] * 4}}  # fmt: skip
    two = {**one, "uses_gold": False, "loss": (2.0, 2.0, 2.0, 3.0), "ties": 3}
    for log in run.cells[0].draws:
        log |= {"aloe": one, "dpo": two}
    frame = table1.trainings(run).set_index("method")
    aloe, dpo = (frame.loc[title] for title in frame.index)
    assert (aloe["gold answers seen"], dpo["gold answers seen"]) == (10, 0)
    assert (aloe["loss, first quarter"], aloe["loss, last quarter"]) == (4.0, 1.0)
    assert (dpo["loss, first quarter"], dpo["loss, last quarter"]) == (2.0, 3.0)
    assert (aloe["n"], aloe["seeds"], dpo["ties"]) == (4, 2, 3.0)
    assert (aloe["metric"], aloe["change on seen users"]) == ("mae", -1.0)
    assert frame["learned"].tolist() == ["yes", "no"]  # DPO gained, but its loss rose
    check_table(frame.reset_index(), "trainings", "demo", kind="diagnostic")
