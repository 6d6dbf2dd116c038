"""Items that several people have reviewed, and the samples that are cut from them by time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from chameleon_lib.errors import UserError


@dataclass(frozen=True, slots=True)
class Item:
    """What can be reviewed: an id, a title and a description."""

    id: str
    title: str
    description: str


@dataclass(frozen=True, slots=True)
class Review:
    """One review; ``id`` is unique in a corpus, ``time`` in any unit that grows."""

    id: str
    user: str
    item: str
    text: str
    rating: float
    title: str
    time: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A review to be written, and the earlier ones of a user; oldest first, never later."""

    review: Review
    profile: tuple[Review, ...]

    @property
    def owner(self) -> str:
        """Whose profile it is; the writer of the review, unless users were swapped."""
        return self.profile[0].user if self.profile else self.review.user


@dataclass(frozen=True)
class Splits:
    """Samples of the inputs of every user: the last is tested, the one before it selects."""

    train: tuple[Sample, ...]
    valid: tuple[Sample, ...]
    test: tuple[Sample, ...]


class Corpus:
    """Items with the reviews of them.

    Args:
        items: Those that are reviewed, and perhaps more.
        reviews: In any order; one user reviews an item once.

    Raises:
        UserError: A review of no known item, a repeated id, or two reviews of one item by one user.
    """

    def __init__(self, items: Iterable[Item], reviews: Iterable[Review]) -> None:
        self.items: Mapping[str, Item] = {item.id: item for item in items}
        self.reviews = tuple(sorted(reviews, key=lambda review: (review.time, review.id)))
        users, of_item = defaultdict[str, list[Review]](list), defaultdict[str, list[Review]](list)
        seen, pairs = set[str](), set[tuple[str, str]]()
        for review in self.reviews:
            if review.item not in self.items:
                raise UserError(f"Review {review.id} is of item {review.item!r}, which is unknown.")
            if review.id in seen or (review.user, review.item) in pairs:
                raise UserError(
                    f"Review {review.id} is there twice, or user {review.user} reviewed item "
                    f"{review.item} twice; keep one."
                )
            seen.add(review.id)
            pairs.add((review.user, review.item))
            users[review.user].append(review)
            of_item[review.item].append(review)
        # All reviews of a user and of an item, oldest first.
        self.by_user: Mapping[str, list[Review]] = dict(sorted(users.items()))
        self.by_item: Mapping[str, list[Review]] = dict(of_item)

    @cached_property
    def rank(self) -> dict[str, int]:
        """Review id → its place in time; of two reviews of one moment either may be first."""
        return {review.id: at for at, review in enumerate(self.reviews)}

    def before(self, user: str, review: Review) -> tuple[Review, ...]:
        """What a user wrote before a review, oldest first; nothing of the same moment."""
        return tuple(own for own in self.by_user.get(user, ()) if own.time < review.time)

    def splits(self, inputs: int = 10) -> Splits:
        """Cuts the last reviews of every user into samples; a profile grows by earlier inputs.

        Args:
            inputs: Reviews of a user to be written: the last for the test, the one before it to
                select by, the others to train on. Every user needs at least one review more.

        Raises:
            UserError: Fewer than three inputs, or a user with too few reviews for them.
        """
        if inputs < 3:
            raise UserError(f"inputs is {inputs}; give 3 or more, to train, select and test on.")
        parts: tuple[list[Sample], ...] = ([], [], [])
        for user, own in self.by_user.items():
            if len(own) <= inputs:
                raise UserError(
                    f"User {user} has {len(own)} reviews, and {inputs} inputs need at least "
                    f"{inputs + 1}; lower inputs or leave the user out."
                )
            for place, review in enumerate(own[-inputs:], start=-inputs):
                sample = Sample(review, self.before(user, review))
                parts[max(0, place + 3)].append(sample)
        return Splits(*map(tuple, parts))
