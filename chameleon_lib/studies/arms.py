"""The arms of Table 1: for one group of train users, every edit that is compared.

An arm is a prompt and an edit. All edits of one draw come from the same pairs of the same group;
control directions are put at the layers that the paper's edit chose.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chameleon_lib.core.directions import all_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreferencePair, PreparedUser
from chameleon_lib.studies.frame import Arm
from chameleon_lib.studies.methods import FITTED, PAPER
from chameleon_lib.studies.study import Study

TOP_K = 5  # the fixed number of layers of AlignEZ's later code, reported beside the elbow (A5)
_FITS = ("fitted", "fitted_gold", "fitted_shuffled")
_LABEL = ("permute_answers", "answer_only")  # run where ``controls_label_token`` names them


@dataclass(frozen=True)
class Draw:
    """One random group with its edits and what was logged on the way.

    Attributes:
        index: Number of the draw; it seeds the group and every fit.
        edits: Arm → edit; several random directions are repeats of one arm.
        log: Pair counts, layers and per-layer diagnostics.
    """

    index: int
    edits: dict[Arm, Edit]
    log: dict[str, Any]


def draw_group(users: Sequence[PreparedUser], size: int, index: int) -> list[PreparedUser]:
    """A random group of train users, in profile order (section 4.1 of the paper)."""
    chosen = random.Random(f"group/{index}").sample(range(len(users)), min(size, len(users)))
    return [users[position] for position in sorted(chosen)]


def build_draw(
    study: Study,
    group: Sequence[PreparedUser],
    pairs: Sequence[PreferencePair],
    index: int,
    n_random: int,
) -> Draw:
    """All edits of one group.

    Args:
        study: Backbone, task, settings and store.
        group: Train users.
        pairs: Their pairs, unfiltered.
        index: Draw number.
        n_random: Random-direction draws that belong to this group.
    """
    settings = study.settings
    case = study.case(pairs, index, group, checks=True)
    top = settings.with_(layers_rule="top_k", layers_k=min(TOP_K, study.backbone.n_layers))
    edits = {
        Arm(PAPER, index): case.edit("paper"),
        Arm("chameleon_top5", index): case.main.to_edit(settings, case.main.choose_layers(top)),
    }
    left = {"paper", "random", *_FITS, *_LABEL} - set(settings.controls_label_token)
    for entry in all_directions():
        if entry.shown and entry.name not in left:
            edits[Arm(entry.name, index)] = case.edit(entry.name)
    for number in range(n_random):
        seed = 1000 + n_random * index + number
        edits[Arm("random", index, number)] = case.edit("random", seed)
    for name in _FITS:
        edits[Arm(name, index)] = case.edit(name)
    return Draw(
        index,
        edits,
        {
            "users": len(group),
            "pairs": len(pairs),
            "kept": len(case.kept),
            "identical": len(case.identical),
            "layers": list(case.layers),
            "rows": case.main.rows(),
            "fits": {name: fit.log() for name, fit in case.fits.items()},
        },
    )


def arms_of(draw: Draw) -> dict[Arm, tuple[str, Edit | None]]:
    """Arm → (prompt, edit) of one draw."""
    arms: dict[Arm, tuple[str, Edit | None]] = {
        arm: ("instruct", edit) for arm, edit in draw.edits.items()
    }
    for name in (PAPER, FITTED):
        arms[Arm(f"{name}+insight", draw.index)] = ("insight", draw.edits[Arm(name, draw.index)])
    return arms


def plain_arms() -> dict[Arm, tuple[str, Edit | None]]:
    """The arms without an edit."""
    return {
        Arm(kind): (kind, None)
        for kind in ("official", "official_history", "instruct", "insight", "neutral")
    }
