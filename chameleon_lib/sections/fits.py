"""Directions and preference fits of one group of pairs, kept in the artifact store.

Records hold the seconds they took. Only the ``timed_`` functions hand them out: seconds differ from
run to run and must reach no table that is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from chameleon_lib.core.diagnostics import ccs_checks
from chameleon_lib.core.directions import Directions, control_directions, fit_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, fit_by_preference
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.protocols import Backbone
from chameleon_lib.kit.progress import tell
from chameleon_lib.sections.study import Study
from chameleon_lib.sections.time_budget.counting import CountingBackbone


def stored_directions(
    study: Study,
    name: str,
    h_p: torch.Tensor,
    h_n: torch.Tensor,
    seed: int,
    main: Directions | None = None,
) -> Directions:
    """Directions of the paper or of a control, kept in the store."""
    return timed_directions(study, name, h_p, h_n, seed, main)[0]


def checked_directions(
    study: Study, h_p: torch.Tensor, h_n: torch.Tensor, seed: int
) -> Directions:
    """The paper's directions with the CCS fits on shuffled and on split pairs.

    These take twice the time of the directions themselves: a unit of their own, made where they
    are shown.
    """
    found = stored_directions(study, "paper", h_p, h_n, seed)
    settings = study.settings
    checks = study.store.get_or_compute(
        "ccs_checks",
        {
            "seed": seed,
            "h": [h_p, h_n],
            "settings": {k: v for k, v in settings.canonical().items() if k.startswith("ccs_")},
        },
        lambda: dict(ccs_checks(h_p, h_n, settings, seed)),
        modules=("chameleon_lib.core.diagnostics",),
    )
    return replace(
        found,
        diagnostics=found.diagnostics | {k: torch.as_tensor(v) for k, v in checks.items()},
    )


def timed_directions(
    study: Study,
    name: str,
    h_p: torch.Tensor,
    h_n: torch.Tensor,
    seed: int,
    main: Directions | None = None,
) -> tuple[Directions, float]:
    """:func:`stored_directions` with the seconds that finding them took."""

    def compute() -> dict[str, Any]:
        start = time.perf_counter()
        found = (
            fit_directions(h_p, h_n, study.settings, seed, diagnostics=False)
            if name == "paper"
            else control_directions(name, h_p, h_n, study.settings, seed, main=main)
        )
        tensors = {f"diagnostics/{key}": value for key, value in found.diagnostics.items()}
        for key in ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n"):
            tensors[key] = getattr(found, key)
        seconds = time.perf_counter() - start
        return {"json": [found.alpha_p, found.alpha_n, seconds], "tensors": tensors}

    chosen = study.settings.canonical()
    record = study.store.get_or_compute(
        "directions",
        {
            "format": 2,
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
    logged = {
        k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith("diagnostics/")
    }
    alpha_p, alpha_n, seconds = record["json"]
    directions = Directions(
        theta_p=tensors["theta_p"],
        theta_n=tensors["theta_n"],
        ccs_loss=tensors["ccs_loss"],
        alpha_p=alpha_p,
        alpha_n=alpha_n,
        gate_p=tensors["gate_p"].bool(),
        gate_n=tensors["gate_n"].bool(),
        diagnostics=logged,
    )
    return directions, float(seconds)


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
    return timed_fit(study, contrasts, prompts, seed, name)[:2]


def timed_fit(
    study: Study,
    contrasts: Sequence[Contrast],
    prompts: PlainPrompts,
    seed: int,
    name: str,
    stop: Callable[[], bool] | None = None,
) -> tuple[Edit, dict[str, Any], float]:
    """:func:`stored_fit` with its seconds, the reading of prompts not read before included.

    ``stop`` is asked after every step whether time is up; the caller then gives the study a store
    of its own, since nothing in the key tells.
    """
    layers = tuple(range(study.backbone.n_layers))
    settings = study.settings

    def compute() -> dict[str, Any]:
        tell(f"{study.backbone_id} {study.task}: fitting {name}, draw {seed}")
        start = time.perf_counter()
        counting = CountingBackbone(study.backbone)
        backbone = cast(Backbone, counting)
        fit = fit_by_preference(
            backbone, contrasts, layers, settings, seed=seed, prompts=prompts, stop=stop
        )
        record = {
            "loss": fit.loss,
            "held_out": fit.held_out,
            "best_step": fit.best_step,
            "n_pairs": fit.n_pairs,
            "n_agreed": fit.n_agreed,
            "n_held_out": fit.n_held_out,
            "learned_tokens": counting.learned,
            "looked_tokens": counting.looked,
            "seconds": time.perf_counter() - start,
        }
        tensors = {"theta_p": fit.edit.theta_p, "theta_n": fit.edit.theta_n}
        return {"json": record, "tensors": tensors}

    chosen = settings.canonical()
    record = study.store.get_or_compute(
        "fit",
        {
            "backbone": study.fingerprint,
            "contrasts": list(contrasts),
            "read_together": prompts.texts,  # what is padded together moves the last digits
            "layers": list(layers),
            "seed": seed,
            "settings": {k: v for k, v in chosen.items() if k.startswith(("fit_", "edit_"))},
        },
        compute,
        modules=(
            "chameleon_lib.core.fitting",
            "chameleon_lib.backbones",
            "chameleon_lib.sections.time_budget.counting",
        ),
        about={contrast.user_id for contrast in contrasts},
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
    log = dict(record["json"])
    return edit, log, float(log.pop("seconds"))
