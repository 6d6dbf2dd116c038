"""The algebra of the edit (section 3.2 of the paper): strengthen theta^P, then remove theta^N.

``apply_edit`` is the definition, ``edit_factors`` the same map written as ``I + U Z`` (rank 2). The
map is linear, blind to the sign and length of its directions, and *not* idempotent: never stack two
edits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chameleon_lib.errors import UserError

ORDERS = ("p_then_n", "n_then_p")


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
    check_option("edit_order", order, ORDERS)
    for part in ("p", "n") if order == "p_then_n" else ("n", "p"):
        # A strength of zero skips the part, so the unedited values stay bit-identical.
        if part == "p" and alpha_p != 0:
            x = x + alpha_p * _project(x, theta_p.to(x))
        if part == "n" and alpha_n != 0:
            x = x - alpha_n * _project(x, theta_n.to(x))
    return x


def elementwise_boost(x: Tensor, theta_p: Tensor) -> Tensor:
    """``x + x * theta_p``: what AlignEZ code v1 runs as its boost; not a projection."""
    return x + x * theta_p.to(x)


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
    check_option("edit_order", order, ORDERS)
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


def check_option(field: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise UserError(f"{field} is {value!r}; choose one of {', '.join(options)}.")
