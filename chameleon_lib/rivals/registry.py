"""What another method is, beside CHAMELEON in the tables, and the registry of all of them.

A rival is one file that registers itself; the studies find it by its row id and ask it nothing
else. From a notebook cell it works as well, before the first study runs:

    register(MyRival())
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.backbone import Backbone, Family
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.rivals.settings import TunerSettings
from chameleon_lib.rivals.tuned import Tuned


class Rival(Protocol):
    """A row of the tables that is another method.

    Attributes:
        id: Key of the row.
        title: Name of the row.
        paper: Name in the paper's tables, or "" if it has no row there.
        uses_gold: Whether it learns from gold answers of train users.
    """

    @property
    def id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def paper(self) -> str: ...
    @property
    def uses_gold(self) -> bool: ...


@runtime_checkable
class PromptedRival(Rival, Protocol):
    """A rival of the untouched model: it writes something first, then asks with it in the prompt.

    What it writes is kept per user, under its id and the code of its module.
    """

    def suits(self, task: str) -> bool:
        """Whether it has a meaning for a task."""
        ...

    def write(
        self, backbone: Backbone, users: Sequence[PreparedUser], settings: EditSettings
    ) -> list[str]:
        """One text per query of ``users``, in order users × queries."""
        ...

    def prompts(
        self, users: Sequence[PreparedUser], written: Sequence[str], settings: EditSettings
    ) -> list[str]:
        """The answer prompt of every query, given what was written."""
        ...


@dataclass(frozen=True)
class Lesson:
    """What a trained rival may learn from: one group.

    Attributes:
        group: Train users with gold answers, which only a rival that ``uses_gold`` may read.
        contrasts: The group's pairs under the plain prompt, ties included.
        settings: The method's settings, for the wording of prompts.
    """

    group: Sequence[PreparedUser]
    contrasts: Sequence[Contrast]
    settings: EditSettings


@runtime_checkable
class TrainedRival(Rival, Protocol):
    """A rival that changes weights. What a training cost is in its log (``Tuned.log``)."""

    def settings(
        self, run: RunProfile, embedded: bool, family: Family, **changes: Any
    ) -> TunerSettings:
        """The recipe at the scale of a run profile; ``embedded`` models have one of their own."""
        ...

    def prompt(self, settings: Any) -> str:
        """The prompt kind it is trained on and asked with: ``instruct`` or ``unseen``."""
        ...

    def material(self, lesson: Lesson, settings: Any) -> dict[str, Any]:
        """All that it reads of a lesson: a training is kept under it and its settings."""
        ...

    def fit(self, backbone: HFBackbone, lesson: Lesson, settings: Any, *, seed: int) -> Tuned:
        """Train a copy; the backbone stays as it is."""
        ...


RIVALS: dict[str, Rival] = {}  # by id, in the order of the tables
_Kind = TypeVar("_Kind", bound=Rival)


def register(rival: _Kind) -> _Kind:
    """Give a rival its row in the tables; one of the same id is replaced."""
    if not isinstance(rival, PromptedRival | TrainedRival):
        raise UserError(
            f"{type(rival).__name__} is no rival: it needs write and prompts, or material and fit."
        )
    RIVALS[rival.id] = rival
    return rival


def prompted() -> list[PromptedRival]:
    """The registered rivals that only prompt."""
    return [rival for rival in RIVALS.values() if isinstance(rival, PromptedRival)]


def trained() -> list[TrainedRival]:
    """The registered rivals that train."""
    return [rival for rival in RIVALS.values() if isinstance(rival, TrainedRival)]


def trained_rival(name: str) -> TrainedRival:
    """The trained rival of that id.

    Raises:
        UserError: There is none.
    """
    found = RIVALS.get(name)
    if not isinstance(found, TrainedRival):
        known = ", ".join(rival.id for rival in trained())
        raise UserError(f"There is no trained rival {name!r}; registered are {known}.")
    return found
