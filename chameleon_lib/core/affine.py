"""Edits beyond one pair of directions: any map ``x + U (Z x) + v``, such as two edits in sequence.

Two edits at one layer, M1 and then M2, are one edit again. With ``M = I + U Z`` their product is
``M2 M1 - I = [U1 U2] [Z1; Z2 + Z2 U1 Z1]``: the ranks add up, so a collective edit and then a
user's own one are one adapter of rank 4. The order matters, for the two do not commute. A vector
that is added (activation addition; StyleVector, arXiv 2503.05213; BiPO, arXiv 2406.00045) is the
case of rank 0. At the MLP output it is the same as at the residual stream behind the block, except
in families that normalise the MLP output first (Gemma 2 and 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.core.edit import AnyEdit, check_option
from chameleon_lib.errors import UserError

_SHARED = ("positions", "site", "compute_dtype", "d")


@dataclass(frozen=True, eq=False)
class AffineEdit:
    """One map per layer, for the hook and the exports alike; see ``core.edit.AnyEdit``."""

    # Edited decoder layers, unique; row i of the tensors belongs to ``layers[i]``
    layers: tuple[int, ...]
    u: Tensor  # ``(L, d, r)`` shared by the batch, or ``(L, B, d, r)``, one edit per batch row
    z: Tensor  # ``(L, r, d)`` or ``(L, B, r, d)``
    v: Tensor | None = None  # ``(L, d)`` or ``(L, B, d)``; None adds nothing
    positions: str = "last"  # ``last`` | ``all`` | ``generated``
    site: str = "mlp_out"  # which module output is edited (A1)
    compute_dtype: str = "float32"  # ``float32`` or ``float64``, the arithmetic of the hook (A22)

    def __post_init__(self) -> None:
        for name in ("positions", "site", "compute_dtype"):
            check_option(f"edit_{name}", getattr(self, name))
        if not self.layers or len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise UserError(
                f"An edit needs one or more distinct layer numbers >= 0, not {self.layers}."
            )
        u, z = tuple(self.u.shape), tuple(self.z.shape)
        if len(u) not in (3, 4) or z != (*u[:-2], u[-1], u[-2]) or u[0] != len(self.layers):
            raise UserError(
                f"U {u} and Z {z} of {len(self.layers)} layers must be (L, d, r) and (L, r, d), or "
                "(L, B, d, r) and (L, B, r, d)."
            )
        if self.v is not None and tuple(self.v.shape) != u[:-1]:
            raise UserError(f"The added vector {tuple(self.v.shape)} must have shape {u[:-1]}.")
        for part in (self.u, self.z, self.v):
            if part is not None and not bool(torch.isfinite(part).all()):
                raise UserError("The edit holds a number that is not finite; compute it again.")

    @classmethod
    def of(cls, edit: AnyEdit) -> AffineEdit:
        """Any edit as the map that it is, float64."""
        if isinstance(edit, cls):
            return edit
        factors = [edit.factors(row) for row in range(len(edit.layers))]
        shifts = [edit.shift(row) for row in range(len(edit.layers))]
        given = [shift for shift in shifts if shift is not None]
        u, z = (torch.stack(parts) for parts in zip(*factors, strict=True))
        v = torch.stack(given) if len(given) == len(shifts) else None
        how: dict[str, Any] = {name: getattr(edit, name) for name in _SHARED[:-1]}
        return cls(edit.layers, u, z, v, **how)

    @classmethod
    def adding(cls, layers: Sequence[int], v: Tensor, **how: Any) -> AffineEdit:
        """An edit that adds ``v``, ``(L, d)`` or ``(L, B, d)``; ``how`` are further fields."""
        empty = v.new_zeros(*v.shape, 0)
        return cls(tuple(layers), empty, empty.mT, v, **how)

    @classmethod
    def sequence(cls, first: AnyEdit, second: AnyEdit) -> AffineEdit:
        """``first`` and then ``second`` as one edit, exact in float64.

        Args:
            first: What acts on the module's output. Its layers may be others than those of
                ``second``: a layer that one of the two lacks is edited by the other alone.
            second: What acts on what ``first`` made of it.

        Raises:
            UserError: The two differ in positions, site or width, or in the number of their rows.
        """
        one, two = cls.of(first), cls.of(second)
        _check_alike([one, two])
        if one.per_row and two.per_row and one.n_rows != two.n_rows:
            raise UserError(
                f"The first edit has {one.n_rows} rows, the second {two.n_rows}; give one each."
            )
        layers = tuple(sorted({*one.layers, *two.layers}))
        rows = max(one.n_rows, two.n_rows)
        (u1, z1, v1), (u2, z2, v2) = (part._spread(layers, rows) for part in (one, two))
        u, z = torch.cat([u1, u2], dim=-1), torch.cat([z1, z2 + z2 @ u1 @ z1], dim=-2)
        v = None
        if one.v is not None or two.v is not None:
            v = v1 + (u2 @ (z2 @ v1[..., None]))[..., 0] + v2
        return replace(one, layers=layers, u=u, z=z, v=v)

    @classmethod
    def stack(cls, edits: Sequence[AnyEdit | None]) -> AffineEdit:
        """One per-row edit from shared edits of any rank and layers; ``None`` changes nothing.

        Raises:
            UserError: No edit, one with rows of its own, or edits that differ in their positions,
                site or width.
        """
        given = {id(edit): cls.of(edit) for edit in edits if edit is not None}
        if not given or any(edit.per_row for edit in given.values()):
            raise UserError("AffineEdit.stack needs shared edits (or None), at least one of them.")
        _check_alike(list(given.values()))
        like = next(iter(given.values()))
        layers = tuple(sorted({layer for edit in given.values() for layer in edit.layers}))
        rank = max(edit.rank for edit in given.values())
        spread = {key: edit._spread(layers, 0, rank) for key, edit in given.items()}
        nothing = tuple(torch.zeros_like(part) for part in next(iter(spread.values())))
        parts = [nothing if edit is None else spread[id(edit)] for edit in edits]
        u, z, v = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
        added = any(edit.v is not None for edit in given.values())
        return replace(like, layers=layers, u=u, z=z, v=v if added else None)

    def _spread(
        self, layers: Sequence[int], rows: int, rank: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """U, Z and v in float64 at these layers, for this many rows (0: shared), up to a rank."""
        rank = self.rank if rank is None else rank
        lead = (len(layers), rows) if rows else (len(layers),)
        u = self.u.new_zeros(*lead, self.d, rank, dtype=torch.float64)
        z, v = u.mT.clone(), u.new_zeros(*lead, self.d)
        for row, layer in enumerate(self.layers):
            at = layers.index(layer)
            u[at, ..., : self.rank] = self.u[row].double()
            z[at, ..., : self.rank, :] = self.z[row].double()
            if self.v is not None:
                v[at] = self.v[row].double()
        return u, z, v

    @property
    def rank(self) -> int:
        """Columns of U, of which some may be zero; 0 where a vector is added and nothing else."""
        return int(self.u.shape[-1])

    @property
    def d(self) -> int:
        """Width of the edited output."""
        return int(self.u.shape[-2])

    @property
    def per_row(self) -> bool:
        """Whether every batch row has its own map."""
        return self.u.dim() == 4

    @property
    def n_rows(self) -> int:
        """Batch rows with a map of their own; 0 for a shared one."""
        return int(self.u.shape[1]) if self.per_row else 0

    @property
    def parts(self) -> tuple[str, ...]:
        """None: the columns are no boost and no removal."""
        return ()

    @property
    def changes_anything(self) -> bool:
        """Whether any layer and row is changed."""
        maps = bool((self.u.any(dim=-2) & self.z.any(dim=-1)).any())
        return maps or (self.v is not None and bool(self.v.any()))

    @property
    def idle(self) -> bool:
        """Whether nothing is changed, and nothing is being learned either."""
        parts = [part for part in (self.u, self.z, self.v) if part is not None]
        return not any(part.requires_grad for part in parts) and not self.changes_anything

    def factors(self, row: int) -> tuple[Tensor, Tensor]:
        """``U`` and ``Z`` of layer ``layers[row]``, float64."""
        return self.u[row].double(), self.z[row].double()

    def shift(self, row: int) -> Tensor | None:
        """What is added at layer ``layers[row]``, float64, or None."""
        return None if self.v is None else self.v[row].double()

    def scaled(self, strength: float) -> AffineEdit:
        """``x + strength · (M x + v - x)``: the whole change, that many times."""
        v = None if self.v is None else self.v * strength
        return replace(self, u=self.u * strength, v=v)

    def rows(self, index: Sequence[int] | Tensor) -> AffineEdit:
        """The per-row edit of the batch made of these rows; a shared edit is returned unchanged."""
        if not self.per_row:
            return self
        at = torch.as_tensor(index, dtype=torch.long, device=self.u.device)
        v = None if self.v is None else self.v[:, at]
        return replace(self, u=self.u[:, at], z=self.z[:, at], v=v)

    def repeat_rows(self, n: int) -> AffineEdit:
        """Every row n times in a row, as beam search repeats the batch."""
        if not self.per_row:
            return self
        return self.rows(torch.arange(self.n_rows).repeat_interleave(n))


def _check_alike(edits: Sequence[AffineEdit]) -> None:
    for name in _SHARED:
        if len({getattr(edit, name) for edit in edits}) > 1:
            raise UserError(f"Edits that are joined must agree in {name}; make them alike.")
