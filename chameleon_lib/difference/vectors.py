"""What makes a user's review different from those of others: the two lists of vectors of a sample.

``e_{u,i}`` is the unit embedding of the text of a review. The difference subtracts the peers, who
reviewed the same item, with weights from how far their mean review is from the user's:
``d_{u,i} = sum_r w_r (e_{u,i} - e_{r,i})``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chameleon_lib.core.backbone import Embedder
from chameleon_lib.difference.released import OURS, Released
from chameleon_lib.difference.reviews import Corpus, Review, Sample

Floats = NDArray[np.float64]
SLOTS = 8  # reviews whose vectors a prompt holds


def peer_weights(own: Floats, peers: Floats, *, guarded: bool = True) -> Floats:
    """Weights of the peers: softmax of their distances to the user, as shares of all distances.

    They sum to 1, and the largest is at most e times the smallest: distant peers weigh slightly
    more.

    Args:
        own: Mean embedding of the user, ``(d,)``.
        peers: Those of the peers, ``(r, d)``, at least one.
        guarded: Uniform weights where all distances are zero; else NaN, as the formula says.
    """
    distances = np.linalg.norm(peers - own, axis=1)
    total = distances.sum()
    if total == 0 and guarded:
        return np.full(len(peers), 1 / len(peers))
    with np.errstate(invalid="ignore"):
        raised = np.exp(distances / total)
    return np.asarray(raised / raised.sum())


def difference(own: Floats, peers: Floats, weights: Floats) -> Floats:
    """``sum_r w_r (e_u - e_r)``, ``(d,)``, from ``(d,)``, ``(r, d)`` and ``(r,)``."""
    return np.asarray(weights @ (own - peers))


@dataclass(frozen=True)
class Vectors:
    """What a sample hands to the model, newest review first.

    Attributes:
        blocks: Reviews of the text blocks.
        sources: Reviews of the vectors; those of the blocks but for a released defect.
        history: ``e`` of the sources, ``(n, d)``.
        difference: ``d`` of the sources, ``(n, d)``.
    """

    blocks: tuple[Review, ...]
    sources: tuple[Review, ...]
    history: Floats
    difference: Floats


class VectorMaker:
    """Makes the vectors of samples; every text of a corpus is embedded once.

    Args:
        corpus: Items and reviews.
        embedder: Any frozen text encoder with unit embeddings.
        slots: Reviews of a prompt at most.
        peers_of: Item → the item whose reviewers stand in as peers, in place of its own (a
            control).
        text_of: What of a review is embedded; its text.
        released: Defects of the released code to repeat.
    """

    def __init__(
        self,
        corpus: Corpus,
        embedder: Embedder,
        *,
        slots: int = SLOTS,
        peers_of: Mapping[str, str] | None = None,
        text_of: Callable[[Review], str] = lambda review: review.text,
        released: Released = OURS,
    ) -> None:
        self.corpus, self.slots, self.released = corpus, slots, released
        self._peers_of = peers_of or {}
        self._means: dict[tuple[str, int], Floats] = {}
        found = embedder.encode([text_of(review) for review in corpus.reviews])
        self.embeddings: Floats = np.asarray(found, dtype=np.float64)  # (reviews, d), as in `rank`

    @property
    def d(self) -> int:
        """Width of a vector."""
        return int(self.embeddings.shape[1])

    def of(self, sample: Sample) -> Vectors:
        """The vectors of one sample; none of them knows of a later review, but for a defect."""
        profile = sample.profile[::-1]
        peers = {review.id: self.peers(review, sample) for review in profile}
        sources = tuple(review for review in profile if peers[review.id])[: self.slots]
        blocks = profile[: self.slots] if self.released.misaligned else sources
        history, differences = np.zeros((2, len(sources), self.d))
        for row, review in enumerate(sources):
            others = peers[review.id]
            weights = peer_weights(
                self.mean(sample.owner, sample),
                np.stack([self.mean(other.user, sample) for other in others]),
                guarded=not self.released.unguarded,
            )
            history[row] = self.embedded([review])[0]
            differences[row] = difference(history[row], self.embedded(others), weights)
        return Vectors(blocks, sources, history, differences)

    def embedded(self, reviews: Sequence[Review]) -> Floats:
        """Their embeddings, ``(n, d)``."""
        return self.embeddings[[self.corpus.rank[review.id] for review in reviews]]

    def peers(self, review: Review, sample: Sample) -> list[Review]:
        """Reviews of the same item by others that may be known when the sample is written."""
        item = self._peers_of.get(review.item, review.item)
        known = self._known(self.corpus.by_item.get(item, []), sample)
        return [other for other in known if other.user != review.user]

    def mean(self, user: str, sample: Sample) -> Floats:
        """Mean embedding of what is known of a user when the sample is written, ``(d,)``."""
        known = self._known(self.corpus.by_user[user], sample)
        key = (user, len(known))  # they are the first of the user's
        if key not in self._means:
            self._means[key] = self.embedded(known).mean(axis=0)
        return self._means[key]

    def _known(self, reviews: list[Review], sample: Sample) -> list[Review]:
        """Of reviews, oldest first, those that may be known when the sample is written."""
        if self.released.later_reviews:
            return [one for one in reviews if one in self.corpus.by_user[one.user][:-3]]
        return reviews[: bisect_left(reviews, sample.review.time, key=lambda one: one.time)]
