"""One checked edit (directions, strengths, layers) and the hook that runs it in a frozen model.

Section 3.2 of the paper. The arithmetic lives in ``algebra``, the hook in ``hook``; both are
exported here so that ``chameleon_lib.core.edit`` is the one place to import from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.core.algebra import (
    ORDERS,
    apply_edit,
    check_option,
    edit_factors,
    elementwise_boost,
)
from chameleon_lib.core.hook import COMPUTE_DTYPES, EditHook
from chameleon_lib.errors import UserError

__all__ = ["Edit", "EditHook", "apply_edit", "edit_factors", "elementwise_boost"]

POSITIONS = ("last", "all", "generated")
SITES = ("mlp_out", "gate_proj", "block_out")


@dataclass(frozen=True, eq=False)
class Edit:
    """One checked edit (R1, R4).

    Attributes:
        layers: Edited decoder layers, unique; row i of the directions belongs to ``layers[i]``.
        theta_p: ``(L, d)`` shared by the batch, or ``(L, B, d)``, one edit per batch row.
        theta_n: Same shape.
        alpha_p: Boost strength; with 0 ``theta_p`` is unused and may be zero.
        alpha_n: Removal strength; likewise.
        order: ``p_then_n`` or ``n_then_p``.
        positions: ``last`` | ``all`` | ``generated``; realised by whoever splits the prompt.
        site: Which module output is edited (A1).
        gate_p: Bool ``(L,)`` or ``(L, B)``; False leaves the boost of that layer out (A9).
        gate_n: Same for the removal.
        identity: Bool ``(L, B)``; True declares a row of zeros that leaves its text unedited.
        compute_dtype: ``float32`` or ``float64``, the arithmetic of the hook (A22).
    """

    layers: tuple[int, ...]
    theta_p: Tensor
    theta_n: Tensor
    alpha_p: float = 1.0
    alpha_n: float = 1.0
    order: str = "p_then_n"
    positions: str = "last"
    site: str = "mlp_out"
    gate_p: Tensor | None = None
    gate_n: Tensor | None = None
    identity: Tensor | None = None
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_option("edit_order", self.order, ORDERS)
        check_option("edit_positions", self.positions, POSITIONS)
        check_option("edit_site", self.site, SITES)
        check_option("edit_compute_dtype", self.compute_dtype, tuple(COMPUTE_DTYPES))
        if not self.layers or len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise UserError(
                f"An edit needs one or more distinct layer numbers >= 0, not {self.layers}."
            )
        shape = tuple(self.theta_p.shape)
        if tuple(self.theta_n.shape) != shape or len(shape) not in (2, 3):
            raise UserError(
                f"theta_p {shape} and theta_n {tuple(self.theta_n.shape)} must "
                "both be (L, d) or (L, B, d)."
            )
        if shape[0] != len(self.layers):
            raise UserError(f"The edit has {len(self.layers)} layers but {shape[0]} directions.")
        if self.identity is not None and tuple(self.identity.shape) != shape[:-1]:
            raise UserError(f"identity must have shape {shape[:-1]}.")
        for name, gate in (("gate_p", self.gate_p), ("gate_n", self.gate_n)):
            if gate is not None and tuple(gate.shape) not in (shape[:1], shape[:-1]):
                raise UserError(f"{name} must have shape {shape[:1]} or {shape[:-1]}.")
        self._check_direction("theta_p", self.theta_p, self.alpha_p)
        self._check_direction("theta_n", self.theta_n, self.alpha_n)

    def _check_direction(self, name: str, theta: Tensor, alpha: float) -> None:
        if not math.isfinite(alpha):
            raise UserError(f"The strength of {name} is {alpha}; give a finite number.")
        bad = ~torch.isfinite(theta).all(dim=-1)
        if alpha != 0:
            # A vector that repeats one number (0 included) is a placeholder, not a measurement.
            flat = (theta == theta[..., :1]).all(dim=-1) if self.d > 1 else (theta == 0).all(dim=-1)
            bad = bad | (flat if self.identity is None else flat & ~self.identity.to(flat.device))
        if bool(bad.any()):
            layer = self.layers[int(bad.nonzero()[0, 0])]
            raise UserError(
                f"{name} of layer {layer} is zero, constant or not finite; compute it again."
            )

    @property
    def per_row(self) -> bool:
        """Whether every batch row has its own directions."""
        return self.theta_p.dim() == 3

    @property
    def d(self) -> int:
        """Width of the edited output."""
        return int(self.theta_p.shape[-1])

    @property
    def changes_anything(self) -> bool:
        """Whether at least one layer (and row) has a non-zero strength left after gating."""
        return any(
            bool((strength != 0).any())
            for row in range(len(self.layers))
            for strength in self.strengths(row)
        )

    def strengths(self, row: int) -> tuple[Tensor, Tensor]:
        """Strengths of layer ``layers[row]`` after gating: scalars, or ``(B,)`` if per row."""
        values = []
        for alpha, gate in ((self.alpha_p, self.gate_p), (self.alpha_n, self.gate_n)):
            value = torch.full(self.theta_p.shape[1:-1], alpha, dtype=torch.float64)
            if gate is not None:
                value = value * gate[row].cpu()
            if self.identity is not None:
                value = value * ~self.identity[row].cpu()
            values.append(value.to(self.theta_p.device))
        return values[0], values[1]

    def factors(self, row: int) -> tuple[Tensor, Tensor]:
        """``U`` and ``Z`` of layer ``layers[row]``, float64, with gates and strengths baked in."""
        strength_p, strength_n = self.strengths(row)
        return edit_factors(
            self.theta_p[row], self.theta_n[row], strength_p, strength_n, order=self.order
        )

    def rows(self, index: Sequence[int] | Tensor) -> Edit:
        """The per-row edit of the batch made of these rows; a shared edit is returned unchanged."""
        if not self.per_row:
            return self
        at = torch.as_tensor(index, dtype=torch.long, device=self.theta_p.device)
        picked: dict[str, Any] = {
            "theta_p": self.theta_p[:, at],
            "theta_n": self.theta_n[:, at],
        }
        for name in ("gate_p", "gate_n", "identity"):
            value = getattr(self, name)
            if value is not None and value.dim() == 2:
                picked[name] = value[:, at.to(value.device)]
        return replace(self, **picked)

    def repeat_rows(self, n: int) -> Edit:
        """Every row n times in a row, as beam search repeats the batch."""
        if not self.per_row:
            return self
        return self.rows(torch.arange(self.theta_p.shape[1]).repeat_interleave(n))

    @staticmethod
    def stack(edits: Sequence[Edit | None], *, allow_missing: bool = False) -> Edit:
        """One per-row edit from shared edits; ``None`` is an explicitly unedited row.

        Args:
            edits: One shared edit (or None) per batch row.
            allow_missing: If True, rows may edit different layers and a layer that a row lacks is
                left unedited in that row. If False, differing layers raise.
        """
        given = [edit for edit in edits if edit is not None]
        if not given or any(edit.per_row for edit in given):
            raise UserError("Edit.stack needs shared edits (or None), at least one of them given.")
        common = ("alpha_p", "alpha_n", "order", "positions", "site", "compute_dtype", "d")
        for name in common:
            if len({getattr(edit, name) for edit in given}) > 1:
                raise UserError(f"Edits of one batch must agree in {name}; stack them separately.")
        layers = tuple(sorted({layer for edit in given for layer in edit.layers}))
        if not allow_missing and any(set(edit.layers) != set(layers) for edit in given):
            raise UserError(
                "Edits of one batch differ in their layers; pass allow_missing=True to mix them."
            )
        like = given[0].theta_p
        zero = torch.zeros_like(like[0])
        rows_p, rows_n, gates_p, gates_n, identity = [], [], [], [], []
        for layer in layers:
            for edit in edits:
                at = edit.layers.index(layer) if edit is not None and layer in edit.layers else None
                identity.append(at is None)
                if edit is None or at is None:
                    rows_p.append(zero)
                    rows_n.append(zero)
                    gates_p.append(True)
                    gates_n.append(True)
                    continue
                rows_p.append(edit.theta_p[at].to(like))
                rows_n.append(edit.theta_n[at].to(like))
                gates_p.append(edit.gate_p is None or bool(edit.gate_p[at]))
                gates_n.append(edit.gate_n is None or bool(edit.gate_n[at]))
        shape = (len(layers), len(edits))
        return replace(
            given[0],
            layers=layers,
            theta_p=torch.stack(rows_p).view(*shape, -1),
            theta_n=torch.stack(rows_n).view(*shape, -1),
            gate_p=torch.tensor(gates_p).view(shape),
            gate_n=torch.tensor(gates_n).view(shape),
            identity=torch.tensor(identity).view(shape),
        )
