"""The edit: its algebra, one checked edit, and the hook that runs it in a frozen model.

Section 3.2 of the paper: strengthen theta^P, then remove theta^N. ``apply_edit`` is the definition,
``edit_factors`` the same map written as ``I + U Z`` (rank 2). The map is linear, blind to the sign
and length of its directions, and *not* idempotent: never stack two edits.

Which positions are edited (A11) is the caller's choice: it computes an unedited cached prefix first
and enters :class:`EditHook` for the rest, which edits every position of every call made while it is
active. The hook itself never guesses positions from shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError

COMPUTE_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_PARTS = {"p_then_n": ("boost", "removal"), "n_then_p": ("removal", "boost")}
_ENTRIES = ("alpha_p", "alpha_n", "order", "positions", "site", "compute_dtype")
_TENSORS = ("theta_p", "theta_n", "gate_p", "gate_n")


def _project(x: Tensor, theta: Tensor) -> Tensor:
    """``(<x, theta> / <theta, theta>) theta``; a zero theta projects to zero."""
    square = (theta * theta).sum(-1, keepdim=True)
    # A zero row is the explicit identity row of a mixed batch; ``Edit`` refuses undeclared ones.
    square = torch.where(square > 0, square, torch.ones_like(square))
    return (x * theta).sum(-1, keepdim=True) / square * theta


def apply_edit(
    x: Tensor,
    theta_p: Tensor,
    theta_n: Tensor,
    *,
    alpha_p: float = 1.0,
    alpha_n: float = 1.0,
    order: str = "p_then_n",
) -> Tensor:
    """Applies the edit as the paper writes it, in the dtype of ``x``.

    Args:
        x: Activations, ``(..., d)``.
        theta_p: Direction to strengthen, ``(d,)`` or broadcastable to ``x``.
        theta_n: Direction to remove, likewise.
        alpha_p: Strength of the boost (paper: 1). 0 leaves the boost out.
        alpha_n: Strength of the removal (paper: 1). 0 leaves the removal out.
        order: ``p_then_n`` (paper) or ``n_then_p`` (AlignEZ).

    Returns:
        A new tensor shaped like ``x``.
    """
    check_option("edit_order", order)
    for part in ("p", "n") if order == "p_then_n" else ("n", "p"):
        # A strength of zero skips the part, so the unedited values stay bit-identical.
        if part == "p" and alpha_p != 0:
            x = x + alpha_p * _project(x, theta_p.to(x))
        if part == "n" and alpha_n != 0:
            x = x - alpha_n * _project(x, theta_n.to(x))
    return x


def edit_factors(
    theta_p: Tensor,
    theta_n: Tensor,
    alpha_p: float | Tensor = 1.0,
    alpha_n: float | Tensor = 1.0,
    order: str = "p_then_n",
) -> tuple[Tensor, Tensor]:
    """The edit as ``x + U (Z x)`` in float64; column 0 of U belongs to the part applied first.

    Args:
        theta_p: ``(..., d)``; leading axes are batches of edits.
        theta_n: ``(..., d)``.
        alpha_p: Strength, a number or a tensor shaped like the leading axes.
        alpha_n: Likewise.
        order: ``p_then_n`` or ``n_then_p``.

    Returns:
        ``U (..., d, 2)`` and ``Z (..., 2, d)``; a zero direction contributes nothing.
    """
    check_option("edit_order", order)
    p, n = _unit(theta_p.double()), _unit(theta_n.double())
    strength_p = torch.as_tensor(alpha_p, dtype=torch.float64, device=p.device)[..., None]
    strength_n = -torch.as_tensor(alpha_n, dtype=torch.float64, device=p.device)[..., None]
    first, second = (p, strength_p), (n, strength_n)
    if order == "n_then_p":
        first, second = second, first
    c = (p * n).sum(-1, keepdim=True)
    u = torch.stack([first[1] * first[0], second[1] * second[0]], dim=-1)
    # The second part sees the already changed x, hence its cross term with the first.
    z = torch.stack([first[0], second[0] + first[1] * c * first[0]], dim=-2)
    return u, z


def _unit(theta: Tensor) -> Tensor:
    norm = theta.norm(dim=-1, keepdim=True)
    # clamp_min keeps the gradient of a zero row finite, where norm() alone would give NaN.
    return torch.where(norm > 0, theta / norm.clamp_min(1e-300), torch.zeros_like(theta))


def check_option(field: str, value: str) -> None:
    """Refuses a value that the setting of this name could not have."""
    options = EditSettings.options_of(field)
    if value not in options:
        raise UserError(f"{field} is {value!r}; choose one of {', '.join(options)}.")


class AnyEdit(Protocol):
    """What :class:`EditHook` runs: one map ``x + U (Z x) + v`` per layer.

    :class:`Edit` is the paper's; ``core.affine.AffineEdit`` is any other, such as two in sequence.
    """

    @property
    def layers(self) -> tuple[int, ...]: ...  # edited decoder layers, unique

    @property
    def positions(self) -> str: ...  # ``last`` | ``all`` | ``generated``

    @property
    def site(self) -> str: ...  # which module output is edited (A1)

    @property
    def compute_dtype(self) -> str: ...  # arithmetic of the hook (A22)

    @property
    def d(self) -> int: ...  # width of the edited output

    @property
    def n_rows(self) -> int: ...  # batch rows with an edit each; 0 for one that all rows share

    @property
    def per_row(self) -> bool: ...  # whether every batch row has its own edit

    @property
    def parts(self) -> tuple[str, ...]: ...  # names of the columns of U that ratios are told of

    @property
    def idle(self) -> bool: ...  # whether outputs may be left as they are, bit for bit

    @property
    def changes_anything(self) -> bool: ...  # whether any layer and row is changed

    def factors(self, row: int) -> tuple[Tensor, Tensor]:
        """``U ([B,] d, r)`` and ``Z ([B,] r, d)`` of layer ``layers[row]``, float64."""

    def shift(self, row: int) -> Tensor | None:
        """``v ([B,] d)`` of layer ``layers[row]``, float64; None where nothing is added."""

    def rows(self, index: Sequence[int] | Tensor) -> Self:
        """The edit of the batch made of these rows; a shared edit is returned unchanged."""

    def repeat_rows(self, n: int) -> Self:
        """Every row n times in a row, as beam search repeats the batch."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One checked edit (R1, R4)."""

    # Edited decoder layers, unique; row i of the directions belongs to ``layers[i]``
    layers: tuple[int, ...]
    theta_p: Tensor  # ``(L, d)`` shared by the batch, or ``(L, B, d)``, one edit per batch row
    theta_n: Tensor  # same shape
    alpha_p: float = 1.0  # boost strength; with 0 ``theta_p`` is unused and may be zero
    alpha_n: float = 1.0  # removal strength; likewise
    order: str = "p_then_n"  # ``p_then_n`` or ``n_then_p``
    # ``last`` | ``all`` | ``generated``; realised by whoever splits the prompt
    positions: str = "last"
    site: str = "mlp_out"  # which module output is edited (A1)
    # Bool ``(L,)`` or ``(L, B)``; False leaves the boost of that layer out (A9)
    gate_p: Tensor | None = None
    gate_n: Tensor | None = None  # same for the removal
    # Bool ``(L, B)``; True declares a row of zeros that leaves its text unedited
    identity: Tensor | None = None
    compute_dtype: str = "float32"  # ``float32`` or ``float64``, the arithmetic of the hook (A22)

    def __post_init__(self) -> None:
        for name in ("order", "positions", "site", "compute_dtype"):
            check_option(f"edit_{name}", getattr(self, name))
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

    @classmethod
    def of(
        cls,
        settings: EditSettings,
        layers: Sequence[int],
        theta_p: Tensor,
        theta_n: Tensor,
        **parts: Any,
    ) -> Edit:
        """The edit of ``layers`` under the ``edit_*`` settings.

        ``parts`` are gates, and strengths other than those of the settings.
        """
        given: dict[str, Any] = {name: getattr(settings, f"edit_{name}") for name in _ENTRIES}
        return cls(tuple(layers), theta_p, theta_n, **{**given, **parts})

    def record(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A shared edit as JSON values and tensors by name, for :meth:`from_record`."""
        entry = {"layers": list(self.layers)} | {name: getattr(self, name) for name in _ENTRIES}
        found = {name: getattr(self, name) for name in _TENSORS}
        return entry, {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_record(cls, entry: Mapping[str, Any], tensors: Mapping[str, Any]) -> Edit:
        """The edit of a :meth:`record`; tensors may come back as arrays."""
        parts: dict[str, Any] = {name: entry[name] for name in _ENTRIES}
        parts |= {name: torch.as_tensor(tensors[name]) for name in _TENSORS if name in tensors}
        gates = {name: parts[name].bool() for name in ("gate_p", "gate_n") if name in parts}
        return cls(layers=tuple(entry["layers"]), **parts | gates)

    @property
    def per_row(self) -> bool:
        """Whether every batch row has its own directions."""
        return self.theta_p.dim() == 3

    @property
    def n_rows(self) -> int:
        """Batch rows with directions of their own; 0 for a shared edit."""
        return int(self.theta_p.shape[1]) if self.per_row else 0

    @property
    def d(self) -> int:
        """Width of the edited output."""
        return int(self.theta_p.shape[-1])

    @property
    def parts(self) -> tuple[str, ...]:
        """What each column of U is: the part applied first, then the other."""
        return _PARTS[self.order]

    @property
    def idle(self) -> bool:
        """Whether both strengths are 0, so that outputs are left as they are."""
        return self.alpha_p == 0 and self.alpha_n == 0

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

    def without_strength(self) -> Edit:
        """The edit at strength 0: it changes nothing, and can be used wherever an edit can."""
        return replace(self, alpha_p=0.0, alpha_n=0.0)

    def factors(self, row: int) -> tuple[Tensor, Tensor]:
        """``U`` and ``Z`` of layer ``layers[row]``, float64, with gates and strengths baked in."""
        strength_p, strength_n = self.strengths(row)
        return edit_factors(
            self.theta_p[row], self.theta_n[row], strength_p, strength_n, order=self.order
        )

    def shift(self, row: int) -> Tensor | None:  # noqa: ARG002  (see AnyEdit)
        """None: the paper's edit adds no vector."""
        return None

    def rows(self, index: Sequence[int] | Tensor) -> Edit:
        """The per-row edit of the batch made of these rows; a shared edit is returned unchanged."""
        if not self.per_row:
            return self
        at = torch.as_tensor(index, dtype=torch.long, device=self.theta_p.device)
        picked: dict[str, Any] = {"theta_p": self.theta_p[:, at], "theta_n": self.theta_n[:, at]}
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
        for name in (*_ENTRIES, "d"):
            if len({getattr(edit, name) for edit in given}) > 1:
                raise UserError(f"Edits of one batch must agree in {name}; stack them separately.")
        layers = tuple(sorted({layer for edit in given for layer in edit.layers}))
        if not allow_missing and any(set(edit.layers) != set(layers) for edit in given):
            raise UserError(
                "Edits of one batch differ in their layers; pass allow_missing=True to mix them."
            )
        like = given[0].theta_p
        zero = torch.zeros_like(like[0])
        rows: list[tuple[Tensor, Tensor, bool, bool, bool]] = []
        for layer in layers:
            for edit in edits:
                if edit is None or layer not in edit.layers:
                    rows.append((zero, zero, True, True, True))
                    continue
                at = edit.layers.index(layer)
                gates = [g is None or bool(g[at]) for g in (edit.gate_p, edit.gate_n)]
                thetas = edit.theta_p[at].to(like), edit.theta_n[at].to(like)
                rows.append((*thetas, gates[0], gates[1], False))
        theta_p, theta_n, gate_p, gate_n, identity = zip(*rows, strict=True)
        shape = (len(layers), len(edits))
        return replace(
            given[0],
            layers=layers,
            theta_p=torch.stack(theta_p).view(*shape, -1),
            theta_n=torch.stack(theta_n).view(*shape, -1),
            gate_p=torch.tensor(gate_p).view(shape),
            gate_n=torch.tensor(gate_n).view(shape),
            identity=torch.tensor(identity).view(shape),
        )


@dataclass(frozen=True)
class _Plan:
    """How outputs of one shape, dtype and device are edited at one layer.

    In a small model a decoding step takes as long as some hundred calls of torch, and the hook runs
    at every layer of every step. What the last call worked out is therefore kept for the next.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    tokens: int  # edited positions per call
    casts: bool  # the arithmetic runs in another type
    lone: bool  # every row is one vector with factors of its own
    z: Tensor  # Z transposed, (d, r) or (B, d, r); r is 2 for the paper's edit
    u: Tensor  # U transposed, (r, d) or (B, r, d)
    v: Tensor | None  # what is added, (d,) or (B, d)


class EditHook:
    """Context manager that edits the outputs of the sites of ``edit.layers``.

    Args:
        modules: The sites of *all* decoder layers, in layer order. A site returns ``(B, T, d)`` or
            ``(B, d)``, or a tuple starting with it.
        edit: Shared or per-row edit of any kind. Per-row edits need as many rows as the batch; with
            beams pass ``edit.repeat_rows(num_beams)``.
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
        edit: AnyEdit,
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
        self._d, self._rows = edit.d, edit.n_rows
        self._unchanged = edit.idle
        self.calls = dict.fromkeys(edit.layers, 0)
        self.tokens = dict.fromkeys(edit.layers, 0)
        names = ("edit", *sorted(edit.parts))
        self._sums = {layer: dict.fromkeys(names, 0.0) for layer in edit.layers}
        self._handles: list[RemovableHandle] = []
        self._active = False
        self._plans: dict[int, _Plan] = {}  # by row of the directions

    def __enter__(self) -> EditHook:
        if self._handles:
            raise RuntimeError("This EditHook is already active; an edit is never applied twice.")
        self._active = True
        try:
            for row, layer in enumerate(self.edit.layers):
                handle = self.modules[layer].register_forward_hook(self._make_hook(row, layer))
                self._handles.append(handle)
            return self
        except BaseException:  # Ctrl-C between two layers: the block is not entered, so not left
            self.remove()
            raise

    def remove(self) -> None:
        """Takes the edit out, as leaving the block does; once more does no harm."""
        self._active = False  # first: a hook that an interrupt leaves behind changes nothing
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()
        self._plans.clear()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.remove()
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

        ``edit`` is the whole change, ``boost`` and ``removal`` its parts where the edit has them.
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
            if not self._active:
                return output
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
        if plan is None or (plan.shape, plan.dtype, plan.device) != (x.shape, x.dtype, x.device):
            plan = self._planned(x, row, layer)
        self.calls[layer] += 1
        self.tokens[layer] += plan.tokens
        if self._unchanged:
            return x
        if torch.is_autocast_enabled(x.device.type):
            # Autocast would run the two small products in half precision and lose digits.
            with torch.autocast(device_type=x.device.type, enabled=False):
                return self._changed(x, plan, layer)
        return self._changed(x, plan, layer)

    def _changed(self, x: Tensor, plan: _Plan, layer: int) -> Tensor:
        wide = x.to(plan.z.dtype) if plan.casts else x
        if plan.lone:  # (B, d) with per-row factors
            parts = (wide.unsqueeze(1) @ plan.z).squeeze(1)  # (B, r)
            change = (parts.unsqueeze(1) @ plan.u).squeeze(1)
        else:
            parts = wide @ plan.z  # (B, T, r)
            change = parts @ plan.u  # (B, T, d)
        if plan.v is not None:
            per_position = plan.v.dim() == 2 and x.dim() == 3  # a vector per row, many positions
            change = change + (plan.v[:, None] if per_position else plan.v)
        if self.diagnostics:
            self._measure(wide, change, parts, plan.u, layer)
        return (wide + change).to(x.dtype) if plan.casts else wide + change

    def _planned(self, x: Tensor, row: int, layer: int) -> _Plan:
        self._check_output(x, layer)
        dtype = torch.promote_types(COMPUTE_DTYPES[self.edit.compute_dtype], x.dtype)
        last = self._plans.get(row)
        if last is not None and last.dtype == x.dtype and last.device == x.device:
            u, z, v = last.u, last.z, last.v
        else:
            u, z = (f.to(device=x.device, dtype=dtype).mT for f in self.edit.factors(row))
            added = self.edit.shift(row)
            v = None if added is None else added.to(device=x.device, dtype=dtype)
        plan = _Plan(
            x.shape,
            x.dtype,
            x.device,
            tokens=x.numel() // self._d,
            casts=x.dtype != dtype,
            lone=u.dim() == 3 and x.dim() == 2,
            z=z,
            u=u,
            v=v,
        )
        # Kept factors would tie two backward passes to one graph: keep those of frozen edits only.
        if not any(part is not None and part.requires_grad for part in (u, z, v)):
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
        if not self.edit.parts:
            return
        sizes = u.norm(dim=-1)  # (2,) or (B, 2): directions are unit, so these are the strengths
        if u.dim() == 3 and parts.dim() == 3:
            sizes = sizes[:, None, :]
        both = (parts.abs() * sizes / length[..., None]).double().flatten(0, -2).sum(0)
        for name, value in zip(self.edit.parts, both, strict=True):
            sums[name] += float(value)
