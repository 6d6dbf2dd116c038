"""What the released code of the paper does differently, each by a name of its own.

All are off by default. Kept as they are, and so without a switch: the decoder of the autoencoder
cannot put out less than GELU does (the share of inputs below is logged), a clamped mean code has no
gradient (dead units are logged; ``activation="softplus"`` has none), and markers have untrained
rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Released:
    """Switches to the released behaviour.

    Attributes:
        misaligned: Text blocks are of the most recent reviews, vectors of the most recent reviews
            of items with peers: block i and vector i may be of different reviews.
        later_reviews: A user's mean and an item's peers come from all that people wrote before
            their last three reviews, also from what is later than the sample.
        unguarded: No uniform weights where all distances are zero (NaN), and no padding of fewer
            than eight reviews, so that the split of vectors at eight is in the wrong place.
        chat_string: The newline between the turns of a chat template is missing.
        sampled_selection: The epoch is chosen by the METEOR of sampled text and not by the loss.
    """

    misaligned: bool = False
    later_reviews: bool = False
    unguarded: bool = False
    chat_string: bool = False
    sampled_selection: bool = False


OURS = Released()


def as_released(**overrides: bool) -> Released:
    """All switches on, but for those given."""
    return Released(**{field.name: True for field in fields(Released)} | overrides)
