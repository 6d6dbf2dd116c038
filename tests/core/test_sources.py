"""Where pairs come from, how good they are, and which are worth learning from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.pairs import PreferencePair, PreparedUser, in_prompts, plain_prompt
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.sources import (
    FAULTS,
    faults,
    filtered,
    held_out_users,
    history_pairs,
    own_history_gains,
    own_items,
    pair_quality,
    with_golds,
)
from chameleon_lib.core.task import HistoryItem, Query, User, official_input
from chameleon_lib.errors import UserError
from tests.core.method import SETTINGS as QUICK
from tests.core.method import train_users
from tests.demo.small import HashEmbedder, small_backbone

SETTINGS = EditSettings(pairs_items=3)
REFUSAL = "I'm sorry, but I can't assist with that."


def user_of(texts: list[str], label: str | None, task: str, shown: int = 3) -> PreparedUser:
    items = tuple(HistoryItem(str(at), text, label) for at, text in enumerate(texts))
    query = Query("q", "the query", "the query", "4")
    name = f"user of {texts[0]}"
    return PreparedUser(User(name, task, items, (query,)), items[:shown], "", "")


def pair(p: str, n: str, query: str = "the query", user: str = "u") -> PreferencePair:
    items = (HistoryItem("0", f"a text of {user}", None),)
    return PreferencePair(user, f"q{p}{n}", query, items, p, n, "LaMP_7")


@pytest.mark.parametrize(
    ("p", "n", "found"),
    [
        ("late again, as ever", "The bus is late.", ()),
        ("", "The bus is late.", ("empty",)),
        ("late again", " ", ("empty",)),
        ("Late again", "late  again", ("identical",)),
        (REFUSAL, "The bus is late.", ("refusal",)),
        ("late again", REFUSAL, ("refusal",)),
        ("Paraphrased tweet: late again", "The bus is late.", ("preamble",)),
        ("late again", "Paraphrased tweet: late", ()),  # what is to be left may announce itself
        ("The Query!", "late again", ("echo",)),
        ("late again", "the query", ()),
        (REFUSAL, REFUSAL, ("identical", "refusal")),
    ],
)
def test_faults_of_a_pair(p: str, n: str, found: tuple[str, ...]) -> None:
    assert faults(pair(p, n), SETTINGS) == found


def test_quality_counts_faults_and_prints_them() -> None:
    pairs = [
        pair("late again", "The bus is late."), pair(REFUSAL, "x", user="v"), pair("a", "a"),
        pair("the query", "b", user="v"),
    ]  # fmt: skip
    found = pair_quality(pairs, SETTINGS, [0.5, -0.25, 0.25, 0.5])
    assert (found.n, found.users, found.faulty) == (4, 2, 0.75)
    rates = {"empty": 0, "identical": 0.25, "refusal": 0.25, "preamble": 0, "echo": 0.25}
    assert found.rates == rates and tuple(found.rates) == FAULTS
    assert found.own is not None and found.own[0] == 0.25 and found.own[3] == 0.75
    assert found.own[2] - 0.25 == pytest.approx(1.96 * 0.35355 / 2, rel=1e-3)
    assert "4 pairs of 2 users, 75% unfit" in found.sentence() and "in 75% of" in found.sentence()
    assert "own history" not in pair_quality(pairs, SETTINGS).sentence()
    with pytest.raises(UserError, match="no pairs to measure"):
        pair_quality([], SETTINGS)


def test_the_filter_drops_whole_pairs_that_have_a_fault_or_are_nobodys_own() -> None:
    good, bad, foreign = pair("late again", "x"), pair(REFUSAL, "x"), pair("nobody's", "x")
    pairs = [good, bad, foreign]
    assert filtered(pairs, SETTINGS, [0.1, 0.9, -0.1]) == [good]
    assert filtered(pairs, SETTINGS, None) == [good, foreign]


def test_own_history_gains_compare_with_the_next_users_history() -> None:
    backbone = small_backbone()
    pairs = [pair("late again", "x", user=name) for name in ("u", "u", "v", "w")]
    gains = own_history_gains(backbone, pairs, SETTINGS)
    assert gains is not None

    def score(prompt: str) -> float:
        return float(backbone.score(backbone.prepare([prompt]), ["late again"], reduce="mean"))

    others = [pairs[2].items, pairs[2].items, pairs[3].items, pairs[0].items]
    for gain, own, items in zip(gains, pairs, others, strict=True):
        foreign = plain_prompt(replace(own, items=items), SETTINGS)
        expected = score(plain_prompt(own, SETTINGS)) - score(foreign)
        assert gain == pytest.approx(expected, abs=1e-5) and abs(gain) > 1e-6
    assert own_history_gains(backbone, pairs[:2], SETTINGS) is None


def test_own_items_prefer_those_that_no_prompt_shows() -> None:
    user = user_of([f"text {at}" for at in range(6)], None, "LaMP_7", shown=4)
    first = own_items(user, SETTINGS)
    assert {item.id for item in first[:2]} == {"4", "5"} and len(first) == 3
    later = own_items(user, SETTINGS, skip=3)
    assert len(later) == 3 and not set(first) & set(later)
    assert own_items(user, SETTINGS, skip=6) == []
    twice = replace(user, user=replace(user.user, history=user.user.history * 2))
    assert own_items(twice, SETTINGS) == first
    blank = user_of(["   ", "text"], None, "LaMP_7")
    assert [item.text for item in own_items(blank, SETTINGS)] == ["text"]


def test_a_text_of_the_users_own_is_asked_for_by_its_neutral_version() -> None:
    user = user_of([f"my text {at}" for at in range(3)], None, "LaMP_7")
    asked: list[str] = []

    def neutral(prompts: list[str]) -> list[str]:
        asked.extend(prompts)
        return [f" It is said: {at} " for at in range(len(prompts))]

    pairs = history_pairs([user], neutral, SETTINGS)
    assert len(pairs) == 3
    for at, (one, prompt) in enumerate(zip(pairs, asked, strict=True)):
        assert prompt == official_input("LaMP_7", one.answer_p)
        assert one.query == one.answer_n == f"It is said: {at}"
        # Left out of its own prompt, and only there.
        assert one.answer_p not in plain_prompt(one, SETTINGS) and len(one.items) == 2


def test_a_label_is_asked_for_by_its_text() -> None:
    user = user_of(["a review", "another"], "4", "LaMP_3")
    pairs = history_pairs([user], lambda prompts: ["5", "4"][: len(prompts)], SETTINGS)
    assert [(p.query, p.answer_p) for p in pairs] == [
        (item.text, "4") for item in own_items(user, SETTINGS)
    ]
    assert [p.answer_n for p in pairs] == ["5", "4"]  # an agreed one is for the leash
    assert all(p.query not in {item.text for item in p.items} for p in pairs)


def test_history_pairs_without_a_use_are_dropped() -> None:
    user = user_of(["one text", "two texts", "three texts"], None, "LaMP_7")
    items = [item.text for item in own_items(user, SETTINGS)]
    answers = [REFUSAL, items[1].upper(), ""]  # declines, repeats it, says nothing
    assert history_pairs([user], lambda _: answers, SETTINGS) == []
    lone = user_of(["the only text"], None, "LaMP_7")
    assert history_pairs([lone], lambda _: [], SETTINGS) == []


def test_golds_take_the_place_of_the_personalised_answer() -> None:
    user = user_of(["a review", "another"], "4", "LaMP_3")
    own = replace(pair("1", "3"), query_id="q")
    assert with_golds([own], [user]) == [replace(own, answer_p="4")]


def test_a_fifth_of_the_users_is_held_out_and_one_user_more_moves_few() -> None:
    users = train_users("LaMP_3", 12)
    inside, outside = held_out_users(users, SETTINGS)
    assert len(outside) == 2 and {u.id for u in inside} == {u.id for u in users} - {
        u.id for u in outside
    }
    assert [u for u in users if u in inside] == inside
    assert held_out_users(users[:4], SETTINGS) == (users[:4], [])
    draws = {
        frozenset(u.id for u in held_out_users(users, SETTINGS.with_(seed=seed))[1])
        for seed in range(6)
    }
    assert len(draws) > 1


@pytest.fixture(scope="module")
def backbone() -> HFBackbone:
    return small_backbone()


def test_every_source_gives_pairs_of_its_kind(backbone: HFBackbone) -> None:
    users = [
        replace(u, queries=tuple(replace(q, gold="5") for q in u.queries)) for u in train_users()
    ]

    def pairs(source: str) -> list[PreferencePair]:
        method = Chameleon(backbone, HashEmbedder(), QUICK.with_(pairs_source=source))
        return method.source_pairs(users)

    own, gold, history = pairs("self"), pairs("gold"), pairs("history")
    assert [replace(p, answer_p="5") for p in own] == gold
    chosen = pairs("filtered")
    method = Chameleon(backbone, HashEmbedder(), QUICK)
    gains = own_history_gains(backbone, own, QUICK)
    assert chosen == filtered(own, QUICK, gains) and len(chosen) < len(own)
    labels = {u.id: {(i.text, i.label) for i in u.history} for u in users}
    assert history and all((p.query, p.answer_p) in labels[p.user_id] for p in history)
    sources = {
        theta: Chameleon(backbone, HashEmbedder(), EditSettings(theta_method=theta)).source
        for theta in ("paper", "fitted")
    }
    assert sources == {"paper": "self", "fitted": "history"}
    assert method.pair_quality(own).own is not None
    assert method.pair_quality(own, own=False).own is None


def test_cut_items_are_known_for_what_they_are_and_learned_whole() -> None:
    settings = SETTINGS.with_(prompts_item_words=2)
    whole = user_of([f"text {at} of many words" for at in range(4)], None, "LaMP_7", shown=3)
    user = replace(whole, items=tuple(in_prompts(item, settings) for item in whole.items))
    assert [item.text for item in user.items] == ["text 0 …", "text 1 …", "text 2 …"]
    first, *others = own_items(user, settings)
    assert first == whole.user.history[3]  # the one that no prompt shows
    pairs = history_pairs([user], lambda asked: ["something else"] * len(asked), settings)
    assert {pair.answer_p for pair in pairs} == {item.text for item in (first, *others)}
    for pair in pairs:
        assert not any(pair.answer_p.startswith(item.text[:-2]) for item in pair.items)
