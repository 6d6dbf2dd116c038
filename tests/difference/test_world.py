from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from chameleon_lib.difference import VectorMaker
from chameleon_lib.difference import world as w
from chameleon_lib.difference.world import BagEmbedder, WorldSettings, WorldWording, build_world
from chameleon_lib.errors import UserError

WORLD = build_world(WorldSettings(users=40, items=30, reviews=14, inputs=4))


def test_the_words_are_apart_and_as_many_as_the_reference_says() -> None:
    lists = (w.STYLE, w.CONTENT, w.GRADES, w.RATINGS, list(w.BIASES.values()))
    words = [word for words in lists for word in words]
    assert len(w.STYLE) == 48 and len(set(words)) == len(words)
    assert len(set(w.NAMES)) == len(w.NAMES) == 120


def test_the_world_is_that_of_the_reference() -> None:
    counts = Counter(review.item for review in WORLD.corpus.reviews)
    assert len(counts) == 30 and min(counts.values()) >= 5
    assert len({review.time for review in WORLD.corpus.reviews}) == 40 * 14
    for review in WORLD.corpus.reviews:
        taste, item = WORLD.tastes[review.user], WORLD.corpus.items[review.item]
        words = review.text.split()
        kinds = ["s" if x in w.STYLE else "t" if x in w.RATINGS else "c" for x in words]
        assert "".join(dict.fromkeys(kinds)) == taste.order and len(words) == 6
        assert {x for x in words if x in w.STYLE} <= set(taste.style)
        assert {x for x in words if x in w.CONTENT} <= set(item.description.split()[:5])
        rating = min(5, max(1, WORLD.grades[item.id] + taste.bias))
        assert w.RATINGS[rating - 1] in words and review.rating == rating
        assert w.kept(review.text, review, WORLD) == {
            "style hit": 1, "wrong style": 0, "rating": 1,
        }  # fmt: skip


def test_a_world_repeats_and_its_seed_changes_it() -> None:
    small = WorldSettings(users=30, items=15, reviews=12, inputs=3)
    one, again = build_world(small), build_world(small)
    assert one.corpus.reviews == again.corpus.reviews and one.tastes == again.tastes
    other = build_world(WorldSettings(users=30, items=15, reviews=12, inputs=3, seed=1))
    assert one.corpus.reviews != other.corpus.reviews


def test_prompts_name_neither_style_nor_rating() -> None:
    say, review = WorldWording(), WORLD.corpus.reviews[0]
    item = WORLD.corpus.items[review.item]
    words = f"{say.item(item)}{say.header}{say.block(review, item)}{say.request(review)}".split()
    assert not set(words) & {*w.STYLE, *w.RATINGS, *w.BIASES.values()}


def test_style_remains_in_the_difference_and_content_largely_cancels() -> None:
    embedder = BagEmbedder(512)  # wide, so that words are nearly orthogonal
    found = {}
    for kind in ("history", "difference"):
        own = other = content = 0.0
        for sample in WORLD.corpus.splits(4).test:
            vectors = VectorMaker(WORLD.corpus, embedder).of(sample)
            taste = WORLD.tastes[sample.owner]
            for review, row in zip(vectors.sources, getattr(vectors, kind), strict=True):
                row = row / np.linalg.norm(row)
                said = set(review.text.split())
                item = set(WORLD.corpus.items[review.item].description.split()[:5]) & said
                own += float((embedder.encode(list(said & set(taste.style))) @ row).mean())
                content += float((embedder.encode(list(item)) @ row).mean())
                other += float((embedder.encode(w.STYLE) @ row).mean())
        found[kind] = (own / content, own / abs(other))
    assert found["difference"][0] > 1.5 * found["history"][0]  # more style for its content
    assert found["difference"][1] > 5


@pytest.mark.parametrize(
    ("knobs", "words"),
    [({"reviews": 11}, "12 or more"), ({"users": 3}, "five times"), ({"inputs": 2}, "not 3 to")],
)
def test_knobs_out_of_range_are_one_sentence(knobs: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        WorldSettings(**knobs)
