from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from chameleon_lib.backbones.demo.world import WorldSettings, build_world
from chameleon_lib.core.contrasts import contrasts_from_pairs, gold_contrasts, swap_contrasts
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.preferences import PreferencePair, PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import answer_prompt
from chameleon_lib.lamp.records import User

SETTINGS = EditSettings()


@pytest.fixture(scope="module")
def users() -> list[User]:
    settings = WorldSettings(users=(6, 0, 0), queries=2, history=(5, 7))
    return build_world("LaMP_3", settings).users["train"]


def pair_of(user: User, number: int, p: str, n: str) -> PreferencePair:
    query = user.queries[number]
    return PreferencePair(user.id, query.id, query.text, user.history[:3], p, n)


def test_contrasts_use_the_plain_prompt_and_put_agreed_queries_on_the_leash(
    users: list[User],
) -> None:
    user = users[0]
    kept = [pair_of(user, 0, "5", "3")]
    identical = [pair_of(user, 1, "4", "4"), pair_of(user, 1, "", "4"), pair_of(user, 1, "4", " ")]
    contrasts = contrasts_from_pairs("LaMP_3", kept, identical, SETTINGS)
    prompts = [
        answer_prompt("LaMP_3", user.history[:3], query.text, role="P", insight=None)
        for query in user.queries
    ]
    assert contrasts == [
        Contrast(prompts[0], "5", "3", user.id),
        Contrast(prompts[1], "4", None, user.id),
    ]
    short = contrasts_from_pairs(
        "LaMP_3", kept, [], SETTINGS.with_(prompts_baseline="drop_agent_block")
    )
    assert "helpfully personalized" in prompts[0]
    assert "helpfully personalized" not in short[0].prompt


def test_gold_contrasts_prefer_the_gold_to_the_neutral_output(users: list[User]) -> None:
    golds = iter(["5", "3", "2", "2"])
    some = [
        replace(u, queries=tuple(replace(q, gold=next(golds)) for q in u.queries))
        for u in users[:2]
    ]
    prepared = [PreparedUser(user, user.history, "p", "n") for user in some]
    pairs = [pair_of(user, number, "1", "3") for user in some for number in (0, 1)]
    contrasts = gold_contrasts("LaMP_3", prepared, pairs, SETTINGS)
    assert [(c.chosen, c.rejected) for c in contrasts] == [
        ("5", "3"), ("2", "3"), ("2", "3"), ("3", None),
    ]  # fmt: skip
    assert {c.user_id for c in contrasts} == {user.id for user in some}


def test_gold_contrasts_need_every_gold(users: list[User]) -> None:
    user = users[0]
    blind = replace(user, queries=tuple(replace(q, gold=None) for q in user.queries))
    prepared = [PreparedUser(blind, blind.history, "p", "n")]
    with pytest.raises(UserError, match=f"Query {blind.queries[0].id} has no gold"):
        gold_contrasts("LaMP_3", prepared, [pair_of(blind, 0, "1", "3")], SETTINGS)


def test_swapping_turns_about_half_of_the_contrasts_and_no_agreed_one() -> None:
    contrasts = [Contrast(f"p{i}", "yes", "no", f"u{i}") for i in range(400)]
    same = [Contrast(f"a{i}", "yes", None, f"u{i}") for i in range(50)]
    swapped = swap_contrasts([*contrasts, *same], seed=0)
    assert swapped[400:] == same
    assert [c.prompt for c in swapped[:400]] == [c.prompt for c in contrasts]
    counts = Counter((c.chosen, c.rejected) for c in swapped[:400])
    assert set(counts) == {("yes", "no"), ("no", "yes")} and 160 < counts["no", "yes"] < 240
    assert swap_contrasts(contrasts, 0) == swapped[:400] != swap_contrasts(contrasts, 1)
