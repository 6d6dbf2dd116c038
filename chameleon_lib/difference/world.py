"""The world of shared items: invented people who review the same things, with a planted style.

LaMP has no item that several users share, except by its text; here they do. An item has five
content words and a grade; a user has a style (four of 48 style words), a way to rate (one above the
grade, level, one below) and an order of sentences. A review is three content words of its item, two
style words of its user and a word for the rating, in the user's order. In the difference of two
reviews of one item the content largely cancels and style remains: that is the claim under test.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chameleon_lib.difference.reviews import Corpus, Item, Review
from chameleon_lib.difference.wording import Wording
from chameleon_lib.errors import UserError

STYLE = (
    "frankly honestly truly simply quite rather really fairly surely clearly plainly barely "
    "oddly neatly sadly gladly kindly boldly calmly dearly deeply duly eagerly easily "
    "finely firmly freely gently grandly hardly highly keenly largely lightly loosely loudly "
    "madly mildly mostly nearly nicely openly poorly purely quietly rarely richly roughly"
).split()
CONTENT = (
    "anchor apron arrow axle badge basket beacon bell bench bolt bottle bracket branch brick "
    "bridge brush bucket buckle button cabin cable candle canvas carpet chain chalk chest chisel "
    "clamp clock cloth collar column compass copper cork cradle crate crown curtain cushion dial "
    "drawer drum easel engine fabric feather fence filter flask flute frame funnel gear glass "
    "glove grain grater hammer handle harness hinge hook horn jar kettle knob ladder lamp latch "
    "leather ledge lens lever lid linen lock loom magnet marble mirror needle nozzle oven paddle "
    "panel pedal pencil pepper piston pocket pulley quilt rail ribbon ring roller rope rudder "
    "saddle sail sandal shelf shutter sieve spindle spool spring strap string switch tile timber "
    "toggle torch tray tripod trunk valve velvet vessel wedge wheel whistle"
).split()
NAMES = [
    first + second
    for first in "Al Bo Ce Du El Fa Go Hu Ka Li".split()
    for second in "bra dex fin gol kar lum mir nox pel ras tov zin".split()
]
GRADES = ("one", "two", "three", "four", "five")
RATINGS = ("dreadful", "weak", "decent", "good", "superb")
BIASES = {-1: "below", 0: "level", 1: "above"}
PARTS = "cst"  # content, style, rating: what an order is an order of
_CONTENT_SAID, _STYLE_SAID = 3, 2


@dataclass(frozen=True, slots=True)
class Taste:
    """What is planted in a user: style words, rating bias, order of the parts of a review."""

    style: tuple[str, ...]
    bias: int
    order: str

    @property
    def summary(self) -> str:
        """It in the words of the world; the order goes unsaid."""
        return " ".join([*self.style, BIASES[self.bias]])


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """Knobs of the world.

    Attributes:
        users: Number of users. The reference has 40; the kit judges nothing below a hundred.
        items: Number of items.
        reviews: Reviews of every user, 12 or more; every item gets at least 5.
        inputs: Of these, the last that are to be written.
        seed: Seed of the world.

    Raises:
        UserError: A knob out of its range.
    """

    users: int = 120
    items: int = 60
    reviews: int = 18
    inputs: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 12 <= self.reviews <= self.items <= len(NAMES):
            raise UserError(
                f"Users of this world write 12 or more reviews of as many items, of which there "
                f"are {len(NAMES)} at most; {self.reviews} of {self.items} do not fit."
            )
        if self.users * self.reviews < 5 * self.items or not 3 <= self.inputs < self.reviews:
            raise UserError(
                f"{self.users} users cannot review {self.items} items five times each, or "
                f"{self.inputs} inputs are not 3 to {self.reviews - 1}."
            )


@dataclass(frozen=True)
class World:
    """Items and reviews, with the planted taste of every user and the grade of every item."""

    settings: WorldSettings
    corpus: Corpus
    tastes: dict[str, Taste] = field(repr=False)
    grades: dict[str, int] = field(repr=False)

    def rating(self, review: Review) -> str:
        """The word for the rating that a review should have."""
        return RATINGS[rated(self.grades[review.item], self.tastes[review.user]) - 1]


def draw_taste(rng: random.Random) -> Taste:
    """A random taste."""
    return Taste(
        tuple(rng.sample(STYLE, 4)), rng.choice(list(BIASES)), "".join(rng.sample(PARTS, 3))
    )


def draw_item(rng: random.Random, id_: str, name: str) -> tuple[Item, int]:
    """An item with five content words, and its grade, 1 to 5."""
    grade = rng.randint(1, 5)
    words = " ".join(rng.sample(CONTENT, 5))
    return Item(id_, name, f"{words} , graded {GRADES[grade - 1]}"), grade


def rated(grade: int, taste: Taste) -> int:
    """A user's rating of an item, 1 to 5."""
    return min(5, max(1, grade + taste.bias))


def said(rng: random.Random, item: Item, grade: int, taste: Taste) -> str:
    """A review of an item in the style of a user."""
    parts = {
        "c": rng.sample(item.description.split()[:5], _CONTENT_SAID),
        "s": rng.sample(taste.style, _STYLE_SAID),
        "t": [RATINGS[rated(grade, taste) - 1]],
    }
    return " ".join(word for part in taste.order for word in parts[part])


def build_world(settings: WorldSettings | None = None) -> World:
    """The world of some settings; the same on every machine."""
    settings = settings or WorldSettings()
    rng = random.Random(f"shared items/{settings.seed}")
    drawn = [
        draw_item(rng, f"i{at}", name)
        for at, name in enumerate(rng.sample(NAMES, settings.items))
    ]
    grades = {item.id: grade for item, grade in drawn}
    tastes = {f"u{at:03d}": draw_taste(rng) for at in range(settings.users)}
    total = settings.users * settings.reviews
    times = iter(rng.sample(range(10 * total), total))
    counts, reviews = dict.fromkeys(range(len(drawn)), 0), []
    for user, taste in tastes.items():
        # The least reviewed first, ties at random: every item gets its five.
        for at in sorted(counts, key=lambda at: (counts[at], rng.random()))[: settings.reviews]:
            counts[at] += 1
            item, grade = drawn[at]
            text = said(rng, item, grade, taste)
            rating = float(rated(grade, taste))
            reviews.append(
                Review(f"{user}/{item.id}", user, item.id, text, rating, "", next(times))
            )
    return World(settings, Corpus([item for item, _ in drawn], reviews), tastes, grades)


class WorldWording(Wording):
    """Prompts in the language of the world; they name neither style nor rating of anybody."""

    system = explained = ""
    header = " Past :"

    def item(self, item: Item) -> str:
        return f"Item {item.title} : {item.description} ."

    def summary(self, told: str) -> str:
        return f" User : {told} ."

    def block(self, review: Review, item: Item) -> str:
        del review
        return f" {item.title}"

    def request(self, review: Review) -> str:
        del review
        return " Review :"

    def compare(self, own: Review, peers: Sequence[Review], item: Item) -> str:
        others = " / ".join(review.text for review in peers)
        return f"{self.item(item)} Mine : {own.text} . Others : {others} . Difference :"

    def summarise(
        self, differences: Sequence[str], past: Sequence[Review], items: Sequence[Item]
    ) -> str:
        told = f"Differences : {' / '.join(differences)} . " if differences else ""
        rows = (
            f"{item.title} {item.description.split()[-1]} : {review.text}"
            for review, item in zip(past, items, strict=True)
        )
        return f"{told}Past : {' / '.join(rows)} . Summary :"


class BagEmbedder:
    """A fixed random projection of the bag of words, unit length; it needs no download.

    Args:
        d: Width.
        seed: Of the projection; a word's row depends on it and the word alone.
    """

    def __init__(self, d: int = 128, seed: int = 0) -> None:
        self.d, self.seed = d, seed
        self._rows: dict[str, np.ndarray] = {}

    def _row(self, word: str) -> np.ndarray:
        if word not in self._rows:
            rng = np.random.default_rng([self.seed, zlib.crc32(word.encode())])
            self._rows[word] = rng.standard_normal(self.d)
        return self._rows[word]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-length embeddings, ``(n, d)`` float32; a text without words is zero."""
        found = np.zeros((len(texts), self.d))
        for at, text in enumerate(texts):
            for word in text.split():
                found[at] += self._row(word)
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return (found / np.where(norms > 0, norms, 1)).astype(np.float32)


def kept(text: str, review: Review, world: World) -> dict[str, float]:
    """How a written review keeps to what its user has planted, each 0 or 1.

    ``style hit``: it holds a style word of the user; ``wrong style``: one that is not the user's;
    ``rating``: the last of its words for a rating is the right one.
    """
    words = text.split()
    style, own = {word for word in words if word in STYLE}, set(world.tastes[review.user].style)
    ratings = [word for word in words if word in RATINGS]
    return {
        "style hit": float(bool(style & own)),
        "wrong style": float(bool(style - own)),
        "rating": float(ratings[-1:] == [world.rating(review)]),
    }
