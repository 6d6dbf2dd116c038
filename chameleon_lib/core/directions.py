"""Directions of all layers with their diagnostics, and the control directions.

Sections 3.6 to 3.8, 11 and 12 of the method reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.core.ccs import check_pairs, fit_ccs, shuffle_pairs
from chameleon_lib.core.diagnostics import (
    CCS_NUMBERS,
    ccs_checks,
    ccs_diagnostics,
    geometry,
    mean_difference,
)
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.estimators import neutral_direction, personal_direction, unit
from chameleon_lib.core.layers import choose_layers
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError

CONTROLS = (
    "random",
    "from_neutral",
    "mean_difference",
    "shuffled_pairs",
    "p_only",
    "n_only",
    "svd_diff",
    "logistic",
)


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions of every layer; layers x users where users were batched.

    Attributes:
        theta_p: ``(L, d)`` or ``(U, L, d)``, unit vectors (zeros where the part is left out).
        theta_n: Same shape.
        ccs_loss: ``(L,)`` or ``(U, L)``, after ``layers_loss_stat``; NaN where CCS was not fitted.
        alpha_p: Boost strength these directions ask for (0 for N only).
        alpha_n: Removal strength likewise.
        gate_p: Bool like ``ccs_loss``: the boost stays (A9); all True without a sign gate.
        gate_n: Same for the removal.
        diagnostics: Named tensors like ``ccs_loss``.
    """

    theta_p: Tensor
    theta_n: Tensor
    ccs_loss: Tensor
    alpha_p: float
    alpha_n: float
    gate_p: Tensor
    gate_n: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    def user(self, index: int) -> Directions:
        """The directions of one user of a batch."""
        if self.theta_p.dim() != 3:
            raise UserError("These directions are not batched over users.")
        names = ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n")
        picked: dict[str, Any] = {name: getattr(self, name)[index] for name in names}
        picked["diagnostics"] = {name: value[index] for name, value in self.diagnostics.items()}
        return replace(self, **picked)

    def choose_layers(self, settings: EditSettings) -> tuple[int, ...]:
        """The edited layers by ``layers_rule`` and ``layers_k`` (A5)."""
        return choose_layers(self.ccs_loss, settings.layers_rule, settings.layers_k)

    def to_edit(self, settings: EditSettings, layers: tuple[int, ...] | None = None) -> Edit:
        """The edit at ``layers``, by default those the settings' rule picks."""
        layers = self.choose_layers(settings) if layers is None else layers
        at = list(layers)
        return Edit(
            layers=layers,
            theta_p=self.theta_p[at],
            theta_n=self.theta_n[at],
            alpha_p=self.alpha_p,
            alpha_n=self.alpha_n,
            order=settings.edit_order,
            positions=settings.edit_positions,
            site=settings.edit_site,
            gate_p=self.gate_p[at],
            gate_n=self.gate_n[at],
            compute_dtype=settings.edit_compute_dtype,
        )

    def rows(self) -> list[dict[str, float]]:
        """One record of diagnostics per layer."""
        if self.ccs_loss.dim() != 1:
            raise UserError("Pick one user first: directions.user(i).rows().")
        return [
            {"layer": layer}
            | {name: float(value[layer]) for name, value in self.diagnostics.items()}
            for layer in range(len(self.ccs_loss))
        ]


def fit_directions(
    h_p: Tensor,
    h_n: Tensor,
    settings: EditSettings,
    seed: int | None = None,
    mask: Tensor | None = None,
    *,
    diagnostics: bool = True,
) -> Directions:
    """theta^P, theta^N, CCS loss and diagnostics of every layer (and user).

    Args:
        h_p: ``(L, K, d)`` or ``(U, L, K, d)``.
        h_n: Same shape and row order.
        settings: The ``direction_*``, ``ccs_*``, ``layers_*`` and ``edit_*`` fields.
        seed: Seed of the restarts; ``settings.seed`` if None.
        mask: Bool ``(..., K)``, True for real pairs.
        diagnostics: If False, the extra CCS fits (shuffled, held out) are left out.
    """
    seed = settings.seed if seed is None else seed
    return _directions(h_p, h_n, settings, seed, mask, None, extra=diagnostics)


def _directions(
    h_p: Tensor,
    h_n: Tensor,
    settings: EditSettings,
    seed: int,
    mask: Tensor | None,
    main: Directions | None,
    *,
    extra: bool,
) -> Directions:
    """:func:`fit_directions`; theta^N and all that CCS found come from ``main`` if given."""
    lead, (k, d) = h_p.shape[:-2], h_p.shape[-2:]
    if len(lead) not in (1, 2) or h_n.shape != h_p.shape:
        raise UserError(
            f"h_p {tuple(h_p.shape)} and h_n {tuple(h_n.shape)} must both be "
            "(L, K, d) or (U, L, K, d)."
        )
    p, n = h_p.reshape(-1, k, d), h_n.reshape(-1, k, d)
    mask = check_pairs(n, p, None if mask is None else mask.reshape(-1, k))
    theta_p = personal_direction(settings.direction_personal, p, n, seed, mask)
    if main is None:
        theta_n, loss, found = _removal(p, n, mask, settings, seed, extra)
    else:
        theta_n, loss = main.theta_n.reshape(-1, d), main.ccs_loss.reshape(-1)
        found = {
            name: value.reshape(-1)
            for name, value in main.diagnostics.items()
            if name in CCS_NUMBERS
        }
    difference = mean_difference(p, n, mask)  # (G, d), from N to P
    gate_p = torch.ones(len(p), dtype=torch.bool, device=p.device)
    gate_n = gate_p.clone()
    if settings.edit_sign_gate == "class_mean":
        # Each direction must point to its own class; the CCS sign is the one training ended with.
        gate_p = (theta_p * difference).sum(-1) > 0
        gate_n = (theta_n * difference).sum(-1) < 0
    logged = geometry(p, n, mask, theta_p, theta_n, difference) | found
    return Directions(
        theta_p=theta_p.reshape(*lead, d),
        theta_n=theta_n.reshape(*lead, d),
        ccs_loss=loss.reshape(lead),
        alpha_p=0.0 if settings.direction_personal == "none" else settings.edit_alpha_p,
        alpha_n=0.0 if settings.direction_neutral == "none" else settings.edit_alpha_n,
        gate_p=gate_p.reshape(lead),
        gate_n=gate_n.reshape(lead),
        diagnostics={name: value.reshape(lead) for name, value in logged.items()},
    )


def _removal(
    p: Tensor, n: Tensor, mask: Tensor, settings: EditSettings, seed: int, extra: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """theta^N ``(G, d)``, CCS loss ``(G,)`` and CCS diagnostics of every group."""
    ccs = None
    # The layers are ranked by CCS loss even where another estimator gives theta^N.
    if settings.direction_neutral == "ccs" or settings.layers_rule != "all":
        ccs = fit_ccs(n, p, settings, seed, mask)
    if settings.direction_neutral == "ccs" and ccs is not None:
        theta_n = unit(ccs.theta, "ccs")
    else:
        theta_n = neutral_direction(settings.direction_neutral, n, p, settings, seed, mask)
    if ccs is None:
        return theta_n, torch.full((len(p),), float("nan"), device=p.device), {}
    loss = ccs.loss if settings.layers_loss_stat == "best_try" else ccs.losses.mean(1)
    checks = ccs_checks(p, n, settings, seed, mask) if extra else {}
    return theta_n, loss, ccs_diagnostics(ccs) | checks


def control_directions(
    name: str,
    h_p: Tensor,
    h_n: Tensor,
    settings: EditSettings,
    seed: int | None = None,
    mask: Tensor | None = None,
    main: Directions | None = None,
) -> Directions:
    """Directions of a mandatory control (method reference, section 11).

    Edit the layers of the main arm with them: ``control.to_edit(settings, layers=main_layers)``.

    Args:
        name: ``random`` (C9), ``from_neutral`` (C7), ``mean_difference`` (C8), ``shuffled_pairs``
            (C10), ``p_only``, ``n_only`` (C11), ``svd_diff``, ``logistic`` (C14).
        h_p: As in ``fit_directions``.
        h_n: As in ``fit_directions``.
        settings: Settings of the main arm.
        seed: Draw of ``random`` and ``shuffled_pairs``, and seed of the restarts.
        mask: As in ``fit_directions``.
        main: The main arm's directions from the same pairs, seed and settings; controls that keep
            its theta^N take that and the CCS numbers from it instead of fitting CCS again. The
            result is the same.
    """
    changes: dict[str, dict[str, str]] = {
        "random": {"direction_personal": "random", "direction_neutral": "random"},
        "from_neutral": {"direction_personal": "svd_n"},
        "mean_difference": {"direction_personal": "mean_diff", "direction_neutral": "none"},
        "svd_diff": {"direction_personal": "svd_diff"},
        "logistic": {"direction_neutral": "logistic"},
    }
    if name not in CONTROLS:
        raise UserError(f"There is no control {name!r}; choose one of {', '.join(CONTROLS)}.")
    seed = settings.seed if seed is None else seed
    if name == "shuffled_pairs":
        h_n, h_p = shuffle_pairs(h_n, h_p, seed)
    # A control sits at the layers of the main arm, so its own layers need no CCS ranking.
    control = settings.with_(layers_rule="all", layers_k=None, **changes.get(name, {}))
    # Without CCS there is nothing dear to keep: the main arm fitted it for its layers, if at all.
    keeps = name in ("p_only", "n_only", "from_neutral", "svd_diff")
    kept = main if keeps and control.direction_neutral == "ccs" else None
    directions = _directions(h_p, h_n, control, seed, mask, kept, extra=False)
    if name == "p_only":
        return replace(directions, alpha_n=0.0)
    if name == "n_only":
        return replace(directions, alpha_p=0.0)
    return directions
