"""The rows of the study of edited preferences, and how much of each is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from chameleon_lib.data.preferences import DIRECT, IMPLICIT

MODEL = "smollm2"  # of `kit.wheels`
SUBSTRING, WORD, F1 = "substring", "word", "f1"
TITLES = {
    DIRECT: "efficacy",
    "paraphrased": "generalisation",
    IMPLICIT: "implicit",
    "recommendation": "recommendation",
}
ZERO = "zero-shot"
PROMPT, RETRIEVED = "preference in the prompt", "retrieved preference in the prompt"
ROME_1, ROME_3, ROME_9 = "ROME", "ROME, 3 variants", "ROME, 9 variants"
FT_L, FT_M, LORA = "FT-L", "FT-M", "LoRA"
FITTED, PAPER = "our fitted rank-2 edit", "CHAMELEON's edit"
PROMPTED = (ZERO, PROMPT, RETRIEVED)
CLAIMED = (ROME_1, ROME_3, FT_L, FT_M)  # edited rows that a claim of the paper compares
OTHERS = (ROME_9, LORA, FITTED, PAPER)
CLUSTER = {ROME_1: 1, ROME_3: 3, ROME_9: 9}
REMINDED = "reminder before the question"
TOLD = (ZERO, PROMPT, REMINDED)  # rows of the unedited model that are asked after other talk
TALKS = (*TOLD, ROME_1, FT_M)  # all that are


@dataclass(frozen=True)
class Sizes:
    """How much of everything is done, and how the editors are set.

    Attributes:
        users: Of the rows that claims compare.
        few: Users of the other rows, of locality and of the talks; the first of them.
        turns: Turns of other talk that are tried.
        seeds: Repetitions of what is drawn: ROME's prefixes (but for nine variants), LoRA's start,
            the fitted edit's.
        prefixes: (tokens, how many) each, that ROME's fit is held under.
        rome_steps: Updates of ROME at most.
        tuned_steps: Of FT-L and FT-M.
        lora_steps: Of LoRA; it stops at the same loss as FT-M.
        rome_layer: ROME's; its default for the model if None.
        rome_rate: Of ROME's Adam.
        tuned_rate: Of that of FT-L and FT-M.
        same_target: All variants of a cluster teach the original answer, and not each its own.
        others: Rows beside those of the claims.
    """

    users: int
    few: int
    turns: tuple[int, ...]
    seeds: int
    prefixes: tuple[tuple[int, int], ...]
    rome_steps: int
    tuned_steps: int
    lora_steps: int
    rome_layer: int | None = None
    rome_rate: float = 0.5
    tuned_rate: float = 5e-4
    same_target: bool = True
    others: tuple[str, ...] = OTHERS


# A subset that two cores do in minutes, with fewer and larger steps than the paper's, so that every
# editor gets to its end (rates and layers were tried on seven of the users behind the eightieth,
# who are in no subset of up to eighty); users and seeds enough for verdicts; and the paper's own
# steps and prefixes, which take either of them many times as long.
SUBSET = Sizes(
    16, 6, (0, 2, 8), 1, ((5, 1),), 10, 12, 12,
    rome_rate=1.0, tuned_rate=1e-3, others=(LORA, FITTED, PAPER),
)  # fmt: skip
FULL = replace(SUBSET, users=50, few=50, seeds=3, others=OTHERS)
PAPERS: dict[str, Any] = {
    "prefixes": ((5, 10), (10, 10)), "rome_steps": 24, "tuned_steps": 25, "lora_steps": 70,
    "rome_rate": 0.5, "tuned_rate": 5e-4,
}  # fmt: skip


def chosen(users: int, full: bool, *, as_paper: bool = False, there: int = 100) -> Sizes:
    """The sizes of a notebook's parameters: the subset with so many users, or the full table.

    The full table has its own number of users or so many, whichever is more; all rows have them.
    More users than ``there`` are preferences are all of them.
    """
    most = max(users, FULL.users)
    sizes = replace(FULL, users=most, few=most) if full else replace(SUBSET, users=users)
    sizes = replace(sizes, **PAPERS) if as_paper else sizes
    users = min(sizes.users, there)
    return replace(sizes, users=users, few=min(sizes.few, users))
