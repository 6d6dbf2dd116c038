from __future__ import annotations

import numpy as np
import pytest

from chameleon_lib.difference import Wording
from chameleon_lib.difference.dpl import (
    bm25,
    chosen_peers,
    comparisons,
    fitting,
    retrieved,
    summaries,
)
from chameleon_lib.difference.measures import bleu, meteor, scores
from tests.difference.small import backbone, corpus, last_sample, maker

RNG = np.random.default_rng(0)


def clustered() -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The user's point, peers in five tight clusters of which one is the user's, and theirs."""
    centres = 10 * np.eye(5)
    of = [0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 0, 4]
    return centres[0], centres[of] + 0.1 * RNG.standard_normal((len(of), 5)), of


def test_four_peers_come_from_four_foreign_clusters_and_repeat() -> None:
    own, peers, of = clustered()
    rows = chosen_peers(own, peers)
    assert sorted(of[row] for row in rows) == [1, 2, 3, 4]
    assert rows == chosen_peers(own, peers)


def test_the_peer_of_a_cluster_is_the_nearest_to_its_centre() -> None:
    own, peers, of = clustered()
    (row,) = (row for row in chosen_peers(own, peers) if of[row] == 1)
    members = [at for at, cluster in enumerate(of) if cluster == 1]
    centre = peers[members].mean(axis=0)
    assert row == min(members, key=lambda at: np.linalg.norm(peers[at] - centre))


def test_peers_that_are_all_alike_are_few() -> None:
    own, peers = np.zeros(3), np.ones((6, 3))
    assert chosen_peers(own, peers) == [0]


def test_bm25_prefers_rare_words_and_repeats_little() -> None:
    found = bm25("red boat", ["a red car", "a red boat", "a car", "red red red red"])
    assert found[1] > found[3] > found[0] > found[2] == 0
    assert bm25("x", []) == []


def test_what_is_like_the_query_comes_first() -> None:
    found = corpus()
    sample = last_sample(found)
    order = retrieved(sample.review, sample.profile, found, 3)
    assert len(order) == 3 and set(order) <= set(sample.profile)


def test_a_comparison_has_four_foreign_peers_and_needs_as_many() -> None:
    found = corpus(users=8)
    sample = last_sample(found)
    made = comparisons(sample, maker(found))
    assert len(made) == 8
    for one in made:
        assert one.own.user == "u0" and len(one.peers) == 4
        assert {peer.user for peer in one.peers} < {f"u{at}" for at in range(1, 8)}
        assert {peer.item for peer in one.peers} == {one.own.item} == {one.item.id}
    few = corpus(users=4)  # three peers each
    assert comparisons(last_sample(few), maker(few)) == []


def test_differences_stand_in_the_prompt_of_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = corpus(users=6), list[list[str]]()

    def generate(prompts: list[str], *, max_new_tokens: int) -> list[str]:
        asked.append(list(prompts))
        return [f"said {len(asked)} {at} {max_new_tokens}" for at, _ in enumerate(prompts)]

    monkeypatch.setattr(backbone(), "generate", generate)
    monkeypatch.setattr(backbone(), "fits", lambda *_: True)
    told = summaries(
        backbone(), Wording(), [last_sample(found)], maker(found),
        difference_tokens=5, summary_tokens=7,
    )  # fmt: skip
    assert told == ["said 2 0 7"] and len(asked[0]) == 8
    assert all(f"said 1 {at} 5" in asked[1][0] for at in range(8))
    own = last_sample(found).profile[0]
    assert any(own.text in prompt for prompt in asked[0]) and own.text in asked[1][0]


def test_parts_go_until_a_prompt_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    one = backbone()
    monkeypatch.setattr(one, "fits", lambda prompt, tokens: len(prompt) + tokens <= 10)
    assert fitting(one, lambda n: "x" * 3 * n, 9, 1) == "x" * 9
    assert fitting(one, lambda n: "x" * (20 + n), 4, 1) == "x" * 20  # the model itself will refuse


def test_texts_are_scored_by_words_and_stems() -> None:
    assert meteor("a big house", "a big house") > 0.97
    assert meteor("houses", "house") > 0 and meteor("house", "home") == 0
    assert bleu("a b c d e", "a b c d e") == pytest.approx(100) and bleu("a b", "") == 0
    assert scores("a b", "b c")["rouge1"] == pytest.approx(0.5)
