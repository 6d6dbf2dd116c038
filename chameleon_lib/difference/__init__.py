"""Sister systems that model the difference to other users: DEP (soft prompts) and DPL (words)."""

from chameleon_lib.difference.distil import Distiller, FreePrompt, sae_weight
from chameleon_lib.difference.layout import DIFFERENCE, HISTORY, KINDS, Layout
from chameleon_lib.difference.model import Example, SoftPrompted, collate, make_example
from chameleon_lib.difference.released import OURS, Released, as_released
from chameleon_lib.difference.reviews import Corpus, Item, Review, Sample, Splits
from chameleon_lib.difference.training import Recipe, nll_of, train, write_all
from chameleon_lib.difference.vectors import SLOTS, VectorMaker, Vectors
from chameleon_lib.difference.wording import Wording

__all__ = [
    "DIFFERENCE", "HISTORY", "KINDS", "OURS", "SLOTS", "Corpus", "Distiller", "Example",
    "FreePrompt", "Item", "Layout", "Recipe", "Released", "Review", "Sample", "SoftPrompted",
    "Splits", "VectorMaker", "Vectors", "Wording", "as_released", "collate", "make_example",
    "nll_of", "sae_weight", "train", "write_all",
]  # fmt: skip
