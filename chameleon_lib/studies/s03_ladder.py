"""The edits of one draw, from single users to the largest group: the rungs of Figure 3.

Groups are nested: a draw puts the train users in one random order, and a group of s is its first s
users. Single users stand first, in two readings (A20): a test user's own pairs, and those of one
other user. With LaMP's one query per user a user has at most one pair; θ^P is then the normalised
embedding of that one pair text, and CCS is undetermined: any loss near zero, the probe near its
random start. The pair of a *test* user is made from the very query that is answered afterwards. No
gold is in it, but the personalised answer to the query was generated before the edit is asked for
it, so the point says what one pair can carry and nothing about a user who comes back with another
query.

Whether small groups find the directions of a large one is measured beside the answers. The edit is
blind to the sign of its directions, so cosines are absolute, averaged over the layers that the
large group's edit has. The own draw's large group contains the small one and must agree with it;
another draw's group shares fewer users, and how many is logged beside it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.directions import Directions, find_directions, to_beat
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreferencePair, PreparedUser, keep_different
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.studies.study import Study

OWN, OTHER = "own user", "1 other user"
SINGLES = (OWN, OTHER)  # the conditions of a group of one
_BATCH = 256  # users whose probes are fitted together; few pairs each, so many fit in memory


# --- single users --------------------------------------------------------------------------------


def single_users(study: Study, pairs: Sequence[PreferencePair], seed: int) -> dict[str, Directions]:
    """User id → directions of every user who has a pair with two different answers.

    ``pairs`` are those of any users, unfiltered; ``seed`` gives the starting points of the probes.
    """
    kept, _ = keep_different(pairs, study.settings)
    if not kept:
        return {}
    h = torch.stack(study.activations(kept))  # (2, L, K, d)
    rows: dict[str, list[int]] = {}
    for row, pair in enumerate(kept):
        rows.setdefault(pair.user_id, []).append(row)
    records = study.store.map(
        "single_users",
        [(user_id, h[:, :, at].contiguous()) for user_id, at in rows.items()],
        lambda batch: _fit([unit for _, unit in batch], study.settings, seed),
        inputs={
            "seed": seed,
            "settings": study.settings.starting("direction_", "ccs_", "layers_", "edit_"),
        },
        key_of=lambda unit: unit[1],
        batch_size=_BATCH,
        label=f"{study.backbone_id} {study.task} single users",
        modules=("chameleon_lib.core.directions",),
    )
    return {
        user_id: Directions.from_record(record["json"], record["tensors"])
        for user_id, record in zip(rows, records, strict=True)
    }


def _fit(batch: Sequence[Tensor], settings: EditSettings, seed: int) -> list[dict[str, Any]]:
    """Records of users with (2, L, K, d) activations each, K of their own."""
    most = max(h.shape[2] for h in batch)
    h = torch.stack([pad(h, (0, 0, 0, most - h.shape[2])) for h in batch])  # (U, 2, L, K, d)
    real = torch.tensor([[at < h.shape[2] for at in range(most)] for h in batch])  # (U, K)
    mask = real[:, None].expand(-1, h.shape[2], -1)  # (U, L, K)
    found = find_directions("paper", h[:, 0], h[:, 1], settings, seed, mask)
    names = ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n")
    return [
        {
            "json": [found.alpha_p, found.alpha_n],
            "tensors": {name: getattr(found, name)[at].clone() for name in names},
        }
        for at in range(len(batch))
    ]


def lent_edits(users: Sequence[PreparedUser], donors: Sequence[Edit], index: int) -> list[Edit]:
    """Every user edited with the directions of one other, random user.

    Every donor lends to about as many users; the number of the draw seeds who lends to whom.
    """
    order = list(donors)
    random.Random(f"lent/{index}").shuffle(order)
    return [order[at % len(order)] for at in range(len(users))]


def at_the_same_layers(
    edits: Sequence[Edit | None], directions: Directions, settings: EditSettings
) -> list[Edit | None]:
    """Other, shared directions in the place of each edit: the control of per-user edits."""
    return [None if edit is None else directions.to_edit(settings, edit.layers) for edit in edits]


def per_prompt(users: Sequence[PreparedUser], edits: Sequence[Edit | None]) -> Edit:
    """One edit with a row for every query of every user, in the order of an exam's prompts."""
    rows = [edit for user, edit in zip(users, edits, strict=True) for _ in user.user.queries]
    return Edit.stack(rows, allow_missing=True)


# --- agreement -----------------------------------------------------------------------------------


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
        thetas, edited = {"chameleon": (main.theta_p, main.theta_n)}, {"chameleon": layers}
        if fitted is not None:
            thetas["fitted"] = (fitted.theta_p, fitted.theta_n)
            edited["fitted"] = fitted.layers
        return cls(thetas, edited, frozenset(members))

    @classmethod
    def of_singles(cls, singles: Mapping[str, Directions]) -> Found:
        """Of single users."""
        p, n = (
            torch.stack([getattr(own, name) for own in singles.values()])
            for name in ("theta_p", "theta_n")
        )
        return cls({"chameleon": (p, n)}, members=frozenset(singles))


def cosine(theta: Tensor, reference: Tensor, layers: Sequence[int]) -> float:
    """Mean absolute cosine to ``reference`` (L, d) over ``layers``.

    ``theta`` is (L, d), or (users, L, d), and then the mean is over users as well.
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
        Draw → condition → a log with ``agreement`` ((method, "theta_p" or "theta_n", "own draw" or
        "other draws") → cosine), ``shared`` (share of its users in the other draws' largest group)
        and ``d``. With one draw there is nothing about other draws.
    """
    tops = [ladder[-1] for ladder in ladders]
    logs = []
    for own, ladder in enumerate(ladders):
        others = [top for draw, top in enumerate(tops) if draw != own]
        logs.append([_agreement(found, tops[own], others) for found in ladder])
    return logs


def _agreement(found: Found, top: Found, others: Sequence[Found]) -> dict[str, Any]:
    compared = {"own draw": [top], "other draws": list(others)}
    agreement = {
        (method, name, against): float(
            np.mean([cosine(theta, to.thetas[method][place], to.layers[method]) for to in large])
        )
        for method, thetas in found.thetas.items()
        for place, (name, theta) in enumerate(zip(("theta_p", "theta_n"), thetas, strict=True))
        for against, large in compared.items()
        if large
    }
    log: dict[str, Any] = {"agreement": agreement, "d": top.thetas["chameleon"][0].shape[-1]}
    if others:
        shares = [len(found.members & other.members) / len(found.members) for other in others]
        log["shared"] = float(np.mean(shares))
    return log


# --- the rungs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rung:
    """The edits of one condition in one draw, with the directions and the log behind them."""

    condition: str
    edits: dict[str, Edit]
    found: Found
    log: dict[str, Any]


def random_order(users: Sequence[PreparedUser], size: int, index: int) -> list[int]:
    """Positions of ``size`` users, in the order in which smaller groups take them."""
    return random.Random(f"group/{index}").sample(range(len(users)), min(size, len(users)))


@dataclass(frozen=True)
class Ladder:
    """What the rungs of every draw are made from.

    Attributes:
        study: Backbone, task, settings and store.
        train: Prepared train users.
        pairs: Their pairs, unfiltered.
        test: Prepared test users; their own pairs make the edits of "own user" and nothing else.
        sizes: Group sizes, ascending.
        n_random: Random directions per draw in Table 1, whose first are taken here.
        fit_between: Whether the fitted edit is made between the smallest and the largest group.
    """

    study: Study
    train: Sequence[PreparedUser]
    pairs: Sequence[PreferencePair]
    test: Sequence[PreparedUser]
    sizes: Sequence[int]
    n_random: int
    fit_between: bool

    def rungs(self, index: int, *, first: bool) -> list[Rung]:
        """All conditions of draw ``index``, which seeds the order and every fit.

        What does not depend on the draw is in the ``first`` alone.

        Raises:
            UserError: A group without one pair of different answers.
        """
        study, settings = self.study, self.study.settings
        order = random_order(self.train, max(settings.group_size, self.sizes[-1]), index)
        sizes = sorted({min(size, len(order)) for size in self.sizes if size > 1})
        ids = [self.train[at].user.id for at in order]
        members = set(ids[: sizes[-1]])
        asked = [pair for pair in self.pairs if pair.user_id in members]
        kept, identical = keep_different(asked, settings)
        where = f"{study.task}, draw {index}"
        if not kept:
            raise UserError(f"{where}: no pair of two different answers in a group.")
        # All at once, and then out of the store: what is read together moves the last digits.
        h = study.activations(kept)
        noise = study.directions("random", *h, 1000 + self.n_random * index)
        rungs = []
        if self.sizes[0] == 1:
            smallest = set(ids[: sizes[0]])
            lent = [pair for pair in asked if pair.user_id in smallest]
            rungs = self._single_rungs(lent, noise, index, first)
        for size in sizes:
            members = set(ids[:size])
            own = [pair for pair in asked if pair.user_id in members]
            case = Case(study, *keep_different(own, settings), own, index)
            if not case.kept:
                raise UserError(
                    f"{where}: {size} users have no pair of two different answers; "
                    "leave this size out."
                )
            rungs.append(self._group_rung(case, members, noise, size in (sizes[0], sizes[-1])))
        for rung in rungs:
            rung.log["draw"] = index
        return rungs

    def _group_rung(self, case: Case, members: set[str], noise: Directions, end: bool) -> Rung:
        """The edits of a group; ``end`` says that it is the smallest or the largest.

        There, where claims are judged, all controls that an edit must beat stand beside it.
        """
        edits = {
            "chameleon": case.edit("paper"),
            "random": noise.to_edit(self.study.settings, case.layers),
        }
        names = ["fitted"] if end or self.fit_between else []
        names = [*to_beat("paper"), *names, *to_beat("fitted")] if end else names
        edits |= {name: case.edit(name) for name in dict.fromkeys(names) if name not in edits}
        log = _counts(members, case.kept, case.identical)
        log |= {"layers": list(case.layers), "size": len(members)}
        log["fits"] = {name: fit.log() for name, fit in case.fits.items()}
        found = Found.of(case.main, case.layers, edits.get("fitted"), members)
        return Rung(f"{len(members)} users", edits, found, log)

    def _single_rungs(
        self, lent: Sequence[PreferencePair], noise: Directions, index: int, first: bool
    ) -> list[Rung]:
        """Both readings of a group of one; one is missing where none of its users has a pair.

        A test user's own edit has nothing to do with the draw, so it counts in the first alone;
        random directions at its layers change from draw to draw. ``lent`` are the unfiltered pairs
        of the smallest group, whose users lend their directions.
        """
        study, settings, test = self.study, self.study.settings, self.test
        own = study.pairs(test)
        rungs = []
        for condition, pairs, seed in ((OWN, own, settings.seed), (OTHER, lent, index)):
            singles = single_users(study, pairs, seed)
            if not singles:
                continue
            mine = condition == OWN
            made = {who: directions.to_edit(settings) for who, directions in singles.items()}
            chosen: list[Edit | None] = [made.get(user.user.id) for user in test]
            if not mine:
                chosen = [*lent_edits(test, list(made.values()), index)]
            edits = {"random": per_prompt(test, at_the_same_layers(chosen, noise, settings))}
            if first or not mine:
                edits["chameleon"] = per_prompt(test, chosen)
            log = _counts(set(singles), *keep_different(pairs, settings))
            edited = [layer for edit in made.values() for layer in edit.layers]
            # How many users edit each layer.
            log |= {"layers": {at: edited.count(at) for at in sorted(set(edited))}, "size": 1}
            rungs.append(Rung(condition, edits, Found.of_singles(singles), log))
        return rungs


def _counts(
    members: set[str], kept: Sequence[PreferencePair], identical: Sequence[PreferencePair]
) -> dict[str, Any]:
    return {
        "users": len(members),
        "pairs": len(kept) + len(identical),
        "kept": len(kept),
        "identical": len(identical),
    }
