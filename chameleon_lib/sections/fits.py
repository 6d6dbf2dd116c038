"""Directions and preference fits of one group of pairs, kept in the artifact store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chameleon_lib.core.directions import Directions, control_directions, fit_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, fit_by_preference
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.kit.progress import tell
from chameleon_lib.sections.study import Study


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
    study: Study, contrasts: Sequence[Contrast], prompts: PlainPrompts, seed: int, name: str
) -> tuple[Edit, dict[str, Any]]:
    """A preference fit at all decoder layers, kept in the store.

    Args:
        study: Backbone, task, settings and store.
        contrasts: What the fit learns from.
        prompts: At least their prompts; read only if the fit is not in the store.
        seed: Seed of the fit.
        name: For the progress line.

    Returns:
        The edit, and the record of the fit.
    """
    layers = tuple(range(study.backbone.n_layers))
    settings = study.settings

    def compute() -> dict[str, Any]:
        tell(f"{study.backbone_id} {study.task}: fitting {name}, draw {seed}")
        fit = fit_by_preference(
            study.backbone, contrasts, layers, settings, seed=seed, prompts=prompts
        )
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
            "read_together": prompts.texts,  # what is padded together moves the last digits
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
