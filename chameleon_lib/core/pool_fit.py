"""From a pool of pairs to an edit profile: the paper's directions, or a preference fit."""

from __future__ import annotations

from typing import Any

from chameleon_lib.core.contrasts import contrasts_from_pairs
from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.core.fitting import fit_by_preference
from chameleon_lib.core.pooling import Pool, directions_by_layers, read_pairs
from chameleon_lib.core.prompts_digest import prompts_digest
from chameleon_lib.core.protocols import Backbone
from chameleon_lib.core.settings import EditSettings


def fit_pool(backbone: Backbone, task: str, pool: Pool, settings: EditSettings) -> EditProfile:
    """The edit that one pool of pairs makes, with where it came from.

    Args:
        backbone: Frozen model the directions are read from.
        task: Task of the pairs.
        pool: Pairs of one user or of a group.
        settings: ``theta_method`` chooses between the paper's directions and fitted ones.
    """
    common: dict[str, Any] = {
        "task": task,
        "settings": settings,
        "backbone": (backbone.name, backbone.fingerprint),
        "users": pool.users,
        "n_pairs": len(pool.different),
        "n_identical": pool.n_identical,
        "revision": backbone.revision,
        "prompts": prompts_digest(task, settings),
    }
    directions = None
    if settings.theta_method == "paper" or settings.fit_layers != "all":
        h_p, h_n = read_pairs(backbone, task, pool.different, settings)
        directions = directions_by_layers(h_p, h_n, settings, settings.seed)
    if settings.theta_method == "paper":
        assert directions is not None
        return EditProfile(edit=directions.to_edit(settings), directions=directions, **common)
    layers = _fitted_layers(backbone, directions, settings)
    contrasts = contrasts_from_pairs(task, pool.different, pool.identical, settings)
    fitted = fit_by_preference(backbone, contrasts, layers, settings, seed=settings.seed)
    return EditProfile(edit=fitted.edit, fitted=fitted, directions=directions, **common)


def _fitted_layers(
    backbone: Backbone, directions: Directions | None, settings: EditSettings
) -> tuple[int, ...]:
    """Layers a preference fit edits: all, or those the layer rule picks (``fit_layers``)."""
    if settings.fit_layers == "all":
        return tuple(range(backbone.n_layers))
    assert directions is not None
    return directions.choose_layers(settings)
