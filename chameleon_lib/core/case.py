"""A case: one group's pairs, and every edit that the registry makes from them.

Directions of activations come from ``core.directions``; those that need more, such as other texts
or a preference fit, receive the case itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from chameleon_lib.core.backbone import Backbone, Keep
from chameleon_lib.core.directions import Directions, get_direction
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import (
    Contrast,
    FittedDirections,
    PlainPrompts,
    contrasts_from_pairs,
    gold_contrasts,
)
from chameleon_lib.core.pairs import PreferencePair, PreparedUser
from chameleon_lib.core.settings import EditSettings


class Stages(Protocol):
    """The stages of ``Chameleon`` that a case asks for."""

    settings: EditSettings
    keep: Keep

    @property
    def backbone(self) -> Backbone: ...

    def with_(self, **changes: Any) -> Stages: ...

    def activations(self, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]: ...

    def directions(
        self, name: str, h_p: Tensor, h_n: Tensor, seed: int, main: Directions | None = None,
        *, checks: bool = False,
    ) -> Directions: ...

    def preference_fit(
        self, contrasts: Sequence[Contrast], prompts: PlainPrompts, seed: int, name: str
    ) -> FittedDirections: ...


@dataclass(eq=False)
class Case:
    """One group's pairs, and every edit that is made from them; each is found once.

    Attributes:
        method: The method.
        kept: Pairs with two different outputs.
        identical: The others.
        pairs: All, in their order.
        seed: Of directions and fits.
        users: The users of the pairs with gold answers, for the positive control alone.
        checks: Whether the paper's directions are found with the checks of CCS.
        fits: Record of every preference fit so far, by name.
    """

    method: Stages
    kept: list[PreferencePair]
    identical: list[PreferencePair]
    pairs: list[PreferencePair]
    seed: int
    users: Sequence[PreparedUser] = ()
    checks: bool = False
    fits: dict[str, FittedDirections] = field(default_factory=dict)
    _read: dict[tuple[str, ...], PlainPrompts] = field(default_factory=dict, repr=False)

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.pairs[0].task

    @cached_property
    def h(self) -> tuple[Tensor, Tensor]:
        """``H^P`` and ``H^N`` of the pairs that are kept, (L, K, d) each."""
        return self.method.activations(self.kept)

    @cached_property
    def main(self) -> Directions:
        """The paper's directions."""
        return self.method.directions("paper", *self.h, self.seed, checks=self.checks)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that the paper's edit chooses; the controls sit at them."""
        return self.main.choose_layers(self.method.settings)

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """What the fitted edit learns from."""
        return contrasts_from_pairs(self.task, self.kept, self.identical, self.method.settings)

    @cached_property
    def gold(self) -> list[Contrast]:
        """What the positive control learns from; nothing without ``users``."""
        if not self.users:
            return []
        return gold_contrasts(self.task, self.users, self.pairs, self.method.settings)

    def prompts(self, contrasts: Sequence[Contrast]) -> PlainPrompts:
        """The plain prompts of a fit, read once for all fits that ask the same ones."""
        texts = tuple(contrast.prompt for contrast in contrasts)
        if texts not in self._read:
            self._read[texts] = PlainPrompts(self.method.backbone, texts)
        return self._read[texts]

    def edit(self, name: str, seed: int | None = None) -> Edit:
        """The edit of a registered direction.

        Args:
            name: Its name.
            seed: Another than the case's, for another draw of ``random``.
        """
        entry = get_direction(name)
        if entry.of == "pairs":
            edit: Edit = entry.find(self if seed is None else replace(self, seed=seed))
            return edit
        settings = self.method.settings
        if name == "paper" and seed is None:
            return self.main.to_edit(settings, self.layers)
        main = self.main if seed is None else None
        found = self.method.directions(
            name, *self.h, self.seed if seed is None else seed, main
        )
        return found.to_edit(settings, self.layers)

    def fit(self, name: str, contrasts: Sequence[Contrast]) -> Edit:
        """The edit of a preference fit at all layers, whose record goes into :attr:`fits`."""
        with torch.enable_grad():  # an edit may be asked for where gradients are off
            prompts = self.prompts(contrasts)
            self.fits[name] = self.method.preference_fit(contrasts, prompts, self.seed, name)
        return self.fits[name].edit

    def edit_of_texts(
        self, method: Stages, pairs: Sequence[PreferencePair], name: str = "paper"
    ) -> Edit:
        """A direction of activations, found from other texts, at the layers of the case."""
        found = method.directions(name, *method.activations(pairs), self.seed)
        return found.to_edit(self.method.settings, self.layers)
