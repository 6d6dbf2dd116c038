"""The arms of Table 1: for one group of train users, every edit that is compared.

An arm is a prompt and an edit. All edits of one draw come from the same pairs of the same group;
control directions are put at the layers that the paper's edit chose (method reference, section 11).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from chameleon_lib.core.chameleon import check_pair_count
from chameleon_lib.core.contrasts import (
    contrasts_from_pairs,
    gold_contrasts,
    swap_contrasts,
)
from chameleon_lib.core.directions import Directions, control_directions, fit_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, fit_by_preference
from chameleon_lib.core.preferences import PreferencePair, PreparedUser, keep_different
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.progress import tell
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
    main = stored_directions(study, "paper", h_p, h_n, index)
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
    fits: dict[str, Any] = {}
    for name, contrasts in (
        ("fitted", own),
        ("fitted_gold", gold),
        ("fitted_shuffled", swap_contrasts(own, index)),
    ):
        edits[name], fits[name] = stored_fit(study, contrasts, index, name)
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


def stored_directions(
    study: Study,
    name: str,
    h_p: torch.Tensor,
    h_n: torch.Tensor,
    seed: int,
    main: Directions | None = None,
) -> Directions:
    """Directions of the paper or of a control, kept in the store."""

    def compute() -> dict[str, Any]:
        found = (
            fit_directions(h_p, h_n, study.settings, seed)
            if name == "paper"
            else control_directions(name, h_p, h_n, study.settings, seed, main=main)
        )
        tensors = {f"diagnostics/{key}": value for key, value in found.diagnostics.items()}
        for key in ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n"):
            tensors[key] = getattr(found, key)
        return {"json": [found.alpha_p, found.alpha_n], "tensors": tensors}

    chosen = study.settings.canonical()
    record = study.store.get_or_compute(
        "directions",
        {
            "name": name,
            "seed": seed,
            "h": [h_p, h_n],
            "settings": {
                k: v
                for k, v in chosen.items()
                if k.startswith(("direction_", "ccs_", "layers_", "edit_"))
            },
        },
        compute,
        modules=("chameleon_lib.core.directions",),
    )
    tensors = {key: torch.as_tensor(value) for key, value in record["tensors"].items()}
    diagnostics = {
        k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith("diagnostics/")
    }
    alpha_p, alpha_n = record["json"]
    return Directions(
        theta_p=tensors["theta_p"],
        theta_n=tensors["theta_n"],
        ccs_loss=tensors["ccs_loss"],
        alpha_p=alpha_p,
        alpha_n=alpha_n,
        gate_p=tensors["gate_p"].bool(),
        gate_n=tensors["gate_n"].bool(),
        diagnostics=diagnostics,
    )


def stored_fit(
    study: Study, contrasts: Sequence[Contrast], seed: int, name: str
) -> tuple[Edit, dict[str, Any]]:
    """A preference fit at all decoder layers, kept in the store."""
    layers = tuple(range(study.backbone.n_layers))
    settings = study.settings

    def compute() -> dict[str, Any]:
        tell(f"{study.backbone_id} {study.task}: fitting {name}, draw {seed}")
        fit = fit_by_preference(study.backbone, contrasts, layers, settings, seed=seed)
        record = {
            "loss": fit.loss,
            "held_out": fit.held_out,
            "best_step": fit.best_step,
            "n_pairs": fit.n_pairs,
            "n_agreed": fit.n_agreed,
            "n_held_out": fit.n_held_out,
        }
        tensors = {"theta_p": fit.edit.theta_p, "theta_n": fit.edit.theta_n}
        return {"json": record, "tensors": tensors}

    chosen = settings.canonical()
    record = study.store.get_or_compute(
        "fit",
        {
            "backbone": study.backbone.fingerprint,
            "contrasts": list(contrasts),
            "layers": list(layers),
            "seed": seed,
            "settings": {k: v for k, v in chosen.items() if k.startswith(("fit_", "edit_"))},
        },
        compute,
        modules=("chameleon_lib.core.fitting", "chameleon_lib.backbones"),
    )
    edit = Edit(
        layers=layers,
        theta_p=torch.as_tensor(record["tensors"]["theta_p"]),
        theta_n=torch.as_tensor(record["tensors"]["theta_n"]),
        alpha_p=settings.edit_alpha_p,
        alpha_n=settings.edit_alpha_n,
        order=settings.edit_order,
        positions=settings.edit_positions,
        site=settings.edit_site,
        compute_dtype=settings.edit_compute_dtype,
    )
    return edit, record["json"]


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
