"""Directions of single users: the first point of Figure 3 (section 4.4), ambiguity A20.

With LaMP's one query per user a user has at most one pair. θ^P is then the normalised embedding of
that one pair text, and CCS is undetermined: any loss near zero, the probe near its random start.

The pair of a *test* user is made from the very query that is answered afterwards. No gold is in it,
but the personalised answer to the query was generated before the edit is asked for it, so the point
says what one pair can carry and nothing about a user who comes back with another query.

All users are fitted in batches and answered in one call, with one edit per prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from chameleon_lib.core.directions import Directions, fit_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.preferences import PreferencePair, PreparedUser, keep_different
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.sections.study import Study

_BATCH = 256  # users whose probes are fitted together; few pairs each, so many fit in memory


@dataclass(frozen=True)
class Single:
    """The directions of one user, from the user's own pairs alone.

    Attributes:
        user_id: Whose they are.
        directions: Of every layer.
        edit: At the layers that the user's own CCS losses choose.
        pairs: Pairs with two different answers behind them.
    """

    user_id: str
    directions: Directions
    edit: Edit
    pairs: int


def single_users(study: Study, pairs: Sequence[PreferencePair], seed: int) -> dict[str, Single]:
    """Directions of every user who has a pair with two different answers.

    Args:
        study: Backbone, task, settings and store.
        pairs: Pairs of any users, unfiltered.
        seed: Starting points of the probes.

    Returns:
        User id → directions and edit, in the order of ``pairs``; who has no pair left is not there.
    """
    kept, _ = keep_different(pairs, study.settings)
    if not kept:
        return {}
    h = torch.stack(study.activations(kept))  # (2, L, K, d)
    rows: dict[str, list[int]] = {}
    for row, pair in enumerate(kept):
        rows.setdefault(pair.user_id, []).append(row)
    units = [(user_id, h[:, :, at].contiguous()) for user_id, at in rows.items()]
    chosen = study.settings.canonical()
    records = study.store.map(
        "single_users",
        units,
        lambda batch: _fit([unit for _, unit in batch], study.settings, seed),
        inputs={
            "seed": seed,
            "settings": {
                k: v
                for k, v in chosen.items()
                if k.startswith(("direction_", "ccs_", "layers_", "edit_"))
            },
        },
        key_of=lambda unit: unit[1],
        batch_size=_BATCH,
        label=f"{study.backbone_id} {study.task} single users",
        modules=("chameleon_lib.core.directions",),
        about=lambda unit: [unit[0]],
    )
    found = {}
    for (user_id, at), record in zip(rows.items(), records, strict=True):
        directions = _directions(record)
        edit = directions.to_edit(study.settings)
        found[user_id] = Single(user_id, directions, edit, len(at))
    return found


def _fit(batch: Sequence[Tensor], settings: EditSettings, seed: int) -> list[dict[str, Any]]:
    """Records of users with (2, L, K, d) activations each, K of their own."""
    most = max(h.shape[2] for h in batch)
    h = torch.stack([pad(h, (0, 0, 0, most - h.shape[2])) for h in batch])  # (U, 2, L, K, d)
    real = torch.tensor([[at < h.shape[2] for at in range(most)] for h in batch])  # (U, K)
    mask = real[:, None].expand(-1, h.shape[2], -1)  # (U, L, K)
    found = fit_directions(h[:, 0], h[:, 1], settings, seed, mask, diagnostics=False)
    names = ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n")
    return [
        {
            "json": [found.alpha_p, found.alpha_n],
            "tensors": {name: getattr(found, name)[at].clone() for name in names},
        }
        for at in range(len(batch))
    ]


def _directions(record: dict[str, Any]) -> Directions:
    tensors = {name: torch.as_tensor(value) for name, value in record["tensors"].items()}
    alpha_p, alpha_n = record["json"]
    return Directions(
        theta_p=tensors["theta_p"],
        theta_n=tensors["theta_n"],
        ccs_loss=tensors["ccs_loss"],
        alpha_p=alpha_p,
        alpha_n=alpha_n,
        gate_p=tensors["gate_p"].bool(),
        gate_n=tensors["gate_n"].bool(),
    )


def own_edits(users: Sequence[PreparedUser], singles: dict[str, Single]) -> list[Edit | None]:
    """Every user's own edit; None for who has none and stays unedited."""
    own = [singles.get(user.user.id) for user in users]
    return [None if single is None else single.edit for single in own]


def lent_edits(
    users: Sequence[PreparedUser], donors: Sequence[Single], index: int
) -> list[Edit | None]:
    """Every user edited with the directions of one other, random user (control C15).

    Args:
        users: Who is edited.
        donors: Whose edits are lent, each to about as many users.
        index: Number of the draw; it seeds who lends to whom.
    """
    order = list(donors)
    random.Random(f"lent/{index}").shuffle(order)
    return [order[at % len(order)].edit for at in range(len(users))]


def at_the_same_layers(
    edits: Sequence[Edit | None], directions: Directions, settings: EditSettings
) -> list[Edit | None]:
    """Other, shared directions in the place of each edit: the control of per-user edits."""
    return [None if edit is None else directions.to_edit(settings, edit.layers) for edit in edits]


def per_prompt(users: Sequence[PreparedUser], edits: Sequence[Edit | None]) -> Edit:
    """One edit with a row for every query of every user, in the order of an exam's prompts."""
    rows = [edit for user, edit in zip(users, edits, strict=True) for _ in user.user.queries]
    return Edit.stack(rows, allow_missing=True)
