"""Studies of tiny random models on a tiny embedded world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import PROFILES, RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies import study as study_module
from chameleon_lib.studies.arms import Reference
from chameleon_lib.studies.methods import METHODS
from chameleon_lib.studies.study import Study
from tests.demo.small import HashEmbedder, small_backbone

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
    # As the embedded models are run.
    fit_rule="plain",
    fit_loss="preference",
    pairs_source="self",
    check_edit="off",
    group_size=8,
    group_draws=1,
    group_seeds=(0,),
)


STUDIED = BACKBONES[:1]  # so that a row is there on some backbones only


def methods_of(backbone: str, task: str) -> list[str]:
    """Ids of the rows that a cell must hold, in order."""
    ids = [m.id for m in METHODS if m.kind != "rival" or backbone in STUDIED]
    return [name for name in ids if task != "LaMP_7" or name != "llm_rec_comb"]


def small_profile(**changes: Any) -> RunProfile:
    sizes: dict[str, Any] = {"n_train": 12, "n_dev": 4, "n_test": 8, "draws": 1, "workers": 1}
    merged: dict[str, Any] = {"backbones": BACKBONES, "studied": STUDIED, **sizes, **changes}
    return replace(PROFILES["demo"], **merged)


def study_in(folder: Path, settings: EditSettings = SETTINGS, family: str = "decoder") -> Study:
    """A study of LaMP-3 with a store in ``folder``."""
    store = ArtifactStore(folder)
    return Study(small_profile(), f"demo:{family}:0", "LaMP_3", settings, store)


def reference_of(prepared: Sequence[PreparedUser]) -> Reference:
    """What margins compare in a test: the same two answers, but one for the first query."""
    queries = [query for user in prepared for query in user.user.queries]
    return Reference(["4"] * len(queries), ["4", *["2"] * (len(queries) - 1)])


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


@contextmanager
def small_kit(folder: Path, *modules: ModuleType) -> Iterator[Path]:
    """Tiny models, a store of its own in ``folder``, and tiny settings in the given modules."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        patch.setenv("CHAMELEON_CACHE", str(folder))
        for module in modules:
            patch.setattr(module, "settings_for", lambda _profile: SETTINGS)
        yield folder
