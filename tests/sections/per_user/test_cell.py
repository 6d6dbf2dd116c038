from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from chameleon_lib.backbones.demo.tastes import habits_followed
from chameleon_lib.baselines.llm_rec_prompts import VARIANTS
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.metrics import per_sample_scores
from chameleon_lib.lamp.tasks import is_valid_answer
from chameleon_lib.sections.data import TaskData, load_task_data, without_gold
from chameleon_lib.sections.grid import Desk
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.per_user.cell import compute_cell
from chameleon_lib.sections.results import Cell
from chameleon_lib.sections.scoring import reference_answers
from chameleon_lib.sections.study import Study
from tests.sections.small import SETTINGS, methods_of, small_profile, use_small_models

DRAWS = (0, 3)  # seeds of the groups, not their number
PROFILE = small_profile(n_test=4)
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
        study = Study(PROFILE, "demo:decoder:0", "LaMP_7", SMALL, store)
        data = load_task_data(PROFILE, "LaMP_7")
        test, counts = study.prepare(without_gold(data.test))
        yield Made(study, data, test, compute_cell(Desk(study, data, test, counts), DRAWS))


def test_a_cell_has_every_method_in_order_with_its_seeds(made: Made) -> None:
    cell = made.cell
    assert list(cell.answers) == list(cell.scores) == methods_of(cell.backbone, cell.task)
    once = {m.id for m in METHODS if m.kind == "baseline"} | {"neutral", *VARIANTS}
    seeds = {name: 1 if name in once else 2 for name in cell.answers}
    seeds["random"] = 4  # three were asked for, and every draw gets as many
    assert {name: len(found) for name, found in cell.answers.items()} == seeds
    assert (cell.backbone, cell.family, cell.task) == ("demo:decoder:0", "decoder", "LaMP_7")


def test_every_score_is_that_of_the_answer_beside_it(made: Made) -> None:
    users = [user for user in made.data.test if user.id in {u.user.id for u in made.test}]
    golds = [str(query.gold) for user in users for query in user.queries]
    assert made.data.truth is not None
    tastes = [made.data.truth[user.id].taste for user in users for _ in user.queries]
    plain = made.cell.answers["instruct"][0].texts
    for name, answers in made.cell.answers.items():
        scores = made.cell.scores[name]
        assert set(scores) == {"rouge1", "rougeL", "valid", "changed", "margin", "habits"}
        for seed, answer in enumerate(answers):
            expected = dict(per_sample_scores("LaMP_7", golds, answer.texts))
            expected["valid"] = np.array([is_valid_answer("LaMP_7", t) for t in answer.texts])
            moved = [a != b for a, b in zip(answer.texts, plain, strict=True)]
            expected["changed"] = np.array(moved)
            expected["habits"] = np.array(
                [habits_followed(t, taste) for t, taste in zip(answer.texts, tastes, strict=True)]
            )
            expected["margin"] = answer.margin
            for score, values in expected.items():
                np.testing.assert_allclose(scores[score][seed], values.astype(float))


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
