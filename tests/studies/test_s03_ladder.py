"""Single users, agreement of directions, and the nesting of groups, on tiny random models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chameleon_lib.core import directions as core_directions
from chameleon_lib.core.directions import Directions, Reading, direction, find_directions
from chameleon_lib.core.directions import Found as Directed
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreferencePair, PreparedUser, keep_different
from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.arms import Exam, draw_group
from chameleon_lib.studies.data import load_task_data, without_gold
from chameleon_lib.studies.s03_ladder import (
    Found,
    Ladder,
    agreement_logs,
    at_the_same_layers,
    chance,
    cosine,
    lent_edits,
    per_prompt,
    random_order,
    single_users,
)
from chameleon_lib.studies.study import Study
from tests.studies.small import SETTINGS, reference_of, small_profile, study_in, use_small_models

PROFILE = small_profile(n_train=6, n_test=2)
E1, E2 = torch.eye(3)[:2]


# --- agreement -----------------------------------------------------------------------------------


def directions(p: torch.Tensor, n: torch.Tensor) -> Directions:
    yes = torch.ones(len(p), dtype=torch.bool)
    return Directions(p, n, torch.zeros(len(p)), 1.0, 1.0, yes, yes)


def test_the_cosine_is_blind_to_signs_and_averages_layers_asked_for_and_users() -> None:
    reference = torch.stack([E1, E1, E2])
    ours = torch.stack([-E1, E2, (E1 + E2) / math.sqrt(2)])
    assert cosine(ours, reference, (0,)) == pytest.approx(1)
    assert cosine(ours, reference, (1,)) == pytest.approx(0)
    assert cosine(ours, reference, (0, 1, 2)) == pytest.approx((1 + math.sqrt(0.5)) / 3)
    users = torch.stack([torch.stack([E1, E1]), torch.stack([-E1, E2])])  # (2 users, 2 layers, 3)
    assert cosine(users, torch.stack([E1, E1]), (0, 1)) == pytest.approx(0.75)


@pytest.mark.parametrize("d", [2, 16, 128])
def test_chance_is_what_random_directions_give(d: int) -> None:
    random = torch.randn(40_000, d, generator=torch.Generator().manual_seed(0))
    drawn = torch.cosine_similarity(random[::2], random[1::2]).abs().mean()
    assert chance(d) == pytest.approx(float(drawn), rel=0.02)


def test_every_draw_is_compared_with_its_own_large_group_and_with_those_of_the_others() -> None:
    fitted = Edit((0, 1), torch.stack([E1, E2]), torch.stack([E2, E1]))
    along, across = torch.stack([E1, E1]), torch.stack([E2, E2])
    small = Found.of(directions(along, along), (0,), None, {"a", "b"})
    first = Found.of(directions(along, across), (0,), fitted, {"a", "b", "c"})
    second = Found.of(directions(across, across), (1,), fitted, {"b", "d", "e"})
    logs = agreement_logs([[small, first], [small, second]])
    agreed, large = logs[0][0]["agreement"], logs[1][1]["agreement"]
    assert {method for method, *_ in agreed} == {"chameleon"}
    assert {method for method, *_ in large} == {"chameleon", "fitted"}
    for theta, own in (("theta_p", 1.0), ("theta_n", 0.0)):
        assert agreed["chameleon", theta, "own draw"] == own
        assert agreed["chameleon", theta, "other draws"] == 0.0
    assert logs[0][0]["shared"] == 0.5 and logs[1][0]["shared"] == 1.0
    assert large["chameleon", "theta_n", "own draw"] == 1.0
    assert large["chameleon", "theta_n", "other draws"] == 1.0
    for against in ("own draw", "other draws"):
        assert large["fitted", "theta_p", against] == pytest.approx(1)
    assert logs[0][0]["d"] == 3
    [[alone]] = agreement_logs([[small]])  # with one draw nothing is said about others
    assert {against for *_, against in alone["agreement"]} == {"own draw"}
    assert "shared" not in alone


# --- single users --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Users of one study; all but the last have a pair, the first has two."""

    study: Study
    users: list[PreparedUser]
    pairs: list[PreferencePair]


@pytest.fixture(scope="module", params=["decoder", "encdec"])
def group(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
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
        alone = find_directions("paper", h_p, h_n, SETTINGS, 0)
        torch.testing.assert_close(single.theta_p, alone.theta_p)
        torch.testing.assert_close(single.theta_n, alone.theta_n, atol=1e-4, rtol=1e-3)
        assert single.choose_layers(SETTINGS) == alone.choose_layers(SETTINGS)
    assert single_users(group.study, [group.pairs[-1]], 0) == {}


def test_one_pair_makes_theta_p_its_own_embedding_and_leaves_theta_n_to_the_start(
    group: Group,
) -> None:
    [pair] = [pair for pair in group.pairs if pair.user_id == group.users[1].user.id]
    h_p, _ = group.study.activations([pair])
    single = single_users(group.study, [pair], 0)[pair.user_id]
    expected = torch.nn.functional.normalize(h_p[:, 0].double(), dim=-1)
    torch.testing.assert_close(single.theta_p.double(), expected, atol=1e-5, rtol=1e-5)
    one, other = (single_users(group.study, group.pairs, seed) for seed in (0, 1))
    for user_id, first in one.items():
        again = other[user_id]
        assert torch.equal(first.theta_p, again.theta_p)
        assert not torch.allclose(first.theta_n, again.theta_n, atol=1e-3)


def own_edits(group: Group) -> list[Edit | None]:
    """Every user's own edit; None for who has none."""
    found = single_users(group.study, group.pairs, 0)
    edits = {who: directions.to_edit(SETTINGS) for who, directions in found.items()}
    return [edits.get(user.user.id) for user in group.users]


def test_every_prompt_gets_its_users_edit_and_who_has_none_is_answered_unedited(
    group: Group,
) -> None:
    edits = own_edits(group)
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
    donors = [edit for edit in own_edits(group) if edit is not None]
    many = group.users * 5
    lent = lent_edits(many, donors, 0)
    counts = [sum(edit is donor for edit in lent) for donor in donors]
    assert len(lent) == sum(counts) == len(many) and max(counts) - min(counts) <= 1
    again = lent_edits(many, donors, 0)
    assert all(one is other for one, other in zip(lent, again, strict=True))
    orders = {tuple(map(id, lent_edits(group.users, donors, index))) for index in range(6)}
    assert len(orders) > 1


def test_random_directions_take_each_users_layers_and_leave_the_unedited_alone(
    group: Group,
) -> None:
    edits = own_edits(group)
    h = group.study.activations(keep_different(group.pairs, SETTINGS)[0])
    noise = group.study.directions("random", *h, 7)
    other = at_the_same_layers(edits, noise, SETTINGS)
    assert other[-1] is None
    for edit, random in zip(edits[:-1], other[:-1], strict=True):
        assert edit is not None and random is not None and random.layers == edit.layers
        torch.testing.assert_close(random.theta_p, noise.theta_p[list(edit.layers)])


# --- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(4))
def test_groups_are_nested_and_the_largest_is_that_of_table_1(index: int) -> None:
    users: Any = [f"user {number}" for number in range(150)]
    order = random_order(users, 100, index)
    largest = draw_group(users, 100, index)
    assert sorted(largest) == sorted(users[at] for at in order) and len(set(order)) == 100
    assert random_order(users, 1000, index)[:5] != sorted(order)[:5]
    assert len(random_order(users, 1000, index)) == 150


def test_a_group_without_a_contrast_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    study = study_in(tmp_path)
    users, _ = study.prepare(without_gold(load_task_data(small_profile(), "LaMP_3").train))
    same = [replace(pair, answer_p="4", answer_n="4") for pair in study.pairs(users)]

    def climb(pairs: Sequence[PreferencePair]) -> None:
        Ladder(study, users, pairs, [], (2, 8), 1, False).rungs(0, first=True)

    with pytest.raises(UserError, match="no pair of two different answers in a group"):
        climb(same)
    first = {users[at].user.id for at in random_order(users, 8, 0)[:2]}
    with pytest.raises(UserError, match="2 users have no pair"):
        climb([p if p.user_id in first else replace(p, answer_p="5") for p in same])


def test_a_registered_control_stands_at_the_ends_where_claims_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(core_directions, "_REGISTRY", dict(core_directions._REGISTRY))

    @direction("first_pair", title="control: one pair", kind="control", beats=("paper",))
    def _(seen: Reading) -> Directed:
        return Directed(torch.nn.functional.normalize(seen.p[:, 0] - seen.n[:, 0], dim=-1), None)

    study = study_in(tmp_path)
    users, _ = study.prepare(without_gold(load_task_data(small_profile(), "LaMP_3").train))
    pairs = [replace(p, answer_p="5", answer_n="4") for p in study.pairs(users)]
    ladder = Ladder(study, users, pairs, [], (2, 4, 8), 1, fit_between=False)
    edits = {rung.condition: set(rung.edits) for rung in ladder.rungs(0, first=True)}
    ends = {"from_neutral", "shuffled_pairs", "fitted", "fitted_shuffled", "first_pair"}
    every = {"chameleon", "random"}
    assert edits == {"2 users": every | ends, "4 users": every, "8 users": every | ends}
