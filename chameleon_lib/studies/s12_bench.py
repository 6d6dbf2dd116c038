"""The model and the users of the study of collective and own edits, and how edits are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.core.pairs import max_new_tokens
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.data import TaskData, load_task_data
from chameleon_lib.studies.s12_fits import Fitted, Lessons, Recipe, row_lora
from chameleon_lib.studies.s12_people import People, Question, enough, of_files, of_world
from chameleon_lib.studies.study import Study, settings_for

FIRST_TOKENS = 4  # of an answer, over which the divergence is a mean


@dataclass(frozen=True)
class Asked:
    """What a run is asked for; picklable, so that workers open their own.

    Attributes:
        profile: Run profile.
        backbone: Model id.
        folder: Of LaMP files; empty for the embedded world.
        users: Users that are scored.
        dev: Users that choose rates and strengths; 0 takes the first of each, as without any.
        seeds: Of all that is fitted.
        recipe: Of every fit of one user.
        root: Of the artifact store.
    """

    profile: RunProfile
    backbone: str
    folder: str
    users: int
    dev: int
    seeds: int
    recipe: Recipe
    root: Path


@dataclass(frozen=True)
class Setting:
    """Users of a task: of the world with so much of a common taste, or of files."""

    task: str
    common: float = 0.0

    @property
    def title(self) -> str:
        """As tables say it."""
        name = self.task.replace("_", "-")
        return f"{name}, one common taste" if self.common else name


@dataclass(frozen=True, eq=False)
class Measured:
    """What one arm answers to some questions.

    Attributes:
        nats: log p of the gold answers, ``(Q,)``.
        texts: Greedy answers.
        kl: KL(unedited || edited) at the first answer tokens, ``(Q,)``, NaN where not measured.
    """

    nats: np.ndarray
    texts: list[str]
    kl: np.ndarray


def per_user(questions: Sequence[Question], values: np.ndarray, users: int) -> np.ndarray:
    """Means over each user's questions, ``(users,)``; NaN for who has none."""
    owners = np.array([question.owner for question in questions])
    sums = np.bincount(owners, weights=values, minlength=users)
    counts = np.bincount(owners, minlength=users)
    return np.divide(sums, counts, out=np.full(users, np.nan), where=counts > 0)


class Bench:
    """One model with the users of several settings; asks it under their edits."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.store = ArtifactStore(asked.root)
        self._people: dict[Any, People] = {}
        self._lessons: dict[Any, Lessons] = {}
        self._studies: dict[str, Study] = {}

    def study(self, task: str) -> Study:
        """The method with the run's names."""
        if task not in self._studies:
            settings = settings_for(self.asked.profile, ccs_solver="span")
            self._studies[task] = Study(
                self.asked.profile, self.asked.backbone, task, settings, self.store
            )
        return self._studies[task]

    @cached_property
    def backbone(self) -> HFBackbone:
        """The model."""
        opened = self.study("LaMP_2").backbone
        if not isinstance(opened, HFBackbone):
            raise UserError(f"{self.asked.backbone} has no weights of its own to edit.")
        return opened

    @property
    def choosers(self) -> int:
        """Number of dev users; files may have none whose history is long enough."""
        if not self.asked.folder:
            return self.asked.dev
        return len(enough(self._files.dev)[: self.asked.dev])

    @cached_property
    def _files(self) -> TaskData:
        asked = self.asked
        return load_task_data(asked.profile, main_task(asked), asked.folder, asked.users)

    def people(self, setting: Setting, part: str = "test") -> People:
        """The users of a setting: those scored (``test``), ``dev`` or ``train`` (of the world)."""
        key = (setting, part)
        if key not in self._people:
            task = setting.task

            def neutral(prompts: Sequence[str]) -> list[str]:
                return self.study(task).neutral_outputs(task, list(prompts))

            if self.asked.folder:
                data = self._files
                users = data.test if part == "test" else enough(data.dev)[: self.asked.dev]
                self._people[key] = of_files(task, users, neutral, data.source)
            else:
                n = self.asked.dev if part == "dev" else self.asked.users
                self._people[key] = of_world(
                    task, n, neutral, split=part, common=setting.common
                )
        return self._people[key]

    def lessons(self, setting: Setting, part: str = "test") -> Lessons:
        """Their lessons, read once."""
        key = (setting, part)
        if key not in self._lessons:
            self._lessons[key] = Lessons(self.backbone, self.people(setting, part).lessons)
        return self._lessons[key]

    def able(self, setting: Setting, part: str = "test") -> list[int]:
        """Owners with a lesson; the others have no own edit and are left out of every arm."""
        people = self.people(setting, part)
        return sorted({lesson.owner for lesson in people.lessons}
                      & {question.owner for question in people.questions})  # fmt: skip

    # --- answers --------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(
        self, setting: Setting, questions: Sequence[Question], edit: AnyEdit | None, *,
        texts: bool = True, plain: Sequence[str] | None = None,
    ) -> Measured:  # fmt: skip
        """What the model says to questions under a per-row edit; ``plain`` asks for the KL."""
        backbone, golds = self.backbone, [question.gold for question in questions]
        read = backbone.prepare([question.prompt for question in questions])
        nats = backbone.score(read, golds, edit=edit).double().numpy()
        kl = np.full(len(golds), np.nan)
        if plain is not None and edit is not None:
            moved = backbone.divergence(read, plain, edit=edit, tokens=FIRST_TOKENS)
            kl = moved[:, 0].double().numpy()
        limit = max_new_tokens(setting.task, self.study(setting.task).settings)
        said = (
            backbone.generate_prepared(read, max_new_tokens=limit, edit=edit) if texts else []
        )
        return Measured(nats, said, kl)

    def under(
        self, setting: Setting, questions: Sequence[Question], fitted: Fitted,
        groups: Sequence[int], *, texts: bool = True, plain: Sequence[str] | None = None,
    ) -> Measured:  # fmt: skip
        """The same under the edits of these groups, one per question."""
        if fitted.form != "lora":
            edit = fitted.rows(groups)
            return self.answer(setting, questions, edit, texts=texts, plain=plain)
        return self._under_weights(setting, questions, fitted, groups, texts)

    @torch.no_grad()
    def _under_weights(
        self, setting: Setting, questions: Sequence[Question], fitted: Fitted,
        groups: Sequence[int], texts: bool,
    ) -> Measured:  # fmt: skip
        """A LoRA is no edit of outputs: it scores a batch at a time, and answers user by user."""
        backbone, golds = self.backbone, [question.gold for question in questions]
        prompts, own = [question.prompt for question in questions], torch.tensor(groups)
        nats, said = torch.zeros(len(golds)), [""] * len(golds)
        read = backbone.prepare(prompts)
        for places, batch in backbone.in_turn(read):
            with row_lora(backbone, fitted, own[places]):
                nats[places] = backbone.score(batch, [golds[at] for at in places])
        limit = max_new_tokens(setting.task, self.study(setting.task).settings)
        for group in sorted(set(groups)) if texts else []:
            places = [at for at, other in enumerate(groups) if other == group]
            part = backbone.rows(read, places)
            with fitted.weights(group, backbone).active(backbone.model):
                answers = [
                    backbone.generate_prepared(backbone.rows(part, [at]), max_new_tokens=limit)[0]
                    for at in range(len(places))
                ]
            for at, text in zip(places, answers, strict=True):
                said[at] = text
        return Measured(nats.double().numpy(), said, np.full(len(golds), np.nan))


def main_task(asked: Asked) -> str:
    """The task of the tables beside the arms."""
    return "LaMP_7" if asked.folder else "LaMP_2"


def settings_of(asked: Asked) -> list[Setting]:
    """The settings of the arms."""
    if asked.folder:
        return [Setting("LaMP_7")]
    return [*(Setting(task) for task in asked.profile.tasks), Setting("LaMP_2", 1.0)]
