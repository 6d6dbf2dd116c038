"""Other libraries on the same edit, where they are installed and can express it.

None is a dependency: steering-vectors asks for an older transformers than this kit runs on, and
repeng changes block outputs only. Install one beside the kit (``pip install --no-deps``) to see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata, util
from typing import Any

from torch import Tensor

from chameleon_lib.backbones import HFBackbone, site_paths
from chameleon_lib.bench.rows import Row
from chameleon_lib.core.edit import Edit

Anchor = Callable[[], AbstractContextManager[None]]


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return util.find_spec(package.replace("-", "_")) is not None


def steering_vectors_hooks(backbone: HFBackbone, edit: Edit) -> Anchor | None:
    """The edit as two patches of steering-vectors, or None where it is not installed.

    Removal is its ablation operator; for the boost it takes an operator of the caller's, since none
    of its own scales a component. The layer is named, because it guesses the encoder on T5.
    """
    if not installed("steering-vectors"):
        return None
    from steering_vectors import SteeringVector, ablation_operator

    path = site_paths(backbone.model.config.model_type).mlp_out.replace("{i}", "{num}")
    config: Any = {"mlp": path}

    def boost(x: Tensor, p: Tensor) -> Tensor:
        return (x * p).sum(-1, keepdim=True) / (p * p).sum() * p

    parts = [
        (SteeringVector(_by_layer(edit, edit.theta_p), "mlp"), boost),
        (SteeringVector(_by_layer(edit, edit.theta_n), "mlp"), ablation_operator()),
    ]

    @contextmanager
    def applied() -> Iterator[None]:
        handles = []
        try:
            for vector, operator in parts:
                handles.append(
                    vector.patch_activations(backbone.model, layer_config=config, operator=operator)
                )
            yield
        finally:
            for handle in handles:
                handle.remove()

    return applied


def _by_layer(edit: Edit, theta: Tensor) -> dict[int, Tensor]:
    return {layer: theta[row] for row, layer in enumerate(edit.layers)}


def anchor_rows(setting: str, *, measured: bool) -> list[Row]:
    """Rows that say why another library has no ratio."""
    reasons = {}
    if not measured:
        reasons["steering-vectors"] = "not installed"
    reasons["repeng"] = (
        f"{metadata.version('repeng')} cannot express it: it changes block outputs, by addition"
        if installed("repeng")
        else "not installed; it changes block outputs, by addition, and could not express it"
    )
    return [
        Row(f"Decode under an edit, {name}: time", setting, "no edit", None, None, None, reason)
        for name, reason in reasons.items()
    ]
