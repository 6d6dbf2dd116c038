"""Which layers are edited: those with the lowest CCS loss (section 3.2 of the paper, A5)."""

from __future__ import annotations

import torch
from torch import Tensor

from chameleon_lib.errors import UserError

RULES = ("elbow", "elbow_literal", "top_k", "all")


def choose_layers(loss: Tensor, rule: str, k: int | None = None) -> tuple[int, ...]:
    """Layer numbers, ascending; ties of the loss go to the earlier layer.

    ``elbow``: sort the losses, take the running mean m, and keep the layers before its largest jump
    (AlignEZ, appendix A.5). ``elbow_literal`` keeps one layer fewer, as the published code does.

    Args:
        loss: ``(L,)``, one loss per layer.
        rule: ``elbow`` | ``elbow_literal`` | ``top_k`` | ``all``.
        k: Number of layers of ``top_k``.

    Raises:
        UserError: The rule keeps no layer (R17), or cannot be applied to these losses.
    """
    if rule not in RULES:
        raise UserError(f"layers_rule is {rule!r}; choose one of {', '.join(RULES)}.")
    if loss.dim() != 1 or loss.numel() == 0:
        raise UserError(f"Layer choice needs one loss per layer, not shape {tuple(loss.shape)}.")
    n = loss.numel()
    if rule == "all":
        return tuple(range(n))
    if not bool(torch.isfinite(loss).all()):
        raise UserError(f"layers_rule {rule} needs a finite CCS loss for every layer.")
    order = torch.argsort(loss.double(), stable=True)
    count = _top_k(n, k) if rule == "top_k" else _elbow(loss.double()[order])
    if rule == "elbow_literal":
        count -= 1
    if count < 1:
        raise UserError(
            f"layers_rule {rule} keeps no layer for these losses, so nothing would be edited; "
            "use elbow or top_k."
        )
    return tuple(sorted(order[:count].tolist()))


def _top_k(n: int, k: int | None) -> int:
    if k is None or not 1 <= k <= n:
        raise UserError(f"layers_rule top_k needs layers_k between 1 and {n}, not {k}.")
    return k


def _elbow(ascending: Tensor) -> int:
    """``k* = argmax_k m[k+1] - m[k]`` over k = 1 .. n-2, the smallest on ties."""
    n = ascending.numel()
    if n < 3:
        raise UserError(f"An elbow needs 3 layers, not {n}; use layers_rule top_k or all.")
    means = ascending.cumsum(0) / torch.arange(1, n + 1, dtype=torch.float64)
    jumps = means[1 : n - 1] - means[: n - 2]  # jumps[i] belongs to k = i + 1
    return int((jumps == jumps.max()).nonzero()[0]) + 1
