"""What the study of differences runs on: the world of shared items, or a local folder.

One shape for all: items that several people have reviewed, samples cut by time, an embedder, and
how a written review is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from chameleon_lib.core.backbone import Embedder
from chameleon_lib.data.lamp import find_split
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.data.users import load_users
from chameleon_lib.difference import Corpus, Recipe, Review, Sample, Splits, Wording
from chameleon_lib.difference.amazon import Filter, read_amazon
from chameleon_lib.difference.lamp2 import TASK, TagWording, corpus_of
from chameleon_lib.difference.measures import scores
from chameleon_lib.difference.world import (
    BagEmbedder,
    World,
    WorldSettings,
    WorldWording,
    build_world,
    kept,
)
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.shared_items import has_reviews
from chameleon_lib.studies.study import open_embedder

VALID = 512  # samples that select, at most


@dataclass(frozen=True, eq=False)
class Material:
    """People, items and samples, and all that depends on where they are from.

    Attributes:
        title: Of the material, in tables.
        corpus: Items and reviews.
        samples: To train on, to select by, and to test.
        embedder: Of the texts.
        text_of: What of a review is embedded.
        wording: Of the prompts.
        recipe: Of the training; its seed is replaced.
        sae_weight: Rule for the weight of the autoencoder's loss.
        new_tokens: Of a written review at most.
        told: User → what is planted, in words; None where nothing is.
        scores: Scores of a written review.
        notes: What was left out, in sentences.
        world: The planted world; None for files.
    """

    title: str
    corpus: Corpus
    samples: Splits
    embedder: Embedder
    text_of: Callable[[Review], str]
    wording: Wording
    recipe: Recipe
    sae_weight: str
    new_tokens: int
    told: Mapping[str, str] | None
    scores: Callable[[Review, str], dict[str, float]]
    notes: tuple[str, ...] = ()
    world: World | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of items, reviews and tested samples."""
        items = [[i.id, i.title, i.description] for i in self.corpus.items.values()]
        reviews = [[r.id, r.text, r.time] for r in self.corpus.reviews]
        parts = (self.samples.train, self.samples.valid, self.samples.test)
        return digest([items, reviews, [[s.review.id for s in part] for part in parts]])


def of_world(settings: WorldSettings, recipe: Recipe) -> Material:
    """The world of shared items."""
    world = build_world(settings)
    return Material(
        title="world of shared items",
        corpus=world.corpus,
        samples=world.corpus.splits(settings.inputs),
        embedder=BagEmbedder(),
        text_of=_text,
        wording=WorldWording(),
        recipe=recipe,
        sae_weight="match",
        new_tokens=12,
        told={user: taste.summary for user, taste in world.tastes.items()},
        scores=lambda review, said: kept(said, review, world) | scores(review.text, said),
        world=world,
    )


def of_folder(
    folder: Path, profile: RunProfile, recipe: Recipe, users: int = 0, keep: Filter | None = None
) -> Material:
    """A local folder: Amazon's shape, or LaMP-2's files.

    Args:
        folder: The folder.
        profile: Opens the embedder.
        recipe: Of the training.
        users: Cap on users who are trained on and tested; 0 for the profile's numbers.
        keep: What is kept of Amazon's.

    Raises:
        UserError: Neither of the two, or nobody left.
    """
    embedder = open_embedder("all-MiniLM-L6-v2", profile.offline)
    if has_reviews(folder):
        keep = keep or Filter()
        loaded = read_amazon(folder, keep)
        corpus = loaded.corpus
        return Material(
            title=f"reviews of {folder.name}",
            corpus=corpus,
            samples=_one_each(corpus.splits(keep.inputs), profile, users),
            embedder=embedder,
            text_of=_text,
            wording=Wording(),
            recipe=recipe,
            sae_weight="match",
            new_tokens=2048 if not profile.offline else 64,
            told=None,
            scores=lambda review, said: scores(review.text, said),
            notes=tuple(loaded.notes),
        )
    try:
        questions, golds = find_split(folder, TASK, "dev")
    except UserError as error:
        raise UserError(
            f"{folder} holds neither reviews in Amazon's shape (a .jsonl file and one named "
            f"meta...) nor LaMP-2: {error}"
        ) from error
    corpus = corpus_of(load_users(questions, golds, TASK))
    able = [user for user, own in corpus.by_user.items() if len(own) > 3]
    return Material(
        title="LaMP-2, movies that several people tagged",
        corpus=corpus,
        samples=_one_each(_tagged(corpus, able), profile, users),
        embedder=embedder,
        text_of=lambda review: f"{corpus.items[review.item].description}: {review.text}",
        wording=TagWording(),
        recipe=recipe,
        sae_weight="match",
        new_tokens=16,
        told=None,
        scores=_tag_scores,
    )


def _text(review: Review) -> str:
    return review.text


def _tag_scores(review: Review, said: str) -> dict[str, float]:
    found = per_sample_scores(TASK, [review.text], [said])
    return {"accuracy": float(found["accuracy"][0])}


def _one_each(samples: Splits, profile: RunProfile, users: int) -> Splits:
    """One sample per user to train on, the one with the longest profile, as the paper has it."""
    latest = {sample.owner: sample for sample in samples.train}
    return Splits(
        tuple(latest.values())[: users or profile.n_train],
        samples.valid[: min(VALID, users or profile.n_dev)],
        samples.test[: users or profile.n_test],
    )


def _tagged(corpus: Corpus, users: list[str]) -> Splits:
    """The last three movies of every user: train, select, test (the query itself)."""
    parts: tuple[list[Sample], ...] = ([], [], [])
    for user in users:
        for part, review in zip(parts, corpus.by_user[user][-3:], strict=True):
            part.append(Sample(review, corpus.before(user, review)))
    return Splits(*map(tuple, parts))
