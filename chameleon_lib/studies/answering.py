"""What every arm says: the test users' queries, asked in one kind of prompt under one edit each.

An arm is a name with (prompt kind, edit or None). Answers and margins are kept in the artifact
store under the prompts themselves and the edit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from chameleon_lib.core.backbone import Prepared
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import (
    PreparedUser,
    decode_settings,
    max_new_tokens,
    prompt_texts,
)
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.studies.study import Study

Key = TypeVar("Key", bound=Hashable)
_EDITED = ("instruct", "insight")  # edits are asked with these, in every draw again


@dataclass(frozen=True)
class Answers:
    """What one arm said.

    Attributes:
        texts: One answer per test query.
        margin: log p(user's answer) − log p(generic answer) per query, nats; NaN where the two
            are the same text.
    """

    texts: list[str]
    margin: np.ndarray


@dataclass(frozen=True)
class Reference:
    """Per test query the user's answer and the generic answer that margins compare."""

    personal: list[str]
    generic: list[str]


class Exam:
    """The queries of some users, for many arms and several calls.

    A prompt kind is read once for all arms of a call, and the kinds that edits are asked with once
    for all calls: the arms share the unedited prefix (decoder) or the encoder states, which an edit
    of the last positions leaves as they are.

    Args:
        study: Backbone, task, settings and store.
        users: Test users.
        reference: What margins compare.
    """

    def __init__(self, study: Study, users: Sequence[PreparedUser], reference: Reference) -> None:
        self.study, self.users, self.reference = study, users, reference
        self._texts: dict[str, list[str]] = {}
        self._read: dict[str, Prepared] = {}
        pairs = zip(reference.personal, reference.generic, strict=True)
        self._same = torch.tensor([p == g for p, g in pairs], dtype=torch.bool)

    def of(self, study: Study) -> Exam:
        """The same questions for another backbone, such as a tuned one."""
        return Exam(study, self.users, self.reference)

    def add_prompts(self, kind: str, texts: Sequence[str]) -> None:
        """Give the prompts of a kind of one's own, one per query.

        Raises:
            UserError: Another number of prompts than queries.
        """
        if len(texts) != len(self.reference.personal):
            raise UserError(f"{len(texts)} {kind} prompts for {len(self._same)} queries.")
        self._texts[kind] = list(texts)

    def answer(self, arms: Mapping[Key, tuple[str, Edit | None]]) -> dict[Key, Answers]:
        """Answers and margins of many arms.

        Args:
            arms: Name → (prompt kind, edit or None).

        Returns:
            Name → answers, in the order of ``arms``.
        """
        study, settings = self.study, self.study.settings
        kinds = {kind for kind, _ in arms.values()}
        for kind in kinds - self._texts.keys():
            self.add_prompts(kind, prompt_texts(study.task, self.users, kind, settings))
        keys = {kind: digest(self._texts[kind]) for kind in kinds}
        records = study.store.map(
            "answers",
            list(arms.values()),
            lambda batch: [self._asked(kind, edit) for kind, edit in batch],
            inputs={
                **study.inputs("decode_", "model_"),
                "max_new_tokens": max_new_tokens(study.task, settings),
                "reference": [self.reference.personal, self.reference.generic],
            },
            key_of=lambda arm: [keys[arm[0]], edit_key(arm[1])],
            batch_size=8,
            label=f"{study.backbone_id} {study.task} answers",
            modules=("chameleon_lib.core.edit", "chameleon_lib.backbones"),
            about=lambda _: [user.user.id for user in self.users],
        )
        # The others make room for the next fits: what a large model has read is gigabytes.
        self._read = {kind: read for kind, read in self._read.items() if kind in _EDITED}
        return {
            name: Answers(record["json"], np.asarray(record["tensors"]["margin"]))
            for name, record in zip(arms, records, strict=True)
        }

    def _asked(self, kind: str, edit: Edit | None) -> dict[str, Any]:
        """The stored value of one arm."""
        backbone, settings = self.study.backbone, self.study.settings
        if kind not in self._read:
            self._read[kind] = backbone.prepare(self._texts[kind])
        read = self._read[kind]
        with torch.no_grad():
            texts = backbone.generate_prepared(
                read,
                max_new_tokens=max_new_tokens(self.study.task, settings),
                edit=edit,
                decode=decode_settings(settings),
            )
            margin = torch.full(self._same.shape, float("nan"), dtype=torch.float64)
            if not self._same.all():  # who asks for no margin pays for none
                personal, generic = (
                    backbone.score(read, answers, edit=edit)
                    for answers in (self.reference.personal, self.reference.generic)
                )
                margin = (personal - generic).double().cpu()
                margin = margin.masked_fill(self._same, float("nan"))
        return {"json": texts, "tensors": {"margin": margin}}


def edit_key(edit: Edit | None) -> Any:
    """All of an edit that decides an answer, for a store key."""
    if edit is None:
        return None
    fields = ("layers", "alpha_p", "alpha_n", "order", "positions", "site", "compute_dtype")
    return [
        edit.theta_p.contiguous(),
        edit.theta_n.contiguous(),
        edit.gate_p,
        edit.gate_n,
        *[getattr(edit, field) for field in fields],
    ]
