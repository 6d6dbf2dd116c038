"""The edits of one draw, from single users to the largest group: the rungs of Figure 3."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chameleon_lib.core.contrasts import contrasts_from_pairs, swap_contrasts
from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import PreferencePair, PreparedUser, keep_different
from chameleon_lib.errors import UserError
from chameleon_lib.sections.fits import stored_directions, stored_fit
from chameleon_lib.sections.group_size.agreement import Found
from chameleon_lib.sections.group_size.own import (
    Single,
    at_the_same_layers,
    lent_edits,
    own_edits,
    per_prompt,
    single_users,
)
from chameleon_lib.sections.study import Study

OWN, OTHER = "own user", "1 other user"
# At the ends of the curve, where claims are judged, Table 1's other controls stand beside the edit.
_END_CONTROLS = ("from_neutral", "shuffled_pairs")


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


def build_ladder(
    study: Study,
    train: Sequence[PreparedUser],
    pairs: Sequence[PreferencePair],
    test: Sequence[PreparedUser],
    sizes: Sequence[int],
    index: int,
    *,
    first: bool,
    n_random: int,
    fit_between: bool,
) -> list[Rung]:
    """All conditions of one draw, single users first.

    Args:
        study: Backbone, task, settings and store.
        train: Prepared train users.
        pairs: Their pairs, unfiltered.
        test: Prepared test users; their own pairs make the edits of "own user" and nothing else.
        sizes: Group sizes, ascending.
        index: Number of the draw; it seeds the order and every fit.
        first: Whether it is the first draw: what does not depend on the draw counts there alone.
        n_random: Random directions per draw in Table 1, whose first are taken here.
        fit_between: Whether the fitted edit is made between the smallest and the largest group.

    Raises:
        UserError: A group without one pair of different answers.
    """
    settings = study.settings
    order = random_order(train, max(settings.group_size, sizes[-1]), index)
    groups = sorted({min(size, len(order)) for size in sizes if size > 1})
    ids = [train[at].user.id for at in order]
    asked = [pair for pair in pairs if pair.user_id in set(ids[: groups[-1]])]
    kept, identical = keep_different(asked, settings)
    if not kept:
        raise UserError(f"{study.task}, draw {index}: no pair of two different answers in a group.")
    # All at once and sliced below: what is read together moves the last digits.
    h = study.activations(kept)
    noise = stored_directions(study, "random", *h, 1000 + n_random * index)
    rungs = []
    if sizes[0] == 1:
        lenders = [pair for pair in asked if pair.user_id in set(ids[: groups[0]])]
        rungs = _single_rungs(study, test, lenders, noise, index, first)
    for size in groups:
        ends = size in (groups[0], groups[-1])
        part = _Part.of(set(ids[:size]), kept, identical, h)
        if not part.kept:
            raise UserError(
                f"{study.task}, draw {index}: {size} users have no pair of two different answers; "
                "leave this size out."
            )
        rungs.append(_group_rung(study, part, noise, index, ends, ends or fit_between))
    return rungs


@dataclass(frozen=True)
class _Part:
    """A nested group: its users, their pairs and the activations (L, K, d) of those kept."""

    members: set[str]
    kept: list[PreferencePair]
    identical: list[PreferencePair]
    h: tuple[Tensor, Tensor]

    @classmethod
    def of(
        cls,
        members: set[str],
        kept: Sequence[PreferencePair],
        identical: Sequence[PreferencePair],
        h: tuple[Tensor, Tensor],
    ) -> _Part:
        rows = [row for row, pair in enumerate(kept) if pair.user_id in members]
        same = [pair for pair in identical if pair.user_id in members]
        return cls(members, [kept[row] for row in rows], same, (h[0][:, rows], h[1][:, rows]))


def _group_rung(
    study: Study, part: _Part, noise: Directions, index: int, ends: bool, fit: bool
) -> Rung:
    settings = study.settings
    main = stored_directions(study, "paper", *part.h, index)
    layers = main.choose_layers(settings)
    edits = {"chameleon": main.to_edit(settings), "random": noise.to_edit(settings, layers)}
    for name in _END_CONTROLS if ends else ():
        control = stored_directions(study, name, *part.h, index, main)
        edits[name] = control.to_edit(settings, layers)
    log = _log(part.members, part.kept, part.identical) | {"layers": list(layers), "fits": {}}
    contrasts = contrasts_from_pairs(study.task, part.kept, part.identical, settings)
    # The largest group's are the very prompts that Table 1 reads, so that its fits are found.
    prompts = PlainPrompts(study.backbone, [contrast.prompt for contrast in contrasts])
    shown = {"fitted": contrasts} if fit else {}
    if ends:
        shown["fitted_shuffled"] = swap_contrasts(contrasts, index)
    for name, learned in shown.items():
        edits[name], log["fits"][name] = stored_fit(study, learned, prompts, index, name)
    found = Found.of(main, layers, edits.get("fitted"), part.members)
    return Rung(f"{len(part.members)} users", edits, found, log | {"size": len(part.members)})


def _single_rungs(
    study: Study,
    test: Sequence[PreparedUser],
    lenders: Sequence[PreferencePair],
    noise: Directions,
    index: int,
    first: bool,
) -> list[Rung]:
    """Both readings of a group of one; one is missing where none of its users has a pair.

    A test user's own edit has nothing to do with the draw, so it counts in the first alone; random
    directions at its layers change from draw to draw. ``lenders`` are the unfiltered pairs of the
    smallest group, whose users lend their directions.
    """
    test_pairs = study.pairs(test)
    own = single_users(study, test_pairs, study.settings.seed)
    donors = single_users(study, lenders, index)
    rungs = []
    for condition, pairs, singles in ((OWN, test_pairs, own), (OTHER, lenders, donors)):
        if not singles:
            continue
        mine = condition == OWN
        chosen = own_edits(test, own) if mine else lent_edits(test, list(donors.values()), index)
        noisy = at_the_same_layers(chosen, noise, study.settings)
        edits = {"random": per_prompt(test, noisy)}
        if first or not mine:
            edits["chameleon"] = per_prompt(test, chosen)
        log = _log(set(singles), *keep_different(pairs, study.settings))
        log |= {"layers": _layer_counts(singles), "size": 1}
        rungs.append(Rung(condition, edits, Found.of_singles(list(singles.values())), log))
    return rungs


def _log(
    members: set[str], kept: Sequence[PreferencePair], identical: Sequence[PreferencePair]
) -> dict[str, Any]:
    return {
        "users": len(members),
        "pairs": len(kept) + len(identical),
        "kept": len(kept),
        "identical": len(identical),
    }


def _layer_counts(singles: dict[str, Single]) -> dict[int, int]:
    """How many users edit each layer."""
    layers = [layer for single in singles.values() for layer in single.edit.layers]
    return {layer: layers.count(layer) for layer in sorted(set(layers))}
