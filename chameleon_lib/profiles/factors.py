"""An edit compiled against one set of weights: the update ``B A`` of each edited projection.

With ``x = W h + b`` the edit ``x + U Z x`` adds ``U (Z W) h + U (Z b)``: ``A = Z W``, ``B = U``,
and a bias where the projection has one. The factors belong to this W and to no other, so a hash of
the edited matrices travels with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.kit.hashing import digest
from chameleon_lib.profiles.projections import Projection, projection

RANK = 2


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update of one projection, float64 on the CPU.

    Attributes:
        name: Full name of the projection.
        a: ``(r, d_ff)``, or ``(E, r, d_ff)`` for E experts.
        b: ``(d, r)``; the same for all experts.
        bias: ``(d,)``, or None if the projection has no bias.
        transposed: Whether the model stores the weight as ``(d_ff, d)``.
    """

    name: str
    a: Tensor
    b: Tensor
    bias: Tensor | None = None
    transposed: bool = False

    @property
    def rank(self) -> int:
        """Rows of ``a``."""
        return int(self.a.shape[-2])

    @property
    def delta(self) -> Tensor:
        """What is added to the weight: ``(d, d_ff)`` or ``(E, d, d_ff)``."""
        return self.b @ self.a

    def padded(self, rank: int) -> LowRank:
        """The same update with zero rows up to ``rank``, for servers that insist on a rank."""
        more = rank - self.rank
        a = torch.cat([self.a, self.a.new_zeros(*self.a.shape[:-2], more, self.a.shape[-1])], -2)
        b = torch.cat([self.b, self.b.new_zeros(self.b.shape[0], more)], dim=-1)
        return replace(self, a=a, b=b)


def compile_layers(edit: Edit, backbone: HFBackbone) -> Iterator[tuple[Projection, LowRank]]:
    """Each edited projection with its update, one layer at a time (a large W is held once)."""
    for row, layer in enumerate(edit.layers):
        found = projection(backbone, layer)
        u, z = (factor.detach().cpu() for factor in edit.factors(row))
        w = found.weight.cpu().double()
        bias = None if found.bias is None else u @ (z @ found.bias.cpu().double())
        yield found, LowRank(found.name, z @ w, u, bias, found.transposed)


@dataclass(frozen=True, eq=False)
class Compiled:
    """All updates of an edit, and the hash of the matrices they were made from."""

    updates: tuple[LowRank, ...]
    weights: str


def compile_edit(edit: Edit, backbone: HFBackbone) -> Compiled:
    """The updates of all edited layers, in the order of ``edit.layers``."""
    updates, hashes = [], {}
    for found, update in compile_layers(edit, backbone):
        updates.append(update)
        hashes[found.name] = hash_projection(found)
    return Compiled(tuple(updates), digest(hashes))


def hash_projection(found: Projection) -> str:
    """SHA-256 of a projection's weight and bias in the dtype in use."""
    return digest({"weight": found.weight, "bias": found.bias})


def weights_hash(backbone: HFBackbone, layers: tuple[int, ...]) -> str:
    """The hash ``compile_edit`` gives for these layers of this model."""
    found = (projection(backbone, layer) for layer in layers)
    return digest({item.name: hash_projection(item) for item in found})
