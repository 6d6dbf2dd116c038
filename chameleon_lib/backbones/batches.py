"""Token batches and the unedited prefixes that every later use of a batch shares.

A ``Prefix`` holds plain key and value tensors. Each use builds a fresh cache *around* them: the
tensors are never written to, so nothing has to be copied before or cropped back after a use, and a
use that fails half-way leaves the prefix intact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from chameleon_lib.core.edit import Edit, EditHook
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


KeyValues = tuple[tuple[Tensor, Tensor], ...]  # per layer (B, H, P, d_head) twice

_ROOM = 32


class PlacedLayer(DynamicLayer):
    """The stock cache layer, for a model whose layers lie on several devices."""

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows ``indices``, which may come from another device."""
        if self.keys is not None and self.values is not None and self.get_seq_length() > 0:
            self.keys, self.values = _rows_of(self.keys, indices), _rows_of(self.values, indices)


class GrowingLayer(PlacedLayer):
    """A cache layer with spare room, for decoding without gradients.

    The stock layer copies all keys and values at every step; this one copies them every
    ``_ROOM`` steps and writes the new ones into its own buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends ``(B, H, q, d_head)`` keys and values; returns all of them."""
        past = self.get_seq_length()
        total = past + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < total:
            self._buffers = (
                self._enlarged(self.keys if past else None, key_states, total + _ROOM),
                self._enlarged(self.values if past else None, value_states, total + _ROOM),
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., past:total, :] = new
        self.keys = self._buffers[0][..., :total, :]
        self.values = self._buffers[1][..., :total, :]
        return self.keys, self.values

    @staticmethod
    def _enlarged(old: Tensor | None, like: Tensor, width: int) -> Tensor:
        buffer = like.new_empty((*like.shape[:-2], width, like.shape[-1]))
        if old is not None:
            buffer[..., : old.shape[-2], :] = old
        return buffer

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows ``indices``; the buffer is rebuilt at the next step."""
        super().batch_select_indices(indices)
        self._buffers = None


def wrap_cache(key_values: KeyValues, *, growing: bool) -> DynamicCache:
    """A cache that starts with these tensors and never writes to them."""
    cache = DynamicCache()
    kind = GrowingLayer if growing else PlacedLayer
    cache.layer_class_to_replicate = kind
    for keys, values in key_values:
        layer = kind()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def unwrap_cache(cache: Any) -> KeyValues:
    """Keys and values per layer."""
    return tuple((layer.keys, layer.values) for layer in cache.layers)


@dataclass(frozen=True)
class Prefix:
    """State of a batch just before its first edited token."""

    last: Tensor  # ``(B, 1)`` ids of the token that comes next: last prompt token or decoder start
    key_values: KeyValues  # self-attention keys and values of the tokens before it; empty if none
    mask: Tensor  # ``(B, P)``, 1 = real token
    lengths: Tensor  # ``(B,)`` real tokens before ``last``, which is its position
    encoder: Tensor | None = None  # ``(B, E, d)`` encoder states of an encoder-decoder
    encoder_mask: Tensor | None = None  # ``(B, E)``
    cross: KeyValues = ()  # cross-attention keys and values; they depend on the encoder alone

    def cache(self) -> Cache:
        """A cache for one use; it grows in place unless gradients are wanted."""
        growing = not torch.is_grad_enabled()
        own = wrap_cache(self.key_values, growing=growing)
        if self.encoder is None:
            return own
        return EncoderDecoderCache(own, wrap_cache(self.cross, growing=False))

    def take(self, rows: Sequence[int] | Tensor) -> Prefix:
        """The prefix of the batch made of these rows."""
        at = torch.as_tensor(rows, dtype=torch.long, device=self.last.device)
        return replace(
            self,
            last=self.last[at],
            key_values=take_rows(self.key_values, at),
            mask=self.mask[at],
            lengths=self.lengths[at],
            encoder=None if self.encoder is None else self.encoder[at],
            encoder_mask=None if self.encoder_mask is None else self.encoder_mask[at],
            cross=take_rows(self.cross, at),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the stored states."""
        pairs = [tensor for pair in (*self.key_values, *self.cross) for tensor in pair]
        extra = [] if self.encoder is None else [self.encoder]
        return sum(tensor.numel() * tensor.element_size() for tensor in [*pairs, *extra])


def take_rows(key_values: KeyValues, rows: Tensor) -> KeyValues:
    """Keys and values of the batch made of these rows."""
    return tuple((_rows_of(keys, rows), _rows_of(values, rows)) for keys, values in key_values)


def _rows_of(states: Tensor, rows: Tensor) -> Tensor:
    # Layers of a large model lie on several devices, the row numbers on one.
    return states.index_select(0, rows.to(states.device))


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
    prefix: Prefix | None = None  # the unedited prefix, or None if it is computed at each use

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

    def check_edit(self, edit: Edit | None) -> None:
        """Refuses a per-row edit made for another number of prompts."""
        if edit is not None and edit.per_row and edit.theta_p.shape[1] != len(self):
            raise UserError(
                f"{len(self)} prompts but an edit of {edit.theta_p.shape[1]} rows; "
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
            for name in ("edit", "boost", "removal"):
                sums[name] = sums.get(name, 0.0) + row[name] * row["tokens"]

    def mean_ratios(self) -> dict[int, dict[str, float]]:
        """Mean edit ratios per edited token, by layer."""
        return {
            layer: {name: total / max(self.tokens[layer], 1) for name, total in sums.items()}
            for layer, sums in self.ratios.items()
        }
