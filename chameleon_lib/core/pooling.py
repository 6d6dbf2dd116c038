"""Fits of many users in bounded memory.

What a fit must hold for all users at once are the activations of the pairs, ``2 L K d`` float32:
CCS visits every pair in every epoch. Everything else is made and dropped in parts: prompts, tokens
and embeddings for some users, readings for some pairs, working copies for some layers. The results
are those of the whole, up to rounding: no text depends on what is batched beside it, and a layer's
directions depend on no other layer.

The activations themselves grow with the pairs, 1 MiB each for 32 layers of width 4096.
``pairs_k_max`` bounds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from chameleon_lib.core.directions import Directions, fit_directions
from chameleon_lib.core.preferences import PreferencePair, keep_different, pair_texts
from chameleon_lib.core.protocols import Backbone
from chameleon_lib.core.settings import EditSettings

USERS = 64  # whose texts are in work at a time
PAIRS = 256  # that are read at a time
LAYER_BYTES = 64 << 20  # activations of one kind that directions are found from at a time

Part = TypeVar("Part")


def parts(items: Sequence[Part], size: int) -> Iterator[Sequence[Part]]:
    """The items in order, ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass(frozen=True)
class Pool:
    """What a fit is made from.

    Attributes:
        different: Pairs with two different outputs, at most ``pairs_k_max``.
        identical: Pairs whose outputs agree, at most as many; the leash of a fitted edit.
        n_identical: How many agreed before the draw.
        users: Ids of all whose pairs are in the pool, in order.
    """

    different: list[PreferencePair]
    identical: list[PreferencePair]
    n_identical: int
    users: tuple[str, ...]


def pooled(pairs: Sequence[PreferencePair], settings: EditSettings) -> Pool:
    """The pool of a fit from the pairs of one or many users."""
    different, identical = keep_different(pairs, settings)
    chosen, agreed = drawn(different, settings), drawn(identical, settings)
    members = {pair.user_id for pair in (*chosen, *agreed)}
    users = dict.fromkeys(pair.user_id for pair in pairs if pair.user_id in members)
    return Pool(chosen, agreed, len(identical), tuple(users))


def drawn(pairs: Sequence[PreferencePair], settings: EditSettings) -> list[PreferencePair]:
    """At most ``pairs_k_max`` pairs, in their order.

    Every pair has a place in a random order made of ``seed``, user and query, and the first ones
    stay: more users change the draw only as far as their own pairs come before others.
    """
    limit = settings.pairs_k_max
    if limit is None or len(pairs) <= limit:
        return list(pairs)

    def place(at: int) -> bytes:
        pair = pairs[at]
        text = f"{settings.seed}\0{pair.user_id}\0{pair.query_id}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    return [pairs[at] for at in sorted(sorted(range(len(pairs)), key=place)[:limit])]


def read_pairs(
    backbone: Backbone, task: str, pairs: Sequence[PreferencePair], settings: EditSettings
) -> tuple[Tensor, Tensor]:
    """``H^P`` and ``H^N``, (L, K, d) float32 each, without a second copy of either."""
    h_p = h_n = torch.zeros(backbone.n_layers, 0, backbone.d)
    at = 0
    for some in parts(pairs, PAIRS):
        texts = [text for pair in some for text in pair_texts(task, pair, settings)]
        h = backbone.activations(
            [context for context, _ in texts],
            [answer for _, answer in texts],
            pooling=settings.embed_pooling,  # type: ignore[arg-type]
            site=settings.edit_site,
        )  # (L, 2 K', d)
        if at == 0:
            h_p, h_n = (h.new_empty(h.shape[0], len(pairs), h.shape[2]) for _ in "pn")
        h_p[:, at : at + len(some)] = h[:, 0::2]
        h_n[:, at : at + len(some)] = h[:, 1::2]
        at += len(some)
    return h_p, h_n


def directions_by_layers(
    h_p: Tensor, h_n: Tensor, settings: EditSettings, seed: int
) -> Directions:
    """:func:`fit_directions` of one group, for so many layers at a time as memory shall hold.

    Args:
        h_p: ``(L, K, d)``.
        h_n: Same shape and row order.
        settings: As in ``fit_directions``.
        seed: Likewise.
    """
    size = max(1, LAYER_BYTES // max(1, h_p[0].numel() * h_p.element_size()))
    # Random directions are one draw for all layers.
    whole = "random" in (settings.direction_personal, settings.direction_neutral)
    if whole or size >= len(h_p):
        return fit_directions(h_p, h_n, settings, seed)
    found = [
        fit_directions(h_p[at : at + size], h_n[at : at + size], settings, seed)
        for at in range(0, len(h_p), size)
    ]
    names = ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n")
    joined: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in found]) for name in names
    }
    joined["diagnostics"] = {
        name: torch.cat([part.diagnostics[name] for part in found]) for name in found[0].diagnostics
    }
    return replace(found[0], **joined)
