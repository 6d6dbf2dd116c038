"""Token batches: which prompts run together, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones.filed import FiledPrefix
from chameleon_lib.backbones.prefix import Prefix
from chameleon_lib.core.edit import AnyEdit, EditHook
from chameleon_lib.errors import UserError

MAX_ROWS = 128
TOKEN_BUDGET = 32_768


def plan_batches(
    lengths: Sequence[int],
    *,
    groups: Sequence[int] | None = None,
    max_rows: int = MAX_ROWS,
    token_budget: int = TOKEN_BUDGET,
) -> list[list[int]]:
    """Row numbers per batch of rows with similar ``lengths`` in tokens, every row exactly once.

    Rows of one group stay together as far as the limits allow; ``token_budget`` counts padded
    tokens, and a single longer row still forms a batch.
    """
    longest: dict[int, int] = {}
    if groups is not None:
        for group, length in zip(groups, lengths, strict=True):
            longest[group] = max(longest.get(group, 0), length)

    def key(row: int) -> tuple[int, int, int, int]:
        if groups is None:
            return (lengths[row], 0, 0, row)
        return (longest[groups[row]], groups[row], lengths[row], row)

    batches: list[list[int]] = []
    width = 0
    for row in sorted(range(len(lengths)), key=key):
        width = max(width, lengths[row])
        full = batches and (
            len(batches[-1]) >= max_rows or (len(batches[-1]) + 1) * width > token_budget
        )
        if not batches or full:
            batches.append([])
            width = lengths[row]
        batches[-1].append(row)
    return batches


def common_prefix(sequences: Sequence[list[int]]) -> int:
    """Length of the longest common prefix."""
    # The smallest and the largest sequence differ first where any two of them differ first.
    low, high = min(sequences), max(sequences)
    for at, (left, right) in enumerate(zip(low, high, strict=False)):
        if left != right:
            return at
    return min(len(low), len(high))


def pad(
    sequences: Sequence[Sequence[int]], *, value: int, side: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pads token sequences to a rectangle.

    Returns:
        ids ``(B, T)`` and mask ``(B, T)`` (1 = real token), both int64.
    """
    width = max((len(sequence) for sequence in sequences), default=0)
    ids, mask = [], []
    for sequence in sequences:
        gap = width - len(sequence)
        left, right = (gap, 0) if side == "left" else (0, gap)
        ids.append([value] * left + list(sequence) + [value] * right)
        mask.append([0] * left + [1] * len(sequence) + [0] * right)
    shape = (len(sequences), width)
    return (
        torch.tensor(ids, dtype=torch.long, device=device).view(shape),
        torch.tensor(mask, dtype=torch.long, device=device).view(shape),
    )


@dataclass(frozen=True)
class ReadInputs:
    """A batch for reading activations; lengths are in tokens per row."""

    inputs: dict[str, Tensor]
    lengths: list[int]
    answer_lengths: list[int]


@dataclass(frozen=True)
class Batch:
    """Rows of one call that run together."""

    rows: list[int]  # their numbers in the caller's order
    prompts: list[list[int]]  # their token ids
    groups: list[int] | None  # their groups, or None
    # The unedited prefix, in memory or in a file, or None if it is computed at each use
    prefix: Prefix | FiledPrefix | None = None

    def take(self, places: Sequence[int], rows: Sequence[int]) -> Batch:
        """The batch made of the members at ``places``, as wide as this one, numbered ``rows``."""
        prefix = self.prefix
        if prefix is not None and list(places) != list(range(len(self.rows))):
            prefix = prefix.take(places)
        return Batch(
            list(rows),
            [self.prompts[at] for at in places],
            None if self.groups is None else [self.groups[at] for at in places],
            prefix,
        )


@dataclass(frozen=True)
class PreparedBatches:
    """What ``prepare`` returns: batches in bucket order."""

    batches: list[Batch]
    noise: list[int] | None = None  # what tells the noise of samples apart; None: from the prompts

    def __len__(self) -> int:
        return sum(len(batch.rows) for batch in self.batches)

    def take(self, rows: Sequence[int]) -> PreparedBatches:
        """The prompts ``rows`` in this order; a batch keeps its width, and a prefix its absence.

        Inside a batch the members keep their places: a batch that is taken whole is not copied.

        Raises:
            IndexError: A number that no prompt has.
        """
        places = {
            row: (number, at)
            for number, batch in enumerate(self.batches)
            for at, row in enumerate(batch.rows)
        }
        picked: dict[int, list[tuple[int, int]]] = {}  # batch → (place in it, new number)
        for new, row in enumerate(rows):
            if row not in places:
                raise IndexError(f"There is no prompt {row} among {len(self)} prepared ones.")
            number, at = places[row]
            picked.setdefault(number, []).append((at, new))
        chosen = []
        for number, batch in enumerate(self.batches):
            pairs = sorted(picked.get(number, []))
            if pairs:
                chosen.append(batch.take([at for at, _ in pairs], [new for _, new in pairs]))
        return PreparedBatches(chosen)

    def check_edit(self, edit: AnyEdit | None) -> None:
        """Refuses a per-row edit made for another number of prompts."""
        if edit is not None and edit.per_row and edit.n_rows != len(self):
            raise UserError(
                f"{len(self)} prompts but an edit of {edit.n_rows} rows; "
                "give one edit row per prompt."
            )


def own_batches(prepared: Any) -> PreparedBatches:
    """What ``prepare`` returned, or a TypeError."""
    if not isinstance(prepared, PreparedBatches):
        raise TypeError("This backbone uses only what its own prepare() returned.")
    return prepared


@dataclass
class EditUsage:
    """How often the edit ran in the latest call, per edited layer; empty without one."""

    calls: dict[int, int] = field(default_factory=dict)  # hooked calls
    tokens: dict[int, int] = field(default_factory=dict)  # edited positions, padding included
    # Sums over edited tokens of the edit ratios; filled if ``diagnostics`` is on
    ratios: dict[int, dict[str, float]] = field(default_factory=dict)

    def add(self, hook: EditHook) -> None:
        """Adds the counts of one hook."""
        for layer, count in hook.calls.items():
            self.calls[layer] = self.calls.get(layer, 0) + count
            self.tokens[layer] = self.tokens.get(layer, 0) + hook.tokens[layer]
        for row in hook.ratios() if hook.diagnostics else []:
            sums = self.ratios.setdefault(int(row["layer"]), {})
            for name in row.keys() - {"layer", "calls", "tokens"}:
                sums[name] = sums.get(name, 0.0) + row[name] * row["tokens"]

    def mean_ratios(self) -> dict[int, dict[str, float]]:
        """Mean edit ratios per edited token, by layer."""
        return {
            layer: {name: total / max(self.tokens[layer], 1) for name, total in sums.items()}
            for layer, sums in self.ratios.items()
        }
