from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from chameleon_lib.core.directions import fit_directions
from chameleon_lib.core.preferences import PreferencePair, PreparedUser, keep_different
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.answering import Exam
from chameleon_lib.sections.data import load_task_data, without_gold
from chameleon_lib.sections.fits import stored_directions
from chameleon_lib.sections.group_size.own import (
    at_the_same_layers,
    lent_edits,
    own_edits,
    per_prompt,
    single_users,
)
from chameleon_lib.sections.study import Study
from tests.sections.small import SETTINGS, reference_of, small_profile, use_small_models

PROFILE = small_profile(n_train=6, n_test=2)


@dataclass(frozen=True)
class Group:
    """Users of one study; all but the last have a pair, the first has two."""

    study: Study
    users: list[PreparedUser]
    pairs: list[PreferencePair]


@pytest.fixture(scope="module", params=["decoder", "encdec"])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:  # noqa: E501
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        store = ArtifactStore(tmp_path_factory.mktemp("units"))
        study = Study(PROFILE, f"demo:{request.param}:0", "LaMP_3", SETTINGS, store)
        users, _ = study.prepare(without_gold(load_task_data(PROFILE, "LaMP_3").train))
        answers = [("5", "4")] * (len(users) - 1) + [("3", "3")]
        pairs = [
            replace(pair, answer_p=p, answer_n=n)
            for pair, (p, n) in zip(study.pairs(users), answers, strict=True)
        ]
        pairs.insert(1, replace(pairs[0], query=pairs[1].query, answer_p="1"))
        yield Group(study, users, pairs)


def test_a_user_has_the_same_directions_alone_as_in_the_batch(group: Group) -> None:
    found = single_users(group.study, group.pairs, 0)
    assert list(found) == [user.user.id for user in group.users[:-1]]
    for user_id, single in found.items():
        kept, _ = keep_different([p for p in group.pairs if p.user_id == user_id], SETTINGS)
        h_p, h_n = group.study.activations(kept)
        alone = fit_directions(h_p, h_n, SETTINGS, 0, diagnostics=False)
        torch.testing.assert_close(single.directions.theta_p, alone.theta_p)
        torch.testing.assert_close(single.directions.theta_n, alone.theta_n, atol=1e-4, rtol=1e-3)
        assert single.edit.layers == alone.choose_layers(SETTINGS)
        assert single.pairs == len(kept) == (2 if user_id == group.users[0].user.id else 1)


def test_one_pair_makes_the_personal_direction_its_own_embedding(group: Group) -> None:
    [pair] = [pair for pair in group.pairs if pair.user_id == group.users[1].user.id]
    h_p, _ = group.study.activations([pair])
    single = single_users(group.study, [pair], 0)[pair.user_id]
    expected = torch.nn.functional.normalize(h_p[:, 0].double(), dim=-1)
    torch.testing.assert_close(single.directions.theta_p.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_neutral_direction_of_one_pair_depends_on_the_start(group: Group) -> None:
    one, other = (single_users(group.study, group.pairs, seed) for seed in (0, 1))
    for user_id, single in one.items():
        again = other[user_id].directions
        assert torch.equal(single.directions.theta_p, again.theta_p)
        assert not torch.allclose(single.directions.theta_n, again.theta_n, atol=1e-3)


def test_nobody_with_a_pair_means_nobody_with_an_edit(group: Group) -> None:
    assert single_users(group.study, [group.pairs[-1]], 0) == {}


def test_every_prompt_gets_its_users_edit_and_who_has_none_is_answered_unedited(
    group: Group,
) -> None:
    singles = single_users(group.study, group.pairs, 0)
    edits = own_edits(group.users, singles)
    assert [edit is None for edit in edits] == [False] * (len(edits) - 1) + [True]
    # Strong enough that the small random models say something else.
    strong = [None if e is None else replace(e, alpha_p=40.0, alpha_n=5.0) for e in edits]
    exam = Exam(group.study, group.users, reference_of(group.users))
    arms = {f"{at}": ("instruct", edit) for at, edit in enumerate(strong) if edit is not None}
    together = per_prompt(group.users, strong)
    asked = exam.answer({**arms, "none": ("instruct", None), "own": ("instruct", together)})
    own, plain = asked["own"], asked["none"]
    for at in range(len(group.users)):
        alone = asked.get(str(at), plain)
        assert own.texts[at] == alone.texts[at]
        if at:  # the margin of the first query is undefined
            assert own.margin[at] == pytest.approx(alone.margin[at], abs=1e-4)
    assert any(abs(own.margin[1:-1] - plain.margin[1:-1]) > 1e-3)


def test_lent_edits_are_shared_out_evenly_and_depend_on_the_draw(group: Group) -> None:
    donors = list(single_users(group.study, group.pairs, 0).values())
    many = group.users * 5
    lent = lent_edits(many, donors, 0)
    counts = [sum(edit is donor.edit for edit in lent) for donor in donors]
    assert len(lent) == sum(counts) == len(many) and max(counts) - min(counts) <= 1
    order = [[d.edit for d in donors].index(edit) for edit in lent]  # type: ignore[arg-type]
    again = lent_edits(many, donors, 0)
    assert all(one is other for one, other in zip(lent, again, strict=True))
    orders = {
        tuple(id(edit) for edit in lent_edits(group.users, donors, index)) for index in range(6)
    }
    assert len(orders) > 1 and order[: len(donors)] != order[len(donors) : 1]


def test_random_directions_take_each_users_layers_and_leave_the_unedited_alone(
    group: Group,
) -> None:
    singles = single_users(group.study, group.pairs, 0)
    edits = own_edits(group.users, singles)
    h = group.study.activations(keep_different(group.pairs, SETTINGS)[0])
    noise = stored_directions(group.study, "random", *h, 7)
    other = at_the_same_layers(edits, noise, SETTINGS)
    assert other[-1] is None
    for edit, random in zip(edits[:-1], other[:-1], strict=True):
        assert edit is not None and random is not None and random.layers == edit.layers
        torch.testing.assert_close(random.theta_p, noise.theta_p[list(edit.layers)])
