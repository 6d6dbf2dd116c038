"""EditHook: runs an edit inside a frozen model, on every position of every call made while active.

Which positions are edited (A11) is the caller's choice: it computes an unedited cached prefix first
and enters the hook for the rest. The hook itself never guesses positions from shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chameleon_lib.errors import UserError

if TYPE_CHECKING:
    from chameleon_lib.core.edit import Edit

COMPUTE_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_PARTS = {"p_then_n": ("boost", "removal"), "n_then_p": ("removal", "boost")}


@dataclass(frozen=True)
class _Plan:
    """How outputs of one shape are edited at one layer.

    In a small model a decoding step takes as long as some hundred calls of torch, and the hook runs
    at every layer of every step. What the last call worked out is therefore kept for the next.

    Attributes:
        shape: Outputs of this shape,
        dtype: of this type,
        device: on this device are meant.
        kind: Kind of the device.
        tokens: Edited positions per call.
        casts: Whether the arithmetic runs in another type.
        lone: Whether every row is one vector with factors of its own.
        z: ``Z`` transposed, ``(d, 2)`` or ``(B, d, 2)``.
        u: ``U`` transposed, ``(2, d)`` or ``(B, 2, d)``.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    kind: str
    tokens: int
    casts: bool
    lone: bool
    z: Tensor
    u: Tensor


class EditHook:
    """Context manager that edits the outputs of the sites of ``edit.layers``.

    Args:
        modules: The sites of *all* decoder layers, in layer order. A site returns ``(B, T, d)`` or
            ``(B, d)``, or a tuple starting with it.
        edit: Shared or per-row edit. Per-row edits need as many rows as the batch; with beams pass
            ``edit.repeat_rows(num_beams)``.
        flat: If True, an output ``(B * T, d)`` holds the T positions of row 0, then those of row 1
            and so on (OPT), so per-row edits can be told apart.
        strict: If True, leaving the block without one call at every edited layer raises (R3).
        diagnostics: If True, collects the edit ratios that ``ratios()`` returns; costs time.

    Attributes:
        calls: Number of hooked calls per edited layer.
        tokens: Number of edited positions per edited layer, padding included.

    Outputs keep their dtype and device, are never written in place, and carry gradients to the
    directions. Leaving the block restores bit-identical outputs.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        edit: Edit,
        *,
        flat: bool = False,
        strict: bool = True,
        diagnostics: bool = False,
    ) -> None:
        missing = [layer for layer in edit.layers if layer >= len(modules)]
        if missing:
            raise UserError(
                f"The edit names layers {missing}, the model has layers 0 to {len(modules) - 1}; "
                "use directions made for this model."
            )
        self.modules, self.edit = tuple(modules), edit
        self.flat, self.strict, self.diagnostics = flat, strict, diagnostics
        self._d, self._rows = edit.d, edit.theta_p.shape[1] if edit.per_row else 0
        self._unchanged = edit.alpha_p == 0 and edit.alpha_n == 0
        self.calls = dict.fromkeys(edit.layers, 0)
        self.tokens = dict.fromkeys(edit.layers, 0)
        names = ("edit", "boost", "removal")
        self._sums = {layer: dict.fromkeys(names, 0.0) for layer in edit.layers}
        self._handles: list[RemovableHandle] = []
        self._plans: dict[int, _Plan] = {}  # by row of the directions

    def __enter__(self) -> EditHook:
        if self._handles:
            raise RuntimeError("This EditHook is already active; an edit is never applied twice.")
        for row, layer in enumerate(self.edit.layers):
            handle = self.modules[layer].register_forward_hook(self._make_hook(row, layer))
            self._handles.append(handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._plans.clear()
        if kind is None and self.strict:
            self._check_applied()

    def _check_applied(self) -> None:
        silent = [layer for layer, count in self.calls.items() if count == 0]
        if silent:
            raise UserError(
                f"The edit was never applied at layers {silent}: no forward pass reached them "
                "inside the EditHook block."
            )
        if self.diagnostics and any(self.tokens.values()) and self.edit.changes_anything:
            if all(sums["edit"] == 0 for sums in self._sums.values()):
                raise UserError("The edit ratio is 0 at every layer: the edit changed nothing.")

    def ratios(self) -> list[dict[str, float]]:
        """Per layer: calls, tokens, and the mean over edited tokens of ``||change|| / ||x||``.

        ``edit`` is the whole change, ``boost`` and ``removal`` its two parts (section 12 of the
        method reference). Only with ``diagnostics=True``.
        """
        if not self.diagnostics:
            raise UserError("Edit ratios are collected with EditHook(..., diagnostics=True) only.")
        return [
            {"layer": layer, "calls": self.calls[layer], "tokens": self.tokens[layer]}
            | {name: total / max(self.tokens[layer], 1) for name, total in sums.items()}
            for layer, sums in self._sums.items()
        ]

    def _make_hook(self, row: int, layer: int) -> Any:
        edited = self._joined if self.flat and self._rows else self._edited

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edited(output[0], row, layer), *output[1:])
            return edited(output, row, layer)

        return hook

    def _joined(self, x: Tensor, row: int, layer: int) -> Tensor:
        """Edits an output whose rows and positions may be joined into one axis."""
        if x.dim() != 2 or x.shape[0] % self._rows:
            return self._edited(x, row, layer)
        return self._edited(x.unflatten(0, (self._rows, -1)), row, layer).flatten(0, 1)

    def _edited(self, x: Tensor, row: int, layer: int) -> Tensor:
        plan = self._plans.get(row)
        if (
            plan is None
            or x.shape != plan.shape
            or x.dtype != plan.dtype
            or x.device != plan.device
        ):
            plan = self._planned(x, row, layer)
        self.calls[layer] += 1
        self.tokens[layer] += plan.tokens
        if self._unchanged:
            return x
        if torch.is_autocast_enabled(plan.kind):
            # Autocast would run the two small products in half precision and lose digits.
            with torch.autocast(device_type=plan.kind, enabled=False):
                return self._changed(x, plan, layer)
        return self._changed(x, plan, layer)

    def _changed(self, x: Tensor, plan: _Plan, layer: int) -> Tensor:
        wide = x.to(plan.z.dtype) if plan.casts else x
        if plan.lone:  # (B, d) with per-row factors
            parts = (wide.unsqueeze(1) @ plan.z).squeeze(1)  # (B, 2)
            change = (parts.unsqueeze(1) @ plan.u).squeeze(1)
        else:
            parts = wide @ plan.z  # (B, T, 2)
            change = parts @ plan.u  # (B, T, d)
        if self.diagnostics:
            self._measure(wide, change, parts, plan.u, layer)
        return (wide + change).to(x.dtype) if plan.casts else wide + change

    def _planned(self, x: Tensor, row: int, layer: int) -> _Plan:
        self._check_output(x, layer)
        dtype = torch.promote_types(COMPUTE_DTYPES[self.edit.compute_dtype], x.dtype)
        last = self._plans.get(row)
        if last is not None and last.dtype == x.dtype and last.device == x.device:
            u, z = last.u, last.z
        else:
            u, z = (f.to(device=x.device, dtype=dtype).mT for f in self.edit.factors(row))
        plan = _Plan(
            x.shape,
            x.dtype,
            x.device,
            kind=x.device.type,
            tokens=x.numel() // self._d,
            casts=x.dtype != dtype,
            lone=u.dim() == 3 and x.dim() == 2,
            z=z,
            u=u,
        )
        # Kept factors would tie two backward passes to one graph: keep those of frozen edits only.
        if not u.requires_grad and not z.requires_grad:
            self._plans[row] = plan
        return plan

    def _check_output(self, x: Tensor, layer: int) -> None:
        if not isinstance(x, Tensor) or x.dim() not in (2, 3):
            raise UserError(f"The site of layer {layer} must return a tensor of 2 or 3 axes.")
        if x.shape[-1] != self._d:
            raise UserError(
                f"Layer {layer} returns vectors of length {x.shape[-1]}, the directions have "
                f"{self._d}; use directions made for this model and site."
            )
        if self._rows and x.shape[0] != self._rows:
            raise UserError(
                f"The batch has {x.shape[0]} rows, the edit {self._rows}; use "
                "edit.rows(index) for a part of the batch, edit.repeat_rows(n) for n beams."
            )

    @torch.no_grad()
    def _measure(self, x: Tensor, change: Tensor, parts: Tensor, u: Tensor, layer: int) -> None:
        length = x.norm(dim=-1).clamp_min(torch.finfo(x.dtype).tiny)  # (B, T)
        sums = self._sums[layer]
        sums["edit"] += float((change.norm(dim=-1) / length).double().sum())
        sizes = u.norm(dim=-1)  # (2,) or (B, 2): directions are unit, so these are the strengths
        if u.dim() == 3 and parts.dim() == 3:
            sizes = sizes[:, None, :]
        both = (parts.abs() * sizes / length[..., None]).double().flatten(0, -2).sum(0)
        for name, value in zip(_PARTS[self.edit.order], both, strict=True):
            sums[name] += float(value)
