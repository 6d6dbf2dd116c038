"""ALOE and DPO trainings on a group, kept in the artifact store, as studies to ask."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.baselines import (
    AloeSettings,
    DpoSettings,
    TrainLog,
    Tuned,
    gold_examples,
    load_mix,
    train_aloe,
    train_dpo,
    tuned_backbone,
    tuned_fingerprint,
)
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.core.protocols import Backbone
from chameleon_lib.errors import UserError
from chameleon_lib.kit.progress import tell
from chameleon_lib.sections.study import Study


class TunedStudy(Study):
    """The stages of a backbone after a training; the model is built only if something is asked."""

    def __init__(self, study: Study, tuned: Tuned) -> None:
        name = f"{study.backbone_id}+{tuned.log.method}"
        super().__init__(study.profile, name, study.task, study.settings, study.store)
        self._study, self._tuned = study, tuned

    @cached_property
    def backbone(self) -> Backbone:
        """The tuned model."""
        return tuned_backbone(_trainable(self._study), self._tuned)

    @cached_property
    def writer(self) -> Backbone:
        """The tuned model itself: no other engine has its weights."""
        return self.backbone

    @property
    def fingerprint(self) -> str:
        """As the tuned model's, without building it."""
        return tuned_fingerprint(self._study.fingerprint, self._tuned)


def aloe_settings(study: Study, **changes: Any) -> AloeSettings:
    """ALOE at the scale of the study's profile: the paper's recipe, or the embedded models' own.

    The mixed-in dialogues are those of the file that ``CHAMELEON_CODEACT`` names. Without one the
    small set of our own takes their place, and the log of the training says so.
    """
    if _embedded(study):
        return AloeSettings.demo(study.backbone.family).with_(**changes)
    path = os.environ.get("CHAMELEON_CODEACT", "")
    mix = {"mix": "codeact", "mix_path": path} if path else {"mix": "standin"}
    size = {**_in_memory(study), "params": study.profile.aloe_params}
    return AloeSettings(**{**mix, **size, **changes})


def dpo_settings(study: Study, **changes: Any) -> DpoSettings:
    """DPO at the scale of the study's profile."""
    if _embedded(study):
        return DpoSettings.demo().with_(**changes)
    size = {**_in_memory(study), "quantisation": study.profile.quantization}
    return DpoSettings(**{**size, **changes})


def _in_memory(study: Study) -> dict[str, Any]:
    """What of a profile fits a training into memory, and changes no hyperparameter."""
    return {
        "micro_batch": study.profile.micro_batch,
        "checkpointing": study.profile.checkpointing,
    }


def training_log(log: TrainLog) -> dict[str, Any]:
    """What a table may hold of a training: everything but the wall clock."""
    return {name: value for name, value in asdict(log).items() if name != "seconds"}


def stored_aloe(
    study: Study,
    group: Sequence[PreparedUser],
    settings: AloeSettings,
    seed: int,
    max_steps: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> Tuned:
    """ALOE on the gold answers of ``group``, kept in the store.

    ``stop`` is asked after every step whether time is up; the caller then gives the study a store
    of its own, since nothing in the key tells.
    """
    examples = gold_examples(group, study.settings, settings.history)

    def compute() -> dict[str, Any]:
        tell(f"{study.backbone_id} {study.task}: training ALOE, draw {seed}")
        backbone = _trainable(study)
        return train_aloe(
            backbone, examples, settings, seed=seed, max_steps=max_steps, stop=stop
        ).record()

    inputs = {
        "backbone": study.fingerprint,
        "examples": [asdict(example) for example in examples],
        "mix": [asdict(dialogue) for dialogue in load_mix(settings)],
        "settings": settings.canonical(),
        "seed": seed,
        "max_steps": max_steps,
    }
    modules = ("chameleon_lib.baselines.aloe",)
    about = [user.user.id for user in group]
    record = study.store.get_or_compute("aloe", inputs, compute, modules=modules, about=about)
    return Tuned.from_record(record)


def stored_dpo(
    study: Study,
    contrasts: Sequence[Contrast],
    settings: DpoSettings,
    seed: int,
    max_steps: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> Tuned:
    """DPO on the preference pairs of a group, kept in the store; ``stop`` as in ALOE's."""

    def compute() -> dict[str, Any]:
        tell(f"{study.backbone_id} {study.task}: training DPO, draw {seed}")
        backbone = _trainable(study)
        return train_dpo(
            backbone, contrasts, settings, seed=seed, max_steps=max_steps, stop=stop
        ).record()

    inputs = {
        "backbone": study.fingerprint,
        "contrasts": list(contrasts),
        "settings": settings.canonical(),
        "seed": seed,
        "max_steps": max_steps,
    }
    modules = ("chameleon_lib.baselines.dpo",)
    about = {contrast.user_id for contrast in contrasts}
    record = study.store.get_or_compute("dpo", inputs, compute, modules=modules, about=about)
    return Tuned.from_record(record)


def _embedded(study: Study) -> bool:
    return study.backbone_id.startswith("demo:")


def _trainable(study: Study) -> HFBackbone:
    backbone = study.backbone
    if not isinstance(backbone, HFBackbone):
        raise UserError(f"{study.backbone_id} is no model that can be trained.")
    return backbone
