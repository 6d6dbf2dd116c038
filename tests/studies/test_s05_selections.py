"""Section 4.6, the study: its conditions, and what reaches whom, on tiny random models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core import chameleon
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies import run as grid
from chameleon_lib.studies import s05_selections as study
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.run import Arm, Run
from chameleon_lib.studies.s05_history_ablation import by_selection, versus
from chameleon_lib.studies.s05_selections import (
    DEMO,
    FULL,
    ITEMS,
    REDUCED,
    RULES,
    Design,
    Selection,
    prompt_length,
)
from tests.demo.small import HashEmbedder
from tests.studies.finished import assert_same, listen, units
from tests.studies.planted import answers_of, scores_of
from tests.studies.small import BACKBONES, SETTINGS, small_profile, use_small_models


def test_the_full_design_has_the_papers_rule_at_every_number_and_all_controls_at_ten() -> None:
    found = FULL.selections(ITEMS, 10)
    ours = {(c.rule, c.k): c.arms for c in found}
    assert len({c.name for c in found}) == len(found) == len(ours)
    assert {k for rule, k in ours if rule == "pca"} == {5, 10, 15, 20, 25}
    assert {at for at, arms in ours.items() if arms == "fitted"} == {("pca", 10)}
    assert {rule for rule, k in ours if k == 10} == set(RULES)
    assert {rule for rule, k in ours if k != 10} == {"pca"}
    assert FULL.tasks == REDUCED.tasks == ("LaMP_2", "LaMP_3")
    assert Design().selections("10", 10) == [Selection(rule, 10) for rule in RULES]


def test_the_reduced_design_keeps_what_the_papers_claims_compare() -> None:
    found = {(c.rule, c.k): c.arms for c in REDUCED.selections(ITEMS, 10)}
    assert found == {
        ("pca", 5): "edit", ("pca", 10): "fitted", ("pca", 25): "edit", ("random", 10): "edit",
    }  # fmt: skip
    assert {k for _, k in ((c.rule, c.k) for c in REDUCED.selections("10,20", 10))} == {10}


def test_items_are_sorted_numbers_and_hold_the_papers() -> None:
    found = FULL.selections(" 25, 5,10,5", 10)
    assert list(dict.fromkeys(selection.k for selection in found)) == [5, 10, 25]
    with pytest.raises(UserError, match="items is '5;10'; give whole numbers such as '5,10,15"):
        FULL.selections("5;10", 10)
    with pytest.raises(UserError, match="about 10"):
        FULL.selections("5,25", 10)


@pytest.mark.parametrize("rule", RULES)
def test_details_of_eq_2_that_a_control_has_no_use_for_are_not_in_its_way(rule: str) -> None:
    base = EditSettings(selection_center="none", selection_norm="l1", selection_n_components=2)
    settings = Selection(rule, 15).settings(base)
    assert settings.selection_k == 15 and rule.startswith(settings.selection_rule)
    centred = {"pca": "none", "pca raw": "components"}.get(rule, "both")
    assert settings.selection_center == centred


def test_more_than_ten_items_are_marked_for_the_embedded_models_alone() -> None:
    assert prompt_length(10, "demo:decoder:0") == "as trained"
    assert prompt_length(15, "demo:decoder:0") == "longer than trained"
    assert prompt_length(25, "google/flan-t5-base") == "within the context"


# --- the study -----------------------------------------------------------------------------------

PROFILE = small_profile(studied=BACKBONES)
DESIGN = Design(
    tasks=("LaMP_2",),
    n_train=6,
    n_test=5,
    group_size=4,
    fitted_items=(3,),
    control_items=(3,),
    control_arms=(("pca raw", "prompts"), ("random", "edit"), ("recent", "prompts"),
                  ("nearest", "prompts")),
    world=(("history", (6, 7)),),
)  # fmt: skip
OPTIONS: dict[str, Any] = {"items": "2,3", "design": DESIGN, "draws": 2}
ARMS = {
    "pca · 2 items": {"instruct": 1, "insight": 1, "chameleon": 2},
    "pca · 3 items": {"instruct": 1, "insight": 1, "chameleon": 2, "fitted": 2},
    "pca raw · 3 items": {"instruct": 1, "insight": 1},
    "random · 3 items": {"instruct": 1, "insight": 1, "chameleon": 2},
    "recent · 3 items": {"instruct": 1, "insight": 1},
    "nearest · 3 items": {"instruct": 1, "insight": 1},
}


@dataclass(frozen=True)
class Done:
    """A run, what its fits learned from, what was embedded, and where its store is."""

    run: Run
    fitted_on: list[set[str]]
    embedder: HashEmbedder
    folder: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("history")
    seen: list[set[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        embedder = use_small_models(patch)
        listen(
            patch,
            chameleon,
            "fit_by_preference",
            lambda found: seen.append({c.user_id for c in found}),
        )
        run = study.run(PROFILE, SETTINGS, store=ArtifactStore(folder), **OPTIONS)
    return Done(run, seen, embedder, folder)


def test_every_condition_has_its_arms_with_one_answer_per_query_and_group(done: Done) -> None:
    n = len(done.run.test_users["LaMP_2"])  # one query each
    assert 0 < n <= 5 and done.run.conditions == list(ARMS)
    for family in done.run.models:
        for condition, arms in ARMS.items():
            [cell] = done.run.at("LaMP_2", family, condition)
            for method, seeds in arms.items():
                assert scores_of(cell, method, "accuracy").shape == (seeds, n)
            assert list(answers_of(cell)) == list(arms)
            insight = cell.answers[Arm("insight")].scores
            assert set(insight["items"]) == {float(condition.split()[-2])}
            assert insight["named"].shape == (n,)


def test_users_and_groups_are_the_same_in_every_condition(done: Done) -> None:
    edited = [cell for cell in done.run.cells if "chameleon" in answers_of(cell)]
    assert len(edited) == 6
    assert {tuple(cell.users) for cell in done.run.cells} == {tuple(done.run.test_users["LaMP_2"])}
    for cell in edited:
        assert [log["users"] for log in cell.draws] == [4, 4]
        assert [log["kept"] + log["identical"] for log in cell.draws] == [4, 4]


def test_no_test_user_reaches_a_fit(done: Done) -> None:
    train = {user.id for user in done.run.data["LaMP_2"].train}
    assert len(train) == 6 and done.fitted_on
    assert all(users <= train for users in done.fitted_on)


def test_items_are_embedded_once_for_all_conditions(done: Done) -> None:
    data = done.run.data["LaMP_2"]
    users = [*data.train, *data.test]
    assert all(6 <= len(user.history) <= 7 for user in users)
    items = sum(len(user.history) for user in users)
    queries = sum(len(user.queries) for user in data.test)  # for "nearest", prompts alone
    assert len(done.embedder.texts) == items + queries


def test_the_same_run_again_computes_nothing(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    before = units(done.folder)
    again = study.run(PROFILE, SETTINGS, store=ArtifactStore(done.folder), **OPTIONS)
    assert units(done.folder) == before
    assert_same(done.run, again)


def test_choices_name_every_rule_at_every_number(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    store = ArtifactStore(done.folder)
    found = study.choices(done.run, "LaMP_2", "2,3", store=store)
    assert set(found) == {(rule, k) for rule in RULES for k in (2, 3)}
    n = len(done.run.test_users["LaMP_2"])
    for (_, k), picked in found.items():
        assert [len(indices) for indices in picked] == [k] * n
    assert len({str(found[rule, 3]) for rule in RULES}) == len(RULES)


def test_a_user_that_one_condition_loses_is_left_out_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    study_type = grid.Study
    sized = replace(PROFILE, n_train=6, n_test=5)
    data = load_task_data(sized, "LaMP_2", world={"history": (6, 7)})
    lost = {data.test[1].id, data.train[0].id}

    class Picky(study_type):  # type: ignore[misc, valid-type]
        def prepare(self, users: Any) -> Any:
            found = super().prepare(users)
            if (self.backbone_id, self.settings.selection_k) == (BACKBONES[1], 2):
                kept = [user for user in found.users if user.user.id not in lost]
                return found._replace(users=kept)
            return found

    monkeypatch.setattr(grid, "Study", Picky)
    design = replace(DESIGN, group_size=6, control_arms=(("random", "prompts"),))
    run = study.run(
        PROFILE, SETTINGS, store=ArtifactStore(tmp_path), items="2,3", design=design, draws=1
    )
    assert run.test_users["LaMP_2"] == [user.id for user in data.test if user.id not in lost]
    for cell in run.cells:
        assert len(cell.answers[Arm("instruct")].texts) == 4
        assert cell.draws[0].get("users", 5) == 5  # of six train users one is lost


def test_a_group_without_a_pair_gets_no_edit_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_small_models(monkeypatch)
    keep, asked = study.keep_different, []

    def none_for_some(pairs: Any, settings: Any) -> Any:
        """The first group of random items, and both of the two items, have no pair."""
        asked.append(settings)
        two, random = settings.selection_k == 2, settings.selection_rule == "random"
        first = sum(s.selection_rule == "random" for s in asked) % 2 == 1
        return ([], list(pairs)) if two or (random and first) else keep(pairs, settings)

    monkeypatch.setattr(study, "keep_different", none_for_some)
    run = study.run(PROFILE, SETTINGS, store=ArtifactStore(tmp_path), **OPTIONS)
    family = run.models[0]
    [two] = run.at("LaMP_2", family, "pca · 2 items")
    assert "chameleon" not in answers_of(two) and [log["kept"] for log in two.draws] == [0, 0]
    [random] = run.at("LaMP_2", family, "random · 3 items")
    assert len(answers_of(random)["chameleon"]) == 1
    assert random.draws[0]["kept"] == 0 and random.draws[1]["kept"] > 0
    [full] = run.at("LaMP_2", family, "pca · 3 items")
    assert list(map(len, answers_of(full).values())) == [1, 1, 2, 2]
    assert "pca · 2 items: A group has not one pair" in caplog.text
    # Only the group that both rules have an edit of is compared.
    found = by_selection(run, "LaMP_2", run.models[0])
    full_at, random_at, two_at = (found[key] for key in (("pca", 3), ("random", 3), ("pca", 2)))
    (_, mine), (_, theirs) = versus(full_at, random_at, "chameleon")
    assert set(mine["draw"]) == set(theirs["draw"]) == {1}
    assert versus(full_at, two_at, "chameleon") == []
    assert len(versus(full_at, two_at, "insight")) == 2


def test_the_embedded_world_runs_the_cut_design_and_official_files_the_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def noted(compute: Any, profile: Any, settings: Any, **options: Any) -> Run:
        asked.append((compute.keywords["selections"], profile, settings, options))
        return Run(profile, settings, {}, [])

    monkeypatch.setattr(study, "run_grid", noted)
    settings = SETTINGS.with_(selection_k=10, group_size=100, pairs_on_too_few="error")
    profile = small_profile(n_train=350, n_test=200)
    for folder in ("", str(tmp_path)):
        study.run(replace(profile, reduced=not folder), settings, data_dir=folder, max_users=7)
    (demo, cut, grouped, options), (full, whole, ungrouped, official) = asked
    study.run(replace(profile, reduced=True), settings, data_dir=str(tmp_path))
    assert [c.name for c in asked[-1][0]] == [c.name for c in REDUCED.selections(ITEMS, 10)]
    assert (asked[-1][1].n_train, asked[-1][1].n_test) == (REDUCED.n_train, REDUCED.n_test)
    assert (cut.n_train, cut.n_test) == (DEMO.n_train, DEMO.n_test)
    assert (whole.n_train, whole.n_test) == (300, 200) and cut.backbones == profile.studied
    assert (grouped.group_size, ungrouped.group_size) == (DEMO.group_size, 100)
    assert {grouped.pairs_on_too_few, ungrouped.pairs_on_too_few} == {"warn"}
    assert len(demo) == 9 and len(full) == 9
    assert options["tasks"] == DEMO.tasks and official["tasks"] == FULL.tasks
    assert options["world"] == {"history": (28, 32)} and official["world"] == {}
    assert official["data_dir"] == str(tmp_path) and options["max_users"] == 7
