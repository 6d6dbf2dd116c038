"""Studies of tiny random models on a tiny embedded world."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import PROFILES, RunProfile
from chameleon_lib.sections import study as study_module
from tests.backbones.demo.small import HashEmbedder, small_backbone

BACKBONES = ("demo:decoder:0", "demo:encdec:0")

SETTINGS = EditSettings(
    selection_k=3,
    decode_insight_tokens=6,
    decode_max_new_tokens=4,
    ccs_epochs=20,
    ccs_tries=2,
    pairs_on_too_few="warn",
    fit_steps=2,
    fit_batch=8,
    group_size=8,
    group_draws=1,
    group_seeds=(0,),
)


def small_profile(**changes: Any) -> RunProfile:
    sizes: dict[str, Any] = {"n_train": 12, "n_dev": 4, "n_test": 8, "draws": 1, "workers": 1}
    merged: dict[str, Any] = {"backbones": BACKBONES, **sizes, **changes}
    return replace(PROFILES["demo"], **merged)


@lru_cache(maxsize=8)
def open_small(backbone_id: str, *_rest: Any) -> Any:
    """Stands in for ``open_backbone``: random weights for any demo id, kept as the real ones are.
    """
    _, family, seed = backbone_id.split(":")
    return small_backbone("mistral" if family == "decoder" else "t5", int(seed))


def use_small_models(patch: pytest.MonkeyPatch) -> HashEmbedder:
    """Every study opens tiny random models and one shared embedder, which is returned."""
    embedder = HashEmbedder()
    patch.setattr(study_module, "open_backbone", open_small)
    patch.setattr(study_module, "open_embedder", lambda *_: embedder)
    return embedder
