"""The unedited prefixes of prompts, which every later use of a batch shares.

A ``Prefix`` holds plain key and value tensors. Each use builds a fresh cache *around* them: the
tensors are never written to, so nothing has to be copied before or cropped back after a use, and a
use that fails half-way leaves the prefix intact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

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
