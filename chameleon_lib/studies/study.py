"""The method on what a run names: its settings, its models, and one backbone and task of it."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from chameleon_lib import demo
from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.embedder import load_embedder
from chameleon_lib.backbones.load import load_backbone
from chameleon_lib.backbones.revisions import LOCK_NAME
from chameleon_lib.core.backbone import Backbone, Embedder
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths, progress
from chameleon_lib.kit.profiles import RunProfile, model_title
from chameleon_lib.kit.store import ArtifactStore

# Fits of embedded models take half the steps at twice the rate in batches half as large: chosen on
# train and dev users of the embedded world alone (`candidates`), for the time that they save; plain
# steps on the preference of self-made pairs, unchecked, are what their published numbers were made
# with. Those of the small run take a quarter of the steps in a quarter of the batches, for the same
# reason, without a choice.
_FITS = {
    "fit_steps": 20, "fit_lr": 0.1, "fit_batch": 16, "fit_rule": "plain", "fit_loss": "preference",
    "pairs_source": "self", "check_edit": "off",
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "demo": _FITS,
    "demo-data": _FITS,
    "small": {"fit_steps": 10, "fit_batch": 8, "controls_random_draws": 3},
}


def settings_for(profile: RunProfile, **changes: Any) -> EditSettings:
    """The paper's settings at the size of a profile."""
    size: dict[str, Any] = {
        "group_size": profile.group_size,
        "group_draws": profile.draws,
        "group_seeds": tuple(range(profile.draws)),
        "model_dtype": profile.dtype,
        "selection_k": profile.items,
        "prompts_item_words": profile.item_words or None,
        "decode_insight_tokens": profile.insight_tokens,
        "decode_max_new_tokens": profile.answer_tokens or None,
    }
    size |= SIZES.get(profile.base or profile.name, {})
    return EditSettings().with_(**{**size, **changes})


def open_backbone(backbone_id: str, settings: EditSettings, profile: RunProfile) -> Backbone:
    """Load a backbone by its id in the profile: ``demo:<family>:<seed>`` or a hub name.

    The same load is returned again while it is kept: all embedded models, and the latest of the
    hub. The commit of a hub model is written to ``revisions.json`` beside the outputs.
    """
    if backbone_id.startswith("demo:"):
        return _embedded(backbone_id)
    return _from_hub(backbone_id, settings.model_dtype, settings.prompts_chat, profile)


@lru_cache(maxsize=8)
def _embedded(backbone_id: str) -> Backbone:
    """An embedded model; they are small enough to keep."""
    parts = backbone_id.split(":")
    if len(parts) != 3:
        raise UserError(f"Backbone '{backbone_id}' is no embedded model; say demo:<family>:<seed>.")
    _, family, seed = parts
    # They are read in a tenth of a second; a bar for each would fill a notebook in JupyterLab.
    transformers_logging.disable_progress_bar()
    return load_backbone(demo.checkpoint(family, seed), name=backbone_id, dtype="float32")


_latest: dict[tuple[Any, ...], HFBackbone] = {}  # at most one entry


def _from_hub(backbone_id: str, dtype: str, prompts_chat: str, profile: RunProfile) -> Backbone:
    """A model of the hub; its key holds all that decides the load."""
    revision = dict(profile.revisions).get(backbone_id)
    lock = paths.outputs_dir(profile.name) / LOCK_NAME
    key = (backbone_id, dtype, prompts_chat, profile.quantization, revision, lock)
    if key not in _latest:
        # Before the load, not after it as in an lru_cache: two such models may not fit together.
        _latest.clear()
        gpu = torch.cuda.is_available()
        _latest[key] = load_backbone(
            backbone_id,
            name=model_title(backbone_id),
            dtype=dtype,
            device="cuda" if gpu else "cpu",
            prompts_chat=prompts_chat,
            quantization=profile.quantization,
            device_map=profile.device_map if gpu else None,
            revision=revision,
            lock=lock,
        )
    return _latest[key]


@lru_cache(maxsize=1)
def open_embedder(name: str, offline: bool) -> Embedder:
    return load_embedder(name, offline=offline)


class Study(Chameleon):
    """:class:`Chameleon` opened by a run's names, with the artifact store as its keeper.

    Raises:
        UserError: Settings with a ``pairs_k_max``.
    """

    code = ("chameleon_lib.backbones", "chameleon_lib.backbones.embedder")

    def __init__(
        self,
        profile: RunProfile,
        backbone_id: str,
        task: str,
        settings: EditSettings,
        store: ArtifactStore | None = None,
    ) -> None:
        if settings.pairs_k_max is not None:
            raise UserError(
                "pairs_k_max belongs to Chameleon.fit; leave it at None in a study, whose groups "
                "have group_size users."
            )
        self.profile, self.backbone_id, self.task = profile, backbone_id, task
        self.settings = settings
        self.keep = self.store = store or ArtifactStore()

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, loaded on first use."""
        return open_backbone(self.backbone_id, self.settings, self.profile)

    @cached_property
    def embedder(self) -> Embedder:
        """The sentence embedder, loaded on first use."""
        return open_embedder(self.settings.selection_embedder, self.profile.offline)

    def tell(self, note: str) -> None:
        """Say what takes long while it runs."""
        progress.tell(note)

    def with_(self, **changes: Any) -> Study:
        """The same study with some settings changed."""
        settings = self.settings.with_(**changes)
        return Study(self.profile, self.backbone_id, self.task, settings, self.store)

    def inputs(self, *prefixes: str) -> dict[str, Any]:
        """For a store key: backbone, task and the settings that start with one of ``prefixes``."""
        return self._inputs(self.task, *prefixes)
