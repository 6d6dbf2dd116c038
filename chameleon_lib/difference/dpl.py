"""DPL, "Difference-Aware User Modeling": what sets a user apart, said in words by the model itself.

A row of prompts alone: the model compares some of the user's reviews with peers', sums up the
differences, and writes with that summary in its prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from chameleon_lib.core.backbone import Backbone
from chameleon_lib.difference.reviews import Corpus, Item, Review, Sample
from chameleon_lib.difference.vectors import Floats, VectorMaker
from chameleon_lib.difference.wording import Wording

CLUSTERS, PEERS, CHOSEN = 5, 4, 8
_K1, _B = 1.5, 0.75


def bm25(query: str, texts: Sequence[str]) -> list[float]:
    """Okapi BM25 of texts for a query, over whitespace tokens."""
    documents = [Counter(text.split()) for text in texts]
    mean = sum(map(Counter.total, documents)) / max(1, len(documents)) or 1.0
    found = [0.0] * len(documents)
    for word in query.split():
        held = sum(word in document for document in documents)
        weight = math.log(1 + (len(documents) - held + 0.5) / (held + 0.5))
        for at, document in enumerate(documents):
            count = document[word]
            length = 1 - _B + _B * document.total() / mean
            found[at] += weight * count * (_K1 + 1) / (count + _K1 * length)
    return found


def retrieved(
    review: Review, past: Sequence[Review], corpus: Corpus, k: int = CHOSEN
) -> list[Review]:
    """The past reviews whose title and item are most like the query's, best first."""

    def told(one: Review) -> str:
        return f"{one.title} {corpus.items[one.item].description}"

    found = bm25(told(review), [told(one) for one in past])
    order = sorted(range(len(past)), key=lambda at: -found[at])
    return [past[at] for at in order[:k]]


def chosen_peers(own: Floats, peers: Floats, seed: int = 42) -> list[int]:
    """The peers to compare with: of every other cluster the member nearest to its centre.

    Args:
        own: Embedding of the user's review, ``(d,)``.
        peers: Those of the peers, ``(r, d)``, at least four.
        seed: Of k-means.

    Returns:
        Rows of ``peers``, four where there are five clusters.
    """
    points = np.concatenate([own[None], peers])
    clusters = min(CLUSTERS, len(np.unique(points.round(12), axis=0)))
    found = KMeans(clusters, random_state=seed, n_init=10).fit(points)
    rows = []
    for cluster in range(clusters):
        members = np.flatnonzero(found.labels_[1:] == cluster)
        if cluster == found.labels_[0] or not len(members):
            continue
        far = np.linalg.norm(peers[members] - found.cluster_centers_[cluster], axis=1)
        rows.append(int(members[far.argmin()]))
    return rows


@dataclass(frozen=True)
class Comparison:
    """One of the user's reviews, with the peers' that it is compared with."""

    own: Review
    peers: tuple[Review, ...]
    item: Item


def comparisons(sample: Sample, maker: VectorMaker, seed: int = 42) -> list[Comparison]:
    """What is compared for a sample: up to eight reviews of items with four peers or more."""
    known = {review.id: maker.peers(review, sample) for review in sample.profile}
    able = [review for review in sample.profile if len(known[review.id]) >= PEERS]
    found = []
    for own in retrieved(sample.review, able, maker.corpus):
        peers = known[own.id]
        rows = chosen_peers(maker.embedded([own])[0], maker.embedded(peers), seed)
        found.append(
            Comparison(own, tuple(peers[row] for row in rows), maker.corpus.items[own.item])
        )
    return found


def summaries(
    backbone: Backbone,
    wording: Wording,
    samples: Sequence[Sample],
    maker: VectorMaker,
    *,
    difference_tokens: int = 256,
    summary_tokens: int = 512,
) -> list[str]:
    """What the model says of the user of every sample; greedy.

    Args:
        backbone: The language model, which describes its own differences.
        wording: Of the prompts.
        samples: Whose users are described.
        maker: Gives peers and embeddings.
        difference_tokens: Tokens of one difference at most.
        summary_tokens: Tokens of a summary at most.
    """
    compared = [comparisons(sample, maker) for sample in samples]

    def comparison(c: Comparison) -> str:
        return fitting(
            backbone, lambda n: wording.compare(c.own, c.peers[:n], c.item), len(c.peers),
            difference_tokens,
        )  # fmt: skip

    asked = [comparison(c) for own in compared for c in own]
    said = iter(backbone.generate(asked, max_new_tokens=difference_tokens) if asked else [])
    prompts = [
        summary_prompt(
            backbone, wording, maker.corpus, [next(said) for _ in own],
            retrieved(sample.review, sample.profile, maker.corpus), summary_tokens,
        )
        for sample, own in zip(samples, compared, strict=True)
    ]  # fmt: skip
    return backbone.generate(prompts, max_new_tokens=summary_tokens)


def summary_prompt(
    backbone: Backbone,
    wording: Wording,
    corpus: Corpus,
    told: Sequence[str],
    past: Sequence[Review],
    tokens: int,
) -> str:
    """Asks for a summary of differences and past reviews; the last of both go until it fits."""
    items = [corpus.items[review.item] for review in past]
    return fitting(
        backbone, lambda n: wording.summarise(told[:n], past[:n], items[:n]),
        max(len(told), len(past)), tokens,
    )  # fmt: skip


def fitting(backbone: Backbone, make: Callable[[int], str], most: int, tokens: int) -> str:
    """The prompt of as many parts, up to ``most``, as the model's context has room for."""
    fits = (make(n) for n in range(most, 0, -1) if backbone.fits(make(n), tokens))
    return next(fits, make(0))
