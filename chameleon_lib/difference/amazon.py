"""Local files in the shape of Amazon Reviews'23, filtered as the paper filters them.

A folder with one file of reviews (``user_id``, ``parent_asin`` or ``asin``, ``text``, ``rating``,
``title``, ``timestamp``) and one of items whose name starts with ``meta`` (``parent_asin``,
``title``, ``description``), both one JSON object per line, packed with gzip or not. The data are
for research; none come with the kit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.difference.reviews import Corpus, Item, Review
from chameleon_lib.errors import UserError
from chameleon_lib.kit.shared_items import description_of, lines_of, pair_of


@dataclass(frozen=True, slots=True)
class Filter:
    """What is kept; the defaults are the paper's.

    Attributes:
        text: Characters of a review at least.
        description: Characters of an item's description, least and most.
        item_users: Users of an item at least.
        user_reviews: Reviews of a user, least and most.
        inputs: Last reviews of a user that are to be written.
        profile_users: Users of an item at least, counted in profiles alone.
        profile_reviews: Reviews in a profile at least that are of such items.
    """

    text: int = 200
    description: tuple[int, int] = (100, 2000)
    item_users: int = 8
    user_reviews: tuple[int, int] = (18, 500)
    inputs: int = 10
    profile_users: int = 5
    profile_reviews: int = 8


@dataclass(frozen=True)
class Loaded:
    """A corpus, and what was dropped on the way, in sentences."""

    corpus: Corpus
    notes: list[str]


def read_amazon(folder: Path, keep: Filter | None = None) -> Loaded:
    """Reads and filters a folder.

    Args:
        folder: With the two files.
        keep: What is kept.

    Raises:
        UserError: No such files, a first line that is no review or item, a rating or time that is
            no number, or nobody left.
    """
    keep = keep or Filter()
    reviews, items = pair_of(folder)
    known: dict[str, Item] = {}
    low, high = keep.description
    nameless = 0
    for number, (where, record) in enumerate(lines_of(items)):
        if not number and not _has_item(record):
            raise UserError(f"{where} is no item: it needs parent_asin (or asin).")
        item = _item(record)
        nameless += not _id_of(record)
        if item is not None and low <= len(item.description) <= high:
            known[item.id] = item
    kept: dict[tuple[str, str], Review] = {}
    texts: set[tuple[str, str]] = set()
    dropped: Counter[str] = Counter()
    for number, (where, record) in enumerate(lines_of(reviews)):
        if not number and not ({"user_id", "text"} <= record.keys() and _has_item(record)):
            raise UserError(
                f"{where} is no review: it needs user_id, text and parent_asin (or asin)."
            )
        review = _review(record, where)
        if review is None:
            dropped["without user, item, rating, title or time"] += 1
        elif len(review.text) < keep.text:
            dropped[f"shorter than {keep.text} characters"] += 1
        elif review.item not in known:
            dropped[f"of an item without a description of {low} to {high} characters"] += 1
        elif (review.user, review.item) in kept or (review.user, review.text) in texts:
            dropped["of an item or with a text that their user had before"] += 1
        else:
            kept[review.user, review.item] = review
            texts.add((review.user, review.text))
    left = _filtered(sorted(kept.values(), key=lambda r: (r.time, r.id)), keep)
    dropped["of an item or user with too few reviews"] += len(kept) - len(left)
    notes = [f"{count} reviews {why} are left out." for why, count in dropped.items() if count]
    if nameless:
        notes.append(f"{nameless} items without parent_asin (or asin) are left out.")
    if not left:
        raise UserError(
            f"{folder} has no user with {keep.user_reviews[0]} reviews of items that "
            f"{keep.item_users} people reviewed, and a profile of {keep.profile_reviews} such; "
            f"{' '.join(notes)}"
        )
    used = {review.item for review in left}
    return Loaded(Corpus([known[id_] for id_ in sorted(used)], left), notes)


def _filtered(reviews: list[Review], keep: Filter) -> list[Review]:
    """Both conditions of the paper, each repeated until nothing changes."""
    low, high = keep.user_reviews
    while True:
        before = len(reviews)
        by_item = Counter(review.item for review in reviews)
        reviews = [r for r in reviews if by_item[r.item] >= keep.item_users]
        by_user = Counter(review.user for review in reviews)
        reviews = [r for r in reviews if low <= by_user[r.user] <= high]
        profile = _profiles(reviews, keep.inputs)
        of_item = Counter(review.item for review in profile)
        shared = Counter(r.user for r in profile if of_item[r.item] >= keep.profile_users)
        reviews = [r for r in reviews if shared[r.user] >= keep.profile_reviews]
        if len(reviews) == before:
            return reviews


def _profiles(reviews: list[Review], inputs: int) -> list[Review]:
    """All reviews but the last inputs of every user; given and returned by time."""
    left, found = Counter(review.user for review in reviews), []
    for review in reviews:
        if left[review.user] > inputs:
            found.append(review)
        left[review.user] -= 1
    return found


def _has_item(record: dict[str, Any]) -> bool:
    """Whether a record has a place for an item's id, filled or not."""
    return bool({"parent_asin", "asin"} & record.keys())


def _id_of(record: dict[str, Any]) -> str:
    return str(record.get("parent_asin") or record.get("asin") or "")


def _review(record: dict[str, Any], where: str) -> Review | None:
    """The review of a record; None if it lacks something."""
    item = _id_of(record)
    names = ("user_id", "text", "rating", "title", "timestamp")
    values: list[Any] = [record.get(name) for name in names]
    if not item or any(value in (None, "") for value in values):
        return None
    user, text, rating, title, time = values
    try:
        return Review(
            f"{user}/{item}", str(user), item, " ".join(str(text).split()), float(rating),
            " ".join(str(title).split()), int(time),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where} has the rating {rating!r} and the time {time!r}; both must be numbers."
        ) from error


def _item(record: dict[str, Any]) -> Item | None:
    """The item of a record; None without id, title or description."""
    id_, text = _id_of(record), description_of(record)
    title = " ".join(str(record.get("title") or "").split())
    return Item(id_, title, text) if id_ and title and text else None
