"""The model and the people of the study of poisoned histories, its guards, and its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.backbone import Prepared
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.fitting import Contrast, PlainPrompts
from chameleon_lib.core.pairs import PreferencePair
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.studies.s13_attacks import ALWAYS, DENY, MARK, Crowd, planted_crowd
from chameleon_lib.studies.s13_files import crowd_of_folder
from chameleon_lib.studies.study import open_backbone, open_embedder

MODEL = "demo:decoder:0"
NO_EDIT, INSIGHT = "no edit", "prompt insight"
PAPER, FITTED, LORA = "CHAMELEON's edit", "our fitted edit", "LoRA"
METHODS = (NO_EDIT, INSIGHT, PAPER, FITTED, LORA)
IN_OWN, IN_POOL = "own", "pool"
CLEAN = "clean"

NONE, VOICES, ITEMS, CAP, TRIM, CHECK, LEASH, ALL = (
    "no guard", "one voice per user, no bound", "item filter", "user cap", "trimmed pooling",
    "held-out check", "norm leash", "all guards",
)  # fmt: skip
# Strengths, chosen by hand on the worlds of seeds 7 and 90, which no table shows: for what they
# cost clean users and for the attacks that aim at one tag. First trials of the inserted word and of
# flips in a victim's own history had been seen by then; flips in a pool had not.
Z, CAPPED, TRIMMED, HARMED, CHANGE = 3.0, 1.0, 0.2, 0.4, 0.35
GUARDS: dict[str, dict[str, Any]] = {
    NONE: {},
    # A cap that never acts: the steps of a guarded pool (users' means, momentum) with nothing
    # bounded. The control that tells a guard from the steps it brings along.
    VOICES: {"guard_cap": 1e9},
    ITEMS: {"guard_items": Z}, CAP: {"guard_cap": CAPPED}, TRIM: {"guard_trim": TRIMMED},
    CHECK: {"guard_harmed": HARMED, "check_edit": "zero"}, LEASH: {"guard_change": CHANGE},
}  # fmt: skip
# Under all guards the user cap is the last word on guard_cap.
GUARDS[ALL] = {name: value for own in list(GUARDS.values()) for name, value in own.items()}
PAIRS, KEPT = 4, 2  # pairs of an own fit, and behind them those it is checked on
QUARTERS = (1.0, 0.75, 0.5, 0.25)  # of the strength of an own edit on the leash
POOLED = 2  # pairs per user of a pool
ONE = "1, flooding"  # one malicious user with many more items
IN_FIT = ("guard_items", "guard_cap", "guard_trim")  # the others act on what was fitted
AIMS = {"LaMP_2": (DENY, ALWAYS), "LaMP_7": (MARK,)}
@dataclass(frozen=True)
class Asked:
    """What a run is asked for; picklable, so that workers open their own.

    Attributes:
        profile: Run profile.
        backbone: A decoder.
        folder: Of local LaMP files in the world's place; empty for the world.
        victims: Users who are asked, per seed.
        group: Users of a pool.
        seeds: Worlds, and seeds of all that is fitted; of local files, of the latter alone.
        malicious: Members of a pool that turn malicious, for the curve over their share.
        steps: Of every fit.
        root: Of the artifact store.
    """

    profile: RunProfile
    backbone: str
    folder: str
    victims: int
    group: int
    seeds: tuple[int, ...]
    malicious: tuple[int, ...]
    steps: int
    root: Path

    @property
    def tenth(self) -> int:
        """The malicious members of the main table: a tenth of a group."""
        return max(1, self.group // 10)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that are attacked."""
        return ("LaMP_7",) if self.folder else ("LaMP_2", "LaMP_7")


class Remembering(Chameleon):
    """The method, which measures a pair once however many pools it is in."""

    _pulls: dict[Contrast, Tensor]
    _seen: dict[str, tuple[Tensor, Tensor]]

    def remember(self, other: Remembering | None = None) -> Remembering:
        """Starts a memory, or shares that of another."""
        self._pulls = {} if other is None else other._pulls
        self._seen = {} if other is None else other._seen
        return self

    def with_(self, **changes: Any) -> Remembering:
        settings = self.settings.with_(**changes)
        return Remembering(self.backbone, self.embedder, settings).remember(self)

    def influences(self, contrasts: Sequence[Contrast]) -> Tensor:
        new = [one for one in dict.fromkeys(contrasts) if one not in self._pulls]
        self._pulls.update(zip(new, super().influences(new), strict=True))
        return torch.stack([self._pulls[one] for one in contrasts])

    def activations(self, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
        new = [pair for pair in pairs if repr(pair) not in self._seen]
        h_p, h_n = super().activations(new)
        for at, pair in enumerate(new):
            self._seen[repr(pair)] = h_p[:, at], h_n[:, at]
        found = [self._seen[repr(pair)] for pair in pairs]
        return (torch.stack([p for p, _ in found], dim=1),
                torch.stack([n for _, n in found], dim=1))  # fmt: skip


class Library(PlainPrompts):
    """The prompts of one fit, out of those of many fits that were read together."""

    def __init__(self, whole: PlainPrompts, prompts: Sequence[str]) -> None:
        super().__init__(whole.backbone, prompts)
        self.whole = whole

    def chunk(self, prompts: Sequence[str]) -> Prepared:
        return self.whole.chunk(prompts)


class Bench:
    """The frozen model, its settings, and the people of every task."""

    def __init__(self, asked: Asked) -> None:
        self.asked, profile = asked, asked.profile
        self.settings = EditSettings().with_(
            selection_k=profile.items, selection_rule="recent", theta_method="fitted",
            pairs_source="history", pairs_k_min=2, pairs_on_too_few="warn", check_edit="off",
            fit_loss="preference", fit_steps=asked.steps, fit_batch=32, fit_holdout=0.0,
            fit_leash=0.0, fit_lr=0.1, ccs_solver="span", ccs_tries=3, layers_rule="all",
            model_dtype=profile.dtype, decode_insight_tokens=profile.insight_tokens,
            prompts_item_words=profile.item_words or None,
        )  # fmt: skip
        opened = open_backbone(asked.backbone, self.settings, profile)
        if not isinstance(opened, HFBackbone) or opened.family != "decoder":
            raise UserError(
                f"{asked.backbone} is no decoder with weights of its own; give one to attack."
            )
        self.backbone = opened
        embedder = open_embedder(self.settings.selection_embedder, profile.offline)
        self.method = Remembering(opened, embedder, self.settings).remember()
        self.layers = range(opened.n_layers)
        self.title = "embedded world" if not asked.folder else "local LaMP-7"

    @cache  # noqa: B019 - a bench lives as long as its process
    def crowd(self, task: str, seed: int) -> Crowd:
        """The people of a task; of files they take minutes, so they are made once."""
        asked = self.asked
        held = max(4, asked.group // 5)
        if not asked.folder:
            return planted_crowd(task, seed, asked.group, held, asked.victims)
        return crowd_of_folder(self.method, asked.profile, asked.folder, asked.group, held,
                               asked.victims, POOLED)  # fmt: skip
