"""Closed-label tasks answered by the likeliest label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lib.core.pairs import prompt_texts
from chameleon_lib.core.task import get_task
from chameleon_lib.studies import label_scores
from chameleon_lib.studies import s01_per_user as table1
from chameleon_lib.studies.frame import Arm
from chameleon_lib.studies.run import Desk, Plan, Run, run_grid
from tests.studies.small import BACKBONES, SETTINGS, small_profile, use_small_models

PROFILE = small_profile(backbones=BACKBONES[:1], trains=False)
LABELS = get_task("LaMP_3").labels


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        folder = tmp_path_factory.mktemp("labels")
        patch.setenv("CHAMELEON_CACHE", str(folder))
        plan = Plan(PROFILE, SETTINGS, "LaMP_3", "", 0, (0,), folder / "units")
        yield plan.open(BACKBONES[0])


@pytest.fixture(scope="module")
def run(desk: Desk) -> Run:
    return run_grid(
        table1._compute, PROFILE, SETTINGS, tasks=["LaMP_3"], workers=1, store=desk.study.store
    )


def test_the_answer_is_the_label_that_scores_highest_alone(desk: Desk) -> None:
    cell = label_scores.likeliest(desk, (0,))
    assert {arm.method for arm in cell.answers} == set(label_scores.SCORED)
    backbone = desk.study.backbone
    texts = prompt_texts("LaMP_3", desk.test, "instruct", desk.study.settings)
    read = backbone.prepare(texts)
    alone = [backbone.score(read, [label] * len(texts)) for label in LABELS]
    best = torch.stack(alone).argmax(dim=0).tolist()
    assert cell.answers[Arm("instruct")].texts == [LABELS[at] for at in best]
    assert len(set(best)) > 1  # otherwise this would show nothing
    assert (cell.answers[Arm("instruct")].scores["valid"] == 1).all()


def test_an_edit_reaches_the_scores(desk: Desk, run: Run) -> None:
    del run  # its fits are in the store
    arm = Arm("instruct")
    none, fitted = (
        label_scores.label_scores(desk, {arm: ("instruct", edit)})[arm]
        for edit in (None, table1_edit(desk))
    )
    queries = sum(len(user.user.queries) for user in desk.test)
    assert none.shape == fitted.shape == (queries, len(LABELS))
    assert not np.allclose(none, fitted)


def table1_edit(desk: Desk) -> label_scores.Edit:
    study = desk.study
    (group,) = label_scores.groups_of(study, desk.train, (0,), golds=desk.data.train)
    return label_scores.build_draw(study, group, 1).edits[Arm("fitted", 0)]


def test_both_ways_stand_beside_each_other(
    run: Run, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(PROFILE, SETTINGS, "LaMP_3", "", 0, (0,), desk.study.store.root)
    assert label_scores.table(run, [plan], "LaMP_3").empty  # embedded: taught to answer in labels
    # The same model under a name of the hub's kind.
    public = replace(PROFILE, backbones=("me/tiny",), studied=("me/tiny",))
    cells = [replace(cell, backbone="me/tiny") for cell in run.cells]
    monkeypatch.setattr(Plan, "open", lambda _plan, _name: desk)
    cell = replace(label_scores.likeliest(desk, (0,)), backbone="me/tiny")
    monkeypatch.setattr(label_scores, "likeliest", lambda *_: cell)
    alone = label_scores.table(replace(run, profile=public, cells=cells), [plan], "LaMP_3")
    # Beside a task of other users, whose names are among the categories of what was written.
    cells += [replace(cell, task="LaMP_2", users=[f"x{at}" for at in cell.users]) for cell in cells]
    own = run.data["LaMP_3"]
    others = tuple(replace(user, id=f"x{user.id}") for user in own.test)
    data = {"LaMP_3": own, "LaMP_2": replace(own, test=others)}
    two = replace(run, profile=public, cells=cells, data=data)
    shown = label_scores.table(two, [plan], "LaMP_3")
    pd.testing.assert_frame_equal(shown, alone)
    ways = shown.groupby("answers", sort=False)
    assert list(ways.groups) == [label_scores.WRITTEN, label_scores.LIKELIEST]
    assert set(shown.iloc[:, 0]) == {"tiny"}
    counts = ways["method"].nunique()
    assert (counts == len(label_scores.SCORED)).all()
    assert (shown[shown["answers"] == label_scores.LIKELIEST]["valid"] == 1).all()
    assert {"mae_low", "rmse_high", "n", "seeds"} <= set(shown.columns)


def test_free_text_has_no_labels(run: Run) -> None:
    public = replace(PROFILE, backbones=("me/tiny",))
    assert label_scores.table(replace(run, profile=public), [], "LaMP_7").empty


def test_a_profile_that_trains_nothing_has_no_trained_rival(run: Run) -> None:
    (cell,) = run.cells
    methods = {arm.method for arm in cell.answers}
    assert not {"aloe", "dpo"} & methods and "llm_rec" in methods
    assert not set(cell.draws[0]) & {"aloe", "dpo"}
    assert table1.results(run.frame, "LaMP_3")["method"].nunique() == len(methods)
