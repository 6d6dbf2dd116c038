"""An edit compiled against one set of weights: the update ``B A`` of each edited projection.

The projection is the matrix that makes the MLP output. With ``x = W h + b`` the edit ``x + U Z x``
adds ``U (Z W) h + U (Z b)``: ``A = Z W``, ``B = U``, and a bias where the projection has one, or
where the edit adds a vector. W is
taken as it is really used: transposed where a family stores it so (GPT-2), dequantised where the
base is quantised, one per expert in a mixture. The factors belong to this W and to no other, so a
hash of the edited matrices travels with them.

An edit of weights (:mod:`chameleon_lib.editors`) is such an update already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.families import model_family
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.editors import Change, WeightEdit
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest

RANK = 2
_PROBE_ROWS = 256  # rows of the identity sent through a quantised projection at a time


@dataclass(frozen=True, eq=False)
class Projection:
    """The projection of one decoder layer.

    Attributes:
        name: Full module name (of a mixture: full parameter name).
        weight: ``(d, d_ff)``, or ``(E, d, d_ff)`` for E experts; the values in use, in the dtype
            the model computes in.
        bias: ``(d,)`` or None.
        transposed: Whether the model stores the weight as ``(d_ff, d)``.
        quantised: Whether the stored weight is not this matrix but a code of it.
    """

    name: str
    weight: Tensor
    bias: Tensor | None = None
    transposed: bool = False
    quantised: bool = False

    def hash(self) -> str:
        """SHA-256 of weight and bias in the dtype in use."""
        return digest({"weight": self.weight, "bias": self.bias})


def projection(backbone: HFBackbone, layer: int) -> Projection:
    """The projection of decoder layer ``layer``, with its weight as the model uses it.

    Raises:
        UserError: Unknown family, or a layer the model lacks.
    """
    entry = model_family(backbone.model.config.model_type)
    if layer >= backbone.n_layers:
        raise UserError(
            f"The edit names layer {layer}, {backbone.name} has layers 0 to "
            f"{backbone.n_layers - 1}; use directions made for this model."
        )
    name = entry.projection.format(i=layer)
    if entry.experts:
        return Projection(name, backbone.model.get_parameter(name).detach())
    return matrix_of(backbone, name)


def matrix_of(backbone: HFBackbone, name: str) -> Projection:
    """A linear module by its full name, with its weight as the model uses it.

    Raises:
        UserError: The model has none of that name.
    """
    try:
        module = backbone.model.get_submodule(name)
    except AttributeError as error:
        raise UserError(
            f"{backbone.name} has no module '{name}', which the edit changes; use the model that "
            "it was made for."
        ) from error
    transposed = isinstance(module, Conv1D)
    bias = getattr(module, "bias", None)
    if _is_plain(module):
        weight = module.weight.detach()
        weight = weight.T if transposed else weight
        return Projection(name, weight, None if bias is None else bias.detach(), transposed)
    weight, offset = _probed(module, backbone.model.dtype, backbone.device)
    return Projection(name, weight, None if bias is None else offset, transposed, quantised=True)


def _is_plain(module: Any) -> bool:
    """Whether ``module.weight`` is the matrix itself; quantisers subclass the module or tensor."""
    weight = module.weight
    return (
        type(module) in (nn.Linear, Conv1D)
        and type(weight) in (nn.Parameter, Tensor)
        and weight.is_floating_point()
    )


@torch.no_grad()
def _probed(module: Any, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weight ``(d, d_ff)`` and bias ``(d,)`` of a quantised projection.

    Every format has its own unpacking; the product with the identity is what all of them compute.
    """
    width = int(module.in_features)
    offset = module(torch.zeros(1, width, dtype=dtype, device=device))[0]
    columns = []
    for start in range(0, width, _PROBE_ROWS):
        unit = torch.eye(min(_PROBE_ROWS, width - start), width, dtype=dtype, device=device)
        columns.append(module(unit.roll(start, dims=1)) - offset)
    return torch.cat(columns).T.contiguous(), offset


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update of one projection, float64 on the CPU.

    Attributes:
        name: Full name of the projection.
        a: ``(r, d_ff)``, or ``(E, r, d_ff)`` for E experts.
        b: ``(d, r)``; the same for all experts.
        bias: ``(d,)``, or None if the projection has none or keeps it, and no vector is added.
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
        a = nn.functional.pad(self.a, (0, 0, 0, more))
        return replace(self, a=a, b=nn.functional.pad(self.b, (0, more)))


@dataclass(frozen=True, eq=False)
class _Whole(LowRank):
    """An update that has no factors; ``b`` is the whole of it."""

    @property
    def delta(self) -> Tensor:
        """What is added to the weight, ``(d, d_ff)``."""
        return self.b


def _update(change: Change, found: Projection) -> LowRank:
    """A change of a weight as an update of its projection.

    Raises:
        UserError: The matrix of the model has another shape.
    """
    left, right = (
        None if part is None else part.detach().cpu().double()
        for part in (change.left, change.right)
    )
    assert left is not None
    shape = (len(left), (left if right is None else right).shape[1])
    if shape != tuple(found.weight.shape):
        raise UserError(
            f"The edit adds a matrix of {shape} to '{change.module}', which is "
            f"{tuple(found.weight.shape)} here; use the model that it was made for."
        )
    if right is None:
        return _Whole(change.module, left.new_zeros(0, shape[1]), left, None, found.transposed)
    return LowRank(change.module, right, left, None, found.transposed)


def compile_layers(
    edit: AnyEdit | WeightEdit, backbone: HFBackbone
) -> Iterator[tuple[Projection, LowRank]]:
    """Each edited projection with its update, one layer at a time (a large W is held once)."""
    if isinstance(edit, WeightEdit):
        for change in edit.changes:
            found = matrix_of(backbone, change.module)
            yield found, _update(change, found)
        return
    for row, layer in enumerate(edit.layers):
        found = projection(backbone, layer)
        u, z = (factor.detach().cpu() for factor in edit.factors(row))
        w = found.weight.cpu().double()
        bias = None if found.bias is None else u @ (z @ found.bias.cpu().double())
        added = edit.shift(row)
        if added is not None:
            added = added.detach().cpu()
            bias = added if bias is None else bias + added
        yield found, LowRank(found.name, z @ w, u, bias, found.transposed)


@dataclass(frozen=True, eq=False)
class Compiled:
    """All updates of an edit, and the hash of the matrices they were made from."""

    updates: tuple[LowRank, ...]
    weights: str


def compile_edit(edit: AnyEdit | WeightEdit, backbone: HFBackbone) -> Compiled:
    """The updates of all edited layers, in the order of ``edit.layers`` or ``edit.changes``."""
    updates, hashes = [], {}
    for found, update in compile_layers(edit, backbone):
        updates.append(update)
        hashes[found.name] = found.hash()
    return Compiled(tuple(updates), digest(hashes))


def weights_hash(backbone: HFBackbone, layers: Sequence[int], modules: Sequence[str] = ()) -> str:
    """The hash ``compile_edit`` gives for these layers, or for these modules, of this model."""
    found = [projection(backbone, layer) for layer in layers]
    found += [matrix_of(backbone, name) for name in modules]
    return digest({item.name: item.hash() for item in found})
