"""LaMP-2's movies as shared items: the same description, tagged by several people.

The tag is what is written. A review's embedded text is description and tag, since the description
alone is equal for all: the difference on a movie is then a difference of tags. LaMP-2 has no times,
so the place in a profile stands for it, and what is asked comes last.
"""

from __future__ import annotations

from collections.abc import Sequence

from chameleon_lib.core.task import User, get_task
from chameleon_lib.difference.reviews import Corpus, Item, Review
from chameleon_lib.difference.wording import Wording
from chameleon_lib.errors import UserError

TASK = "LaMP_2"


def normalised(description: str) -> str:
    """What makes two descriptions one movie: letter case and spaces do not."""
    return " ".join(description.casefold().split())


def corpus_of(users: Sequence[User]) -> Corpus:
    """Movies and their tags; the first query of every user is the last review.

    Raises:
        UserError: A query without gold tag, or no movie that two users tagged.
    """
    items: dict[str, Item] = {}
    reviews: dict[tuple[str, str], Review] = {}
    last = max((len(user.history) for user in users), default=0)
    for user in users:
        query = user.queries[0]
        if query.gold is None:
            raise UserError(f"Query {query.id} has no gold tag; give a split with labels.")
        rows = [(item.text, item.label, at) for at, item in enumerate(user.history)]
        for text, tag, time in [*rows, (query.text, query.gold, last)]:
            key = normalised(text)
            items.setdefault(key, Item(key, text, text))
            reviews.setdefault(
                (user.id, key),
                Review(f"{user.id}/{len(reviews)}", user.id, key, f"{tag}", 0.0, "", time),
            )
    corpus = Corpus(items.values(), reviews.values())
    if not any(len(own) > 1 for own in corpus.by_item.values()):
        raise UserError("No movie of these users was tagged by two of them; give more users.")
    return corpus


class TagWording(Wording):
    """Prompts of LaMP-2 with places for soft prompts."""

    system = "You give a movie the one tag that this user would give it."
    header = "\n[User's Past Tags]:"

    def item(self, item: Item) -> str:
        return (
            f"[Movie]: {item.description}\n[Tags to choose from]: "
            f"{', '.join(get_task(TASK).labels)}"
        )

    def block(self, review: Review, item: Item) -> str:
        return f"\n- [Movie]: {item.description}\n  [Tag]: {review.text}\n  [Soft Prompts]: "

    def request(self, review: Review) -> str:
        del review
        return "\nAnswer with the tag and nothing else."
