from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chameleon_lib.difference import Corpus, Item, Review, Sample, VectorMaker, as_released
from chameleon_lib.difference.vectors import difference, peer_weights
from chameleon_lib.errors import UserError
from tests.difference.small import BagEmbedder, D, corpus, last_sample, maker

RNG = np.random.default_rng(0)


class Given:
    """An embedder of given vectors."""

    def __init__(self, rows: dict[str, np.ndarray]) -> None:
        self.rows = rows

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.rows[text] for text in texts])


def given(found: Corpus) -> dict[str, np.ndarray]:
    return {review.text: RNG.standard_normal(D) for review in found.reviews}


def test_weights_sum_to_one_and_differ_by_e_at_most() -> None:
    for n in (2, 5, 30):
        weights = peer_weights(RNG.standard_normal(D), 9 * RNG.standard_normal((n, D)))
        assert weights.sum() == pytest.approx(1)
        assert 1 < weights.max() / weights.min() <= np.e


def test_distant_peers_weigh_more_and_the_weights_are_the_formulas() -> None:
    weights = peer_weights(np.zeros(2), np.array([[3.0, 0], [0, 1.0]]))
    assert weights == pytest.approx(np.exp([0.75, 0.25]) / np.exp([0.75, 0.25]).sum())


def test_one_peer_has_all_the_weight_and_zero_distances_are_uniform() -> None:
    own = np.ones(D)
    assert peer_weights(own, 2 * own[None]) == pytest.approx([1])
    assert peer_weights(own, np.tile(own, (4, 1))) == pytest.approx([0.25] * 4)
    assert np.isnan(peer_weights(own, np.tile(own, (4, 1)), guarded=False)).all()


def test_equal_peers_leave_no_difference() -> None:
    own = RNG.standard_normal(D)
    assert difference(own, np.tile(own, (3, 1)), np.array([0.2, 0.3, 0.5])) == pytest.approx(0)
    found = corpus()
    same = Given({review.text: np.full(D, int(review.item[1:])) for review in found.reviews})
    vectors = VectorMaker(found, same).of(last_sample(found))
    assert len(vectors.sources) == 8 and not vectors.difference.any()
    assert not np.isnan(vectors.difference).any()


def test_a_shift_of_an_item_leaves_the_difference_at_fixed_weights() -> None:
    own, peers, shift = RNG.standard_normal(D), RNG.standard_normal((4, D)), np.full(D, 3.0)
    weights = peer_weights(own, peers)
    assert difference(own + shift, peers + shift, weights) == pytest.approx(
        difference(own, peers, weights)
    )


def test_vectors_are_of_the_newest_reviews_with_peers_and_follow_the_formula() -> None:
    found = corpus(alone=2)
    rows = given(found)
    sample = last_sample(found)
    vectors = VectorMaker(found, Given(rows), slots=3).of(sample)
    assert [review.item for review in vectors.sources] == ["i8", "i7", "i6"]
    assert vectors.blocks == vectors.sources  # one list for both

    def mean(user: str) -> np.ndarray:
        return np.mean([rows[r.text] for r in found.before(user, sample.review)], axis=0)

    source = vectors.sources[1]
    peers = [r for r in found.by_item[source.item] if r.user != "u0"]
    weights = peer_weights(mean("u0"), np.stack([mean(peer.user) for peer in peers]))
    wanted = sum(
        w * (rows[source.text] - rows[peer.text]) for w, peer in zip(weights, peers, strict=True)
    )
    assert vectors.difference[1] == pytest.approx(wanted)
    assert vectors.history[1] == pytest.approx(rows[source.text])


def test_no_vector_knows_of_a_later_review() -> None:
    found = corpus()
    for user in ("u0", "u3"):
        for review in found.by_user[user][2:]:
            sample = Sample(review, found.before(user, review))
            other = Corpus(
                found.items.values(),
                [
                    replace(r, text="something else entirely") if r.time >= review.time else r
                    for r in found.reviews
                ],
            )
            one, two = maker(found).of(sample), maker(other).of(sample)
            assert all(source.time < review.time for source in one.sources)
            assert np.array_equal(one.history, two.history)
            assert np.array_equal(one.difference, two.difference)


def test_the_released_mean_and_peers_know_what_is_later() -> None:
    found = corpus()
    review = found.by_user["u0"][4]
    sample = Sample(review, found.before("u0", review))
    released = as_released(misaligned=False, unguarded=False)
    changed = found.by_user["u2"][5]  # later than the sample, and not of its user's last three
    assert changed.time > review.time
    other = Corpus(
        found.items.values(),
        [replace(r, text="of another kind") if r == changed else r for r in found.reviews],
    )
    ours, late = (
        [maker(c, **how).of(sample).difference for c in (found, other)]
        for how in ({}, {"released": released})
    )
    assert np.array_equal(*ours) and not np.array_equal(*late)


def test_as_released_block_and_vector_are_of_different_reviews() -> None:
    found = corpus(items=4, alone=3)  # the newest three have no peers
    sample = last_sample(found)
    ours = maker(found).of(sample)
    theirs = maker(found, released=as_released(later_reviews=False)).of(sample)
    assert [review.item for review in ours.blocks] == ["i3", "i2", "i1", "i0"]
    assert [review.item for review in theirs.blocks] == ["a1", "a0", "i3", "i2"]
    assert [review.item for review in theirs.sources] == ["i3", "i2", "i1", "i0"]
    assert np.array_equal(ours.history, theirs.history)


def test_peers_of_another_item_are_a_control() -> None:
    found = corpus()
    items = sorted(found.items)
    shuffled = maker(found, peers_of=dict(zip(items, items[1:] + items[:1], strict=True)))
    sample = last_sample(found)
    review = sample.profile[3]
    assert {peer.item for peer in shuffled.peers(review, sample)} == {"i4"}
    assert "u0" not in {peer.user for peer in shuffled.peers(review, sample)}
    assert not np.allclose(shuffled.of(sample).difference, maker(found).of(sample).difference)


def test_who_shares_no_item_has_no_vectors() -> None:
    found = corpus(users=1)
    vectors = maker(found).of(last_sample(found))
    assert vectors.blocks == () and vectors.difference.shape == (0, D)


def test_splits_are_by_time_and_profiles_grow() -> None:
    found = corpus()
    parts = found.splits(inputs=4)
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (10, 5, 5)
    for sample in (*parts.train, *parts.valid, *parts.test):
        assert all(one.time < sample.review.time for one in sample.profile)
    assert [len(s.profile) for s in parts.train if s.owner == "u1"] == [5, 6]
    assert [len(s.profile) for s in parts.test] == [8] * 5
    assert {s.review.item for s in parts.test} == {"i8"}


@pytest.mark.parametrize(("inputs", "words"), [(2, "give 3 or more"), (9, "lower inputs")])
def test_inputs_that_leave_nothing_are_refused(inputs: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        corpus().splits(inputs)


def test_a_corpus_refuses_what_does_not_fit_together() -> None:
    item = Item("i", "t", "d")
    one = Review("r", "u", "i", "text", 1.0, "", 0)
    with pytest.raises(UserError, match="unknown"):
        Corpus([], [one])
    for other in (one, replace(one, id="s")):
        with pytest.raises(UserError, match="keep one"):
            Corpus([item], [one, other])


def test_a_text_is_embedded_as_a_bag() -> None:
    found = BagEmbedder(D).encode(["a b b", "b a b", "a", ""])
    assert found[0] == pytest.approx(found[1]) and not np.allclose(found[0], found[2])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1, 0])
