"""The arms of Table 1: for one group of train users, every edit that is compared.

An arm is a prompt and an edit. All edits of one draw come from the same pairs of the same group;
control directions are put at the layers that the paper's edit chose (method reference, section 11).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chameleon_lib.core.contrasts import (
    contrasts_from_pairs,
    gold_contrasts,
    swap_contrasts,
)
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    check_pair_count,
    keep_different,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.sections.fits import checked_directions, stored_directions, stored_fit
from chameleon_lib.sections.study import Study

TOP_K = 5  # the fixed number of layers of AlignEZ's later code, reported beside the elbow (A5)
_CONTROLS = (
    "from_neutral",
    "mean_difference",
    "shuffled_pairs",
    "p_only",
    "n_only",
    "svd_diff",
    "logistic",
)


@dataclass(frozen=True)
class Draw:
    """One random group with its edits and what was logged on the way.

    Attributes:
        index: Number of the draw; it seeds the group and every fit.
        edits: Arm id → edit (``random`` appears as ``random/0`` ...).
        log: Pair counts, layers and per-layer diagnostics.
    """

    index: int
    edits: dict[str, Edit]
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
    kept, identical = keep_different(pairs, settings)
    check_pair_count(len(kept), settings)
    h_p, h_n = study.activations(kept)
    main = checked_directions(study, h_p, h_n, index)
    layers = main.choose_layers(settings)
    edits = {"chameleon": main.to_edit(settings)}
    top = settings.with_(layers_rule="top_k", layers_k=min(TOP_K, study.backbone.n_layers))
    edits["chameleon_top5"] = main.to_edit(settings, main.choose_layers(top))
    for name in _CONTROLS:
        edits[name] = stored_directions(study, name, h_p, h_n, index, main).to_edit(
            settings, layers
        )
    for name, texts, label_settings in label_controls(kept, settings, index):
        other = Study(study.profile, study.backbone_id, study.task, label_settings, study.store)
        found = stored_directions(other, "paper", *other.activations(texts), index)
        edits[name] = found.to_edit(settings, layers)
    for number in range(n_random):
        seed = 1000 + n_random * index + number
        directions = stored_directions(study, "random", h_p, h_n, seed)
        edits[f"random/{number}"] = directions.to_edit(settings, layers)
    own = contrasts_from_pairs(study.task, kept, identical, settings)
    gold = gold_contrasts(study.task, group, pairs, settings)
    # All fits ask the same plain prompts; what one of them finds must not depend on the others.
    prompts = PlainPrompts(study.backbone, [contrast.prompt for contrast in [*own, *gold]])
    fits: dict[str, Any] = {}
    for name, contrasts in (
        ("fitted", own),
        ("fitted_gold", gold),
        ("fitted_shuffled", swap_contrasts(own, index)),
    ):
        edits[name], fits[name] = stored_fit(study, contrasts, prompts, index, name)
    return Draw(
        index,
        edits,
        {
            "users": len(group),
            "pairs": len(pairs),
            "kept": len(kept),
            "identical": len(identical),
            "layers": list(layers),
            "rows": main.rows(),
            "fits": fits,
        },
    )


def label_controls(
    kept: Sequence[PreferencePair], settings: EditSettings, seed: int
) -> list[tuple[str, list[PreferencePair], EditSettings]]:
    """Pairs and settings of the label controls (A4): does a direction hold more than a label?

    ``permute_answers`` gives every history the answers of another user; ``answer_only`` reads the
    answers without any history. ``shuffle_pairs`` is the control ``shuffled_pairs``, always run.
    """
    found = []
    if "permute_answers" in settings.controls_label_token:
        order = list(range(len(kept)))
        random.Random(f"permute/{seed}").shuffle(order)
        moved = [
            replace(pair, answer_p=kept[at].answer_p, answer_n=kept[at].answer_n)
            for pair, at in zip(kept, order, strict=True)
        ]
        found.append(("permute_answers", moved, settings))
    if "answer_only" in settings.controls_label_token:
        found.append(("answer_only", list(kept), settings.with_(pairs_text="answer_only")))
    return found


def arms_of(draw: Draw) -> dict[str, tuple[str, Edit | None]]:
    """Arm id → (prompt, edit) of one draw; the ids are those of ``METHODS``, plus ``/i``."""
    arms: dict[str, tuple[str, Edit | None]] = {
        name: ("instruct", edit) for name, edit in draw.edits.items()
    }
    arms["chameleon+insight"] = ("insight", draw.edits["chameleon"])
    arms["fitted+insight"] = ("insight", draw.edits["fitted"])
    return arms


def plain_arms() -> dict[str, tuple[str, Edit | None]]:
    """The arms without an edit."""
    return {
        kind: (kind, None)
        for kind in ("official", "official_history", "instruct", "insight", "neutral")
    }
