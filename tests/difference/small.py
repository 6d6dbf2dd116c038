"""A crafted corpus of a few people, a tiny random model, and everything between the two."""

from __future__ import annotations

from functools import cache

import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.difference import (
    Corpus,
    Distiller,
    Item,
    Layout,
    Review,
    Sample,
    SoftPrompted,
    VectorMaker,
    Wording,
)
from chameleon_lib.difference.world import BagEmbedder
from tests.backbones.tiny import make_backbone

D = 12
WORDS = "calm brave dull keen odd plain rich stern swift tame vast warm".split()


def corpus(users: int = 5, items: int = 9, alone: int = 0) -> Corpus:
    """Everybody reviews every item; the first user also ``alone`` items that nobody else has."""
    things = [Item(f"i{at}", f"thing {at}", f"a thing of kind {at}") for at in range(items)]
    own = [Item(f"a{at}", f"own {at}", "nobody else's") for at in range(alone)]
    reviews = []
    for place, item in enumerate([*things, *own]):
        for user in range(users if item in things else 1):
            words = [WORDS[(user * 5 + k) % len(WORDS)] for k in range(2)]
            text = f"{item.title} is {WORDS[place % len(WORDS)]} and {' '.join(words)}"
            time = 100 * place + user
            reviews.append(
                Review(f"{item.id}-{user}", f"u{user}", item.id, text, 3.0, "so", time)
            )
    return Corpus([*things, *own], reviews)


def last_sample(found: Corpus, user: str = "u0") -> Sample:
    """The last review of a user, with all earlier ones."""
    review = found.by_user[user][-1]
    return Sample(review, found.before(user, review))


@cache
def backbone() -> HFBackbone:
    return make_backbone("qwen2")


def layout(**how: object) -> Layout:
    """A layout of the tiny model with short prompts; four slots."""
    one = backbone()
    rows = one.model.get_input_embeddings().weight.shape[0]
    return Layout(one.codec.tokenizer, rows, **{"wording": Short(), "slots": 4, **how})  # type: ignore[arg-type]


def prompted(seed: int = 0, weight: float = 1.0, sae: bool = True) -> SoftPrompted:
    torch.manual_seed(seed)
    one = backbone()
    hidden = one.model.get_input_embeddings().weight.shape[1]
    soft = Distiller(D, hidden, None if sae else 0, slots=4)
    return SoftPrompted(one, soft, slots=4, weight=weight)


def maker(found: Corpus, **how: object) -> VectorMaker:
    return VectorMaker(found, BagEmbedder(D), slots=4, **how)  # type: ignore[arg-type]


class Short(Wording):
    """Few words, for few tokens."""

    system = explained = ""
    header = " past:"

    def item(self, item: Item) -> str:
        return item.title

    def block(self, review: Review, item: Item) -> str:
        del review
        return f" {item.title}"

    def request(self, review: Review) -> str:
        del review
        return " go:"
