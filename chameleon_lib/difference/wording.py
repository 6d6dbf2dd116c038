"""What the prompts say; all wording is ours. One for real reviews, others by overriding."""

from __future__ import annotations

from collections.abc import Sequence

from chameleon_lib.difference.reviews import Item, Review


class Wording:
    """Prompts about reviews in plain English."""

    system = "You write the text of a product review exactly as one user would write it."
    explained = (
        " In a past review, the soft prompt between <his_token_start> and <his_token_end> stands "
        "for that review, and the one between <diff_token_start> and <diff_token_end> for what "
        "sets it apart from other users' reviews of the same item."
    )
    header = "\n[User's Past Reviews]:"

    def item(self, item: Item) -> str:
        """The item of the review that is asked for."""
        return f"[Item Title]: {item.title}\n[Item Description]: {item.description}"

    def summary(self, told: str) -> str:
        """What is known of the user, in words; stands behind the item."""
        return f"\n[About the User]: {told}"

    def block(self, review: Review, item: Item) -> str:
        """One past review, before its soft prompts."""
        return (
            f"\n- [Item Title]: {item.title}\n  [Item Description]: {item.description}\n"
            f"  [Rating]: {review.rating:g}\n  [Review Title]: {review.title}\n"
            f"  [Review Text]: {review.text}\n  [Soft Prompts]: "
        )

    def request(self, review: Review) -> str:
        """What the review shall have, and that it is wanted."""
        return (
            f"\n[Output Rating]: {review.rating:g}\n[Output Review Title]: {review.title}\n"
            "Write the review's text and nothing else."
        )

    def compare(self, own: Review, peers: Sequence[Review], item: Item) -> str:
        """Asks how a review differs from those of its peers (DPL)."""
        others = "\n".join(f"- {review.title}: {review.text}" for review in peers)
        return (
            f"{self.item(item)}\n[User's Review]: {own.title}: {own.text}\n"
            f"[Other Users' Reviews]:\n{others}\n"
            "How does the user's review differ from the others? Say in one short paragraph: the "
            "writing style (choice of words, structure of sentences), the emotional style "
            "(sentiment) and the semantic style (density of information, coherence)."
        )

    def summarise(
        self, differences: Sequence[str], past: Sequence[Review], items: Sequence[Item]
    ) -> str:
        """Asks for a user's summary from differences and past reviews (DPL)."""
        told = "\n".join(f"- {text}" for text in differences)
        blocks = "".join(self.block(*pair) for pair in zip(past, items, strict=True))
        return (
            f"{self.header}{blocks}\n[Differences to Other Users]:\n{told}\n"
            "Summarise in one short paragraph what is particular to how this user writes."
        )
