from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from chameleon_lib.core.preferences import PreferencePair, PreparedUser
from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.arms import (
    Draw,
    arms_of,
    build_draw,
    draw_group,
    label_controls,
    plain_arms,
)
from chameleon_lib.sections.data import load_task_data
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.study import Study
from tests.sections.small import SETTINGS, small_profile, use_small_models

PROFILE = small_profile()
N_RANDOM = 2


@dataclass(frozen=True)
class Group:
    """Train users of one study with their pairs."""

    study: Study
    users: list[PreparedUser]
    pairs: list[PreferencePair]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        store = ArtifactStore(tmp_path_factory.mktemp("units"))
        study = Study(PROFILE, "demo:decoder:0", "LaMP_3", SETTINGS, store)
        users, _ = study.prepare(load_task_data(PROFILE, "LaMP_3").train)
        yield Group(study, users, study.pairs(users))


@pytest.fixture(scope="module")
def draw(group: Group) -> Draw:
    return build_draw(group.study, group.users, group.pairs, 0, N_RANDOM)


def test_a_group_is_a_random_part_of_the_train_users_in_their_order(group: Group) -> None:
    groups = [draw_group(group.users, 8, index) for index in range(6)]
    for chosen in groups:
        assert len(chosen) == 8
        positions = [group.users.index(user) for user in chosen]
        assert positions == sorted(set(positions))
    assert groups[0] == draw_group(group.users, 8, 0)
    assert len({tuple(user.user.id for user in chosen) for chosen in groups}) > 1
    assert draw_group(group.users, 100, 0) == group.users


def test_every_row_of_the_table_has_an_arm_and_every_arm_a_row(draw: Draw) -> None:
    ids = [method.id for method in METHODS if method.kind != "rival"]
    arms = {**plain_arms(), **arms_of(draw)}
    assert {name.split("/")[0] for name in arms} == set(ids)
    assert [name for name in arms if name.startswith("random/")] == ["random/0", "random/1"]
    unedited = {m.id for m in METHODS if m.kind == "baseline"} | {"neutral"}
    assert {name for name, (_, edit) in arms.items() if edit is None} == unedited
    asked = {name: kind for name, (kind, edit) in arms.items() if edit is not None}
    assert {name for name, kind in asked.items() if kind != "instruct"} == {
        "chameleon+insight",
        "fitted+insight",
    }


def test_controls_sit_at_the_layers_of_the_papers_edit(draw: Draw) -> None:
    layers = draw.edits["chameleon"].layers
    assert draw.log["layers"] == list(layers)
    everywhere = {"chameleon_top5", "fitted", "fitted_gold", "fitted_shuffled"}
    for name, edit in draw.edits.items():
        assert edit.layers == ((0, 1, 2) if name in everywhere else layers)
        assert bool(torch.isfinite(edit.theta_p).all() and torch.isfinite(edit.theta_n).all())


def test_each_control_changes_what_its_name_says(draw: Draw) -> None:
    main, edits = draw.edits["chameleon"], draw.edits
    assert (edits["p_only"].alpha_p, edits["p_only"].alpha_n) == (1.0, 0.0)
    assert (edits["n_only"].alpha_p, edits["n_only"].alpha_n) == (0.0, 1.0)
    assert torch.equal(edits["p_only"].theta_p, main.theta_p)
    assert torch.equal(edits["from_neutral"].theta_n, main.theta_n)
    assert not torch.allclose(edits["from_neutral"].theta_p, main.theta_p, atol=1e-4)
    assert torch.equal(edits["logistic"].theta_p, main.theta_p)
    assert edits["mean_difference"].alpha_n == 0.0
    assert not torch.allclose(edits["random/0"].theta_p, edits["random/1"].theta_p)
    assert not torch.allclose(edits["fitted"].theta_p, edits["fitted_shuffled"].theta_p)
    assert not torch.allclose(edits["fitted"].theta_p, edits["fitted_gold"].theta_p)


def test_label_controls_move_answers_between_histories_or_hide_the_histories(
    group: Group,
) -> None:
    kept = [
        PreferencePair(p.user_id, p.query_id, p.query, p.items, f"p{at}", f"n{at}")
        for at, p in enumerate(group.pairs)
    ]
    controls = {name: (pairs, s) for name, pairs, s in label_controls(kept, SETTINGS, 0)}
    assert list(controls) == ["permute_answers", "answer_only"]
    moved, settings = controls["permute_answers"]
    assert settings == SETTINGS and moved != kept
    answers = [(pair.answer_p, pair.answer_n) for pair in kept]
    found = [(pair.answer_p, pair.answer_n) for pair in moved]
    assert sorted(found) == sorted(answers) and found != answers
    for pair, own in zip(moved, kept, strict=True):
        assert replace(pair, answer_p=own.answer_p, answer_n=own.answer_n) == own
    alone, settings = controls["answer_only"]
    assert alone == kept and settings == SETTINGS.with_(pairs_text="answer_only")
    again = label_controls(kept, SETTINGS, 0)[0][1]
    assert again == moved != label_controls(kept, SETTINGS, 1)[0][1]


def test_only_the_label_controls_of_the_settings_are_run(group: Group, draw: Draw) -> None:
    assert {"permute_answers", "answer_only", "shuffled_pairs"} <= set(draw.edits)
    settings = SETTINGS.with_(controls_label_token=("answer_only",))
    assert [name for name, *_ in label_controls(group.pairs, settings, 0)] == ["answer_only"]
    study = Study(PROFILE, "demo:decoder:0", "LaMP_3", settings, group.study.store)
    found = build_draw(study, group.users, group.pairs, 0, N_RANDOM)
    assert set(draw.edits) - set(found.edits) == {"permute_answers"}


def test_a_label_control_finds_other_directions_than_the_paper(draw: Draw) -> None:
    main = draw.edits["chameleon"]
    for name in ("permute_answers", "answer_only"):
        assert not torch.allclose(draw.edits[name].theta_n, main.theta_n, atol=1e-4)
    assert not torch.allclose(draw.edits["answer_only"].theta_p, main.theta_p, atol=1e-4)


def test_a_draw_logs_its_pairs_and_fits(draw: Draw, group: Group) -> None:
    log = draw.log
    assert log["users"] == len(group.users) and log["pairs"] == len(group.pairs)
    assert log["kept"] + log["identical"] == log["pairs"] and log["kept"] > 3
    assert [row["layer"] for row in log["rows"]] == [0, 1, 2]
    assert set(log["fits"]) == {"fitted", "fitted_gold", "fitted_shuffled"}
    for fit in log["fits"].values():
        assert len(fit["loss"]) == SETTINGS.fit_steps
    own, shuffled = log["fits"]["fitted"], log["fits"]["fitted_shuffled"]
    assert own["n_pairs"] == shuffled["n_pairs"] and own["n_agreed"] == shuffled["n_agreed"]


def test_the_same_draw_again_computes_nothing(draw: Draw, group: Group) -> None:
    before = group.study.store.stats.misses
    again = build_draw(group.study, group.users, group.pairs, 0, N_RANDOM)
    assert group.study.store.stats.misses == before
    assert again.log == draw.log and list(again.edits) == list(draw.edits)
    for name, edit in draw.edits.items():
        assert torch.equal(edit.theta_p, again.edits[name].theta_p)
        assert torch.equal(edit.theta_n, again.edits[name].theta_n)
        assert edit.layers == again.edits[name].layers
        assert edit.alpha_p == again.edits[name].alpha_p
        assert edit.alpha_n == again.edits[name].alpha_n


def test_another_draw_has_other_random_directions_and_fits(draw: Draw, group: Group) -> None:
    other = build_draw(group.study, group.users, group.pairs, 1, N_RANDOM)
    for name in ("fitted", "random/0", "random/1"):
        assert all(
            not torch.allclose(other.edits[name].theta_p, draw.edits[mine].theta_p[: len(layers)])
            for mine in ("fitted", "random/0", "random/1")
            if (layers := other.edits[name].layers) == draw.edits[mine].layers
        )


def test_a_group_without_contrast_is_refused(group: Group) -> None:
    same = [
        PreferencePair(p.user_id, p.query_id, p.query, p.items, "4", "4") for p in group.pairs
    ]
    with pytest.raises(UserError, match="0 pairs"):
        build_draw(group.study, group.users, same, 0, N_RANDOM)


def test_a_group_too_small_is_refused_where_the_settings_say_so(
    group: Group, tmp_path: Path
) -> None:
    strict = SETTINGS.with_(pairs_on_too_few="error", pairs_k_min=1000)
    study = Study(PROFILE, "demo:decoder:0", "LaMP_3", strict, ArtifactStore(tmp_path))
    with pytest.raises(UserError, match="fewer than pairs_k_min"):
        build_draw(study, group.users, group.pairs, 0, N_RANDOM)
