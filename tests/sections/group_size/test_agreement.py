from __future__ import annotations

import math

import pytest
import torch

from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.sections.group_size.agreement import (
    FITTED,
    PAPER,
    Found,
    agreement_logs,
    chance,
    cosine,
)

E1, E2 = torch.eye(3)[:2]


def directions(p: torch.Tensor, n: torch.Tensor) -> Directions:
    yes = torch.ones(len(p), dtype=torch.bool)
    return Directions(p, n, torch.zeros(len(p)), 1.0, 1.0, yes, yes)


def test_the_cosine_is_blind_to_signs_and_sees_only_the_layers_asked_for() -> None:
    reference = torch.stack([E1, E1, E2])
    ours = torch.stack([-E1, E2, (E1 + E2) / math.sqrt(2)])
    assert cosine(ours, reference, (0,)) == pytest.approx(1)
    assert cosine(ours, reference, (1,)) == pytest.approx(0)
    assert cosine(ours, reference, (0, 1, 2)) == pytest.approx((1 + math.sqrt(0.5)) / 3)


def test_users_with_directions_of_their_own_are_averaged() -> None:
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
    agreed = logs[0][0]["agreement"]
    assert set(agreed) == {PAPER} and set(logs[0][1]["agreement"]) == {PAPER, FITTED}
    assert agreed[PAPER]["theta_p"] == {"own draw": 1.0, "other draws": 0.0}
    assert agreed[PAPER]["theta_n"] == {"own draw": 0.0, "other draws": 0.0}
    assert logs[0][0]["shared"] == 0.5 and logs[1][0]["shared"] == 1.0
    assert logs[1][1]["agreement"][PAPER]["theta_n"] == {"own draw": 1.0, "other draws": 1.0}
    assert logs[1][1]["agreement"][FITTED]["theta_p"] == pytest.approx(
        {"own draw": 1.0, "other draws": 1.0}
    )
    assert logs[0][0]["d"] == 3


def test_with_one_draw_nothing_is_said_about_others() -> None:
    one = Found.of(directions(torch.stack([E1]), torch.stack([E2])), (0,), None, {"a"})
    [[log]] = agreement_logs([[one]])
    assert log["agreement"] == {PAPER: {"theta_p": {"own draw": 1.0},
                                        "theta_n": {"own draw": 1.0}}}  # fmt: skip
    assert "shared" not in log
