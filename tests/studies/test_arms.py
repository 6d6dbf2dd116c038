from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chameleon_lib.core import directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreferencePair
from chameleon_lib.errors import UserError
from chameleon_lib.studies.arms import Draw, Group, arms_of, build_draw, draw_group, plain_arms
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.frame import Arm
from chameleon_lib.studies.methods import METHODS
from chameleon_lib.studies.study import Study
from tests.studies.small import SETTINGS, small_profile, study_in, use_small_models

PROFILE = small_profile()
N_RANDOM = 2


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        yield study_in(tmp_path_factory.mktemp("units"))


@pytest.fixture(scope="module")
def group(study: Study) -> Group:
    """All train users with their pairs."""
    users, _ = study.prepare(load_task_data(PROFILE, "LaMP_3").train)
    return Group(0, users, study.pairs(users))


def built(study: Study, group: Group, **changes: Any) -> Draw:
    return build_draw(study, replace(group, **changes), N_RANDOM)


@pytest.fixture(scope="module")
def draw(study: Study, group: Group) -> Draw:
    return built(study, group)


def edits_of(draw: Draw) -> dict[str, Edit]:
    """The edits by method; random directions with their number."""
    return {
        f"random/{arm.repeat}" if arm.method == "random" else arm.method: edit
        for arm, edit in draw.edits.items()
    }


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
    assert {arm.method for arm in arms} == set(ids)
    assert [arm for arm in arms if arm.method == "random"] == [Arm("random", 0, n) for n in (0, 1)]
    unedited = {m.id for m in METHODS if m.kind == "baseline"} | {"neutral"}
    assert {arm.method for arm, (_, edit) in arms.items() if edit is None} == unedited
    asked = {arm.method: kind for arm, (kind, edit) in arms.items() if edit is not None}
    assert {name for name, kind in asked.items() if kind != "instruct"} == {
        "chameleon+insight",
        "fitted+insight",
    }


def test_controls_sit_at_the_layers_of_the_papers_edit(draw: Draw) -> None:
    layers = edits_of(draw)["chameleon"].layers
    assert draw.log["layers"] == list(layers)
    everywhere = {"chameleon_top5", "fitted", "fitted_gold", "fitted_shuffled"}
    for name, edit in edits_of(draw).items():
        assert edit.layers == ((0, 1, 2) if name in everywhere else layers)
        assert bool(torch.isfinite(edit.theta_p).all() and torch.isfinite(edit.theta_n).all())


def test_each_control_changes_what_its_name_says(draw: Draw) -> None:
    main, edits = edits_of(draw)["chameleon"], edits_of(draw)
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
    study: Study, group: Group
) -> None:
    kept = [
        replace(pair, answer_p=f"p{at}", answer_n=f"n{at}") for at, pair in enumerate(group.pairs)
    ]
    asked: list[tuple[str, list[PreferencePair]]] = []

    class Listening(Study):
        def activations(self, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
            asked.append((self.settings.pairs_text, list(pairs)))
            return super().activations(pairs)

        def with_(self, **changes: Any) -> Study:
            return Listening(
                PROFILE, "demo:decoder:0", "LaMP_3", SETTINGS.with_(**changes), self.store
            )

    listening = Listening(PROFILE, "demo:decoder:0", "LaMP_3", SETTINGS, study.store)
    case = listening.case(kept, 0)
    case.edit("permute_answers")
    case.edit("answer_only")
    moved, alone = (pairs for text, pairs in asked if pairs != kept or text == "answer_only")
    assert [text for text, _ in asked].count("answer_only") == 1 and alone == kept
    answers = [(pair.answer_p, pair.answer_n) for pair in kept]
    found = [(pair.answer_p, pair.answer_n) for pair in moved]
    assert sorted(found) == sorted(answers) and found != answers
    for pair, own in zip(moved, kept, strict=True):
        assert replace(pair, answer_p=own.answer_p, answer_n=own.answer_n) == own


def test_only_the_label_controls_of_the_settings_are_run(
    study: Study, group: Group, draw: Draw
) -> None:
    assert {"permute_answers", "answer_only", "shuffled_pairs"} <= set(edits_of(draw))
    found = built(study.with_(controls_label_token=("answer_only",)), group)
    assert set(edits_of(draw)) - set(edits_of(found)) == {"permute_answers"}


def test_a_label_control_finds_other_directions_than_the_paper(draw: Draw) -> None:
    main = edits_of(draw)["chameleon"]
    for name in ("permute_answers", "answer_only"):
        assert not torch.allclose(edits_of(draw)[name].theta_n, main.theta_n, atol=1e-4)
    assert not torch.allclose(edits_of(draw)["answer_only"].theta_p, main.theta_p, atol=1e-4)


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


def test_the_same_draw_again_computes_nothing(draw: Draw, study: Study, group: Group) -> None:
    before = study.store.stats.misses
    again = built(study, group)
    assert study.store.stats.misses == before
    assert again.log == draw.log and list(edits_of(again)) == list(edits_of(draw))
    for name, edit in edits_of(draw).items():
        assert torch.equal(edit.theta_p, edits_of(again)[name].theta_p)
        assert torch.equal(edit.theta_n, edits_of(again)[name].theta_n)
        assert edit.layers == edits_of(again)[name].layers
        assert edit.alpha_p == edits_of(again)[name].alpha_p
        assert edit.alpha_n == edits_of(again)[name].alpha_n


def test_another_draw_has_other_random_directions_and_fits(
    draw: Draw, study: Study, group: Group
) -> None:
    others = edits_of(built(study, group, index=1))
    mine = edits_of(draw)
    for name in ("fitted", "random/0", "random/1"):
        edit = others[name]
        assert all(
            not torch.allclose(edit.theta_p, mine[other].theta_p[: len(edit.layers)])
            for other in ("fitted", "random/0", "random/1")
            if edit.layers == mine[other].layers
        )


def test_a_group_without_contrast_is_refused(study: Study, group: Group) -> None:
    same = [replace(pair, answer_p="4", answer_n="4") for pair in group.pairs]
    with pytest.raises(UserError, match="0 pairs"):
        built(study, group, pairs=same)


def test_a_group_too_small_is_refused_where_the_settings_say_so(study: Study, group: Group) -> None:
    strict = study.with_(pairs_on_too_few="error", pairs_k_min=1000)
    with pytest.raises(UserError, match="fewer than pairs_k_min"):
        built(strict, group)


def test_a_direction_that_is_registered_is_an_arm_and_a_row(
    study: Study, group: Group, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "_REGISTRY", dict(directions._REGISTRY))

    @directions.direction("negated", title="ours: the boost turned around", kind="ours")
    def negated(seen: directions.Reading) -> directions.Found:
        theta = seen.boost()
        return directions.Found(None if theta is None else -theta, None)

    edits = edits_of(built(study, group))
    assert set(edits) - set(edits_of(draw)) == {"negated"}
    assert torch.equal(edits["negated"].theta_p, -edits["chameleon"].theta_p)
    assert "ours: the boost turned around" in {method.title for method in METHODS}
