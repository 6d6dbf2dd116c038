"""Whether small groups find the directions of a large one: the mechanism behind Figure 3.

The projection edit is blind to the sign of its directions, so cosines are absolute, averaged over
the layers that the large group's edit has. The own draw's large group contains the small one and
must agree with it; another draw's group shares fewer users, and how many is logged beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.sections.group_size.own import Single

PAPER, FITTED = "paper", "fitted"


@dataclass(frozen=True, eq=False)
class Found:
    """The directions of one condition of one draw.

    Attributes:
        thetas: Method → (θ^P, θ^N), each (L, d), or (users, L, d) where every user has its own.
        layers: Method → layers of its edit; empty for single users, who choose their own.
        members: Ids of the users behind the directions.
    """

    thetas: dict[str, tuple[Tensor, Tensor]]
    layers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    members: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, main: Directions, layers: tuple[int, ...], fitted: Edit | None, members: set[str]
    ) -> Found:
        """Of a group: the paper's directions, and those of the preference fit if there is one."""
        thetas, edited = {PAPER: (main.theta_p, main.theta_n)}, {PAPER: layers}
        if fitted is not None:
            thetas[FITTED] = (fitted.theta_p, fitted.theta_n)
            edited[FITTED] = fitted.layers
        return cls(thetas, edited, frozenset(members))

    @classmethod
    def of_singles(cls, singles: Sequence[Single]) -> Found:
        """Of single users."""
        p = torch.stack([single.directions.theta_p for single in singles])
        n = torch.stack([single.directions.theta_n for single in singles])
        return cls({PAPER: (p, n)}, members=frozenset(single.user_id for single in singles))


def cosine(theta: Tensor, reference: Tensor, layers: Sequence[int]) -> float:
    """Mean absolute cosine over ``layers``, and over users where ``theta`` has them.

    Args:
        theta: ``(L, d)`` or ``(users, L, d)``.
        reference: ``(L, d)``.
        layers: Which rows are compared.
    """
    at = list(layers)
    ours, other = theta[..., at, :].double(), reference[at].double()
    cosines = torch.cosine_similarity(ours, other, dim=-1).abs()
    return float(cosines.clamp(max=1).mean())


def chance(d: int) -> float:
    """Mean absolute cosine of two random directions in d dimensions."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def agreement_logs(ladders: Sequence[Sequence[Found]]) -> list[list[dict[str, Any]]]:
    """For every draw and condition: agreement with the large groups of its own and other draws.

    Args:
        ladders: Draw → its conditions, the largest group last.

    Returns:
        Draw → condition → a log with ``agreement`` (method → "theta_p" and "theta_n" → "own draw"
        and "other draws" → cosine), ``shared`` (share of its users in the other draws' largest
        group) and ``d``. With one draw there is nothing under "other draws".
    """
    tops = [ladder[-1] for ladder in ladders]
    logs = []
    for own, ladder in enumerate(ladders):
        others = [top for draw, top in enumerate(tops) if draw != own]
        logs.append([_log(found, tops[own], others) for found in ladder])
    return logs


def _log(found: Found, top: Found, others: Sequence[Found]) -> dict[str, Any]:
    agreement: dict[str, dict[str, dict[str, float]]] = {}
    for method, thetas in found.thetas.items():
        for place, name in enumerate(("theta_p", "theta_n")):
            compared = {"own draw": [top], "other draws": list(others)}
            agreement.setdefault(method, {})[name] = {
                against: float(
                    np.mean(
                        [
                            cosine(thetas[place], to.thetas[method][place], to.layers[method])
                            for to in large
                        ]
                    )
                )
                for against, large in compared.items()
                if large
            }
    log: dict[str, Any] = {"agreement": agreement, "d": top.thetas[PAPER][0].shape[-1]}
    if others:
        shares = [len(found.members & other.members) / len(found.members) for other in others]
        log["shared"] = float(np.mean(shares))
    return log
