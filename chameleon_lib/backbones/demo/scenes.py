"""Sentences of the embedded world, and the split that owns each of them.

Train, dev and test share the vocabulary but not a single sentence: a sentence belongs to the split
that the hash of its text names, and drawing rejects what another split owns.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from chameleon_lib.backbones.demo import lexicon as lx

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class Scene:
    """One sentence with the facts that decide its answers."""

    text: str
    tags: tuple[str, ...] = ()
    level: int = 0
    words: tuple[str, ...] = ()


def sentence_split(text: str) -> Split:
    """The split that owns a sentence: 60 % train, 10 % dev, 30 % test, by CRC-32 of the text."""
    bucket = zlib.crc32(text.encode()) % 10
    return "train" if bucket < 6 else "dev" if bucket == 6 else "test"


def draw_movie(rng: random.Random, tags: tuple[str, ...]) -> Scene:
    """A movie whose cues name ``tags`` in this order (two or three tags)."""
    cues = [rng.choice(lx.CUES[tag]) for tag in tags]
    link = rng.choice(lx.MOVIE_LINKS)
    tail = f"and a {cues[2]}" if len(cues) == 3 else f"in {rng.choice(lx.PLACES)}"
    return Scene(f"A {cues[0]} {link} a {cues[1]} {tail}", tags=tags)


def draw_review(rng: random.Random, level: int) -> Scene:
    """A review whose words say ``level`` (1..5)."""
    start, product = rng.choice(lx.REVIEW_STARTS), rng.choice(lx.PRODUCTS)
    word, end = rng.choice(lx.SENTIMENT[level]), rng.choice(lx.REVIEW_ENDS)
    return Scene(f"{start} {product} was {word} {end}", level=level)


def draw_tweet(rng: random.Random) -> Scene:
    """A tweet in standard wording."""
    words = (
        rng.choice(lx.TWEET_SUBJECTS),
        rng.choice(lx.TWEET_VERBS),
        "the",
        rng.choice(lx.TWEET_ADJECTIVES),
        rng.choice(lx.TWEET_NOUNS),
        rng.choice(lx.TWEET_TIMES),
    )
    return Scene(" ".join(words), words=words)


def owned(split: Split, draw: Callable[[], Scene]) -> Scene:
    """Draw until the sentence belongs to ``split``: rejection keeps the splits disjoint."""
    while True:
        scene = draw()
        if sentence_split(scene.text) == split:
            return scene
