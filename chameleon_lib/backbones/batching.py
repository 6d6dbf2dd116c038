"""Token batches: length buckets, padding and shared prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_ROWS = 128
TOKEN_BUDGET = 32_768


def plan_batches(
    lengths: Sequence[int],
    *,
    groups: Sequence[int] | None = None,
    max_rows: int = MAX_ROWS,
    token_budget: int = TOKEN_BUDGET,
) -> list[list[int]]:
    """Splits rows into batches of similar length.

    Args:
        lengths: Tokens per row.
        groups: Rows of one group stay together as far as the limits allow.
        max_rows: Most rows per batch.
        token_budget: Most padded tokens per batch; a single longer row still forms a batch.

    Returns:
        Row numbers per batch, every row exactly once.
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
