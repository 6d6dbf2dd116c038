from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.studies import quickstart
from chameleon_lib.studies.quickstart import Tour, take_tour
from tests.studies.small import SETTINGS, small_kit, small_profile

PROFILE = small_profile(tasks=("LaMP_3",))


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_kit(tmp_path_factory.mktemp("cache"), quickstart) as folder:
        yield folder


@pytest.fixture(scope="module")
def tour(patched: Path) -> Tour:
    found = take_tour(PROFILE, "demo:decoder:0", "LaMP_3", 1)
    assert any(patched.rglob("*.unit"))
    return found


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("index", [-1, 8, 100])
def test_a_user_who_is_not_there_is_refused_in_one_sentence(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_study(*_: Any) -> Any:
        raise AssertionError("nothing may be loaded for a user who is not there")

    monkeypatch.setattr(quickstart, "Study", no_study)
    with pytest.raises(UserError) as caught:
        take_tour(PROFILE, "demo:decoder:0", "LaMP_3", index)
    assert str(caught.value) == f"user is {index}; give a number from 0 to 7."


def test_the_user_of_the_tour_is_a_test_user_whose_gold_is_not_read(tour: Tour) -> None:
    original = tour.data.test[1]
    assert tour.user.user.id == original.id and tour.user.user.history == original.history
    assert all(query.gold is None for query in tour.user.user.queries)
    assert {pair.user_id for pair in tour.case.pairs} <= {user.id for user in tour.data.train}
    case = tour.case
    assert len(case.kept) + len(case.identical) == len(case.pairs) == SETTINGS.group_size
    assert tour.edit.layers == tour.case.layers and tour.fitted.layers == (0, 1, 2)


def test_the_frames_show_what_the_steps_did(tour: Tour) -> None:
    items = quickstart.history(tour)
    assert items["selected"].sum() == len(tour.user.items) == SETTINGS.selection_k
    chosen = items[items["selected"]]["text"].tolist()
    assert chosen == [item.text for item in tour.user.items]
    said = quickstart.insights(tour)["insight"].tolist()
    assert said == [tour.user.insight_p, tour.user.insight_n]
    pairs = quickstart.pair_examples(tour, 4)
    different = [pair.answer_p != pair.answer_n for pair in tour.case.pairs[:4]]
    assert len(pairs) == 4 and pairs["kept"].any()
    assert all(d or not k for d, k in zip(different, pairs["kept"], strict=True))
    losses = quickstart.layer_losses(tour)
    assert losses["layer"].tolist() == [0, 1, 2] and {"loss", "shuffled_loss"} <= set(losses)
    assert losses[losses["edited"]]["layer"].tolist() == list(tour.case.layers)
    assert quickstart.example_pair_text(tour).endswith(tour.case.kept[0].answer_p)


def test_six_arms_answer_the_users_query(tour: Tour) -> None:
    frame = quickstart.before_and_after(tour)
    assert len(frame) == 6 and frame["prompt and edit"].iloc[0] == "Instruct"
    assert set(frame["query"]) == {tour.user.user.queries[0].text}
    truth = tour.data.truth
    assert truth is not None
    planted = truth[tour.user.user.id]
    assert set(frame["user's answer"]) == {planted.personal[0]}
    assert set(frame["generic answer"]) == {planted.generic[0]}
    assert frame["margin (nats)"].isna().all() == (planted.personal[0] == planted.generic[0])
