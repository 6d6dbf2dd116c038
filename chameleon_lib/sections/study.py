"""One backbone on one task, stage by stage, every stage resumable: the spine of all notebooks.

    users → selected history → insights → pairs → activations → directions → answers

Each method is one arrow. Units (a user, a pair, an arm) are kept in the artifact store under a
hash of everything that decides them, so a killed notebook continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.history import item_texts, select_history
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    answer_pairs,
    decode_settings,
    fit_context,
    max_new_tokens,
    pair_texts,
    write_insights,
)
from chameleon_lib.core.protocols import Backbone, Embedder
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.prompts import answer_prompt, official_prompt, unseen_prompt
from chameleon_lib.lamp.records import User
from chameleon_lib.sections.loading import open_backbone, open_embedder

# Prompts that an answer can be asked with; "insight" is the personalised prompt of A.3.
PROMPTS = ("instruct", "insight", "neutral", "official", "official_history", "unseen")
_UNIT = 64


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


class Study:
    """Stages of one (backbone, task)."""

    def __init__(
        self,
        profile: RunProfile,
        backbone_id: str,
        task: str,
        settings: EditSettings,
        store: ArtifactStore | None = None,
    ) -> None:
        self.profile = profile
        self.backbone_id = backbone_id
        self.task = task
        self.settings = settings
        self.store = store or ArtifactStore()

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, loaded on first use."""
        return open_backbone(self.backbone_id, self.settings)

    @cached_property
    def embedder(self) -> Embedder:
        """The sentence embedder, loaded on first use."""
        return open_embedder(self.settings.selection_embedder, self.profile.offline)

    def _inputs(self, *fields: str) -> dict[str, Any]:
        """Backbone and the settings whose names start with one of ``fields``."""
        chosen = self.settings.canonical()
        return {
            "backbone": self.backbone.fingerprint,
            "task": self.task,
            "settings": {k: v for k, v in chosen.items() if k.startswith(fields)},
        }

    def select(self, users: Sequence[User]) -> list[list[int]]:
        """Eq. 1-2: indices of the selected history items, per user."""

        def compute(batch: list[User]) -> list[list[int]]:
            texts = [t for u in batch for t in item_texts(u.task, u.history, self.settings)]
            vectors = self.embedder.encode(texts)
            bounds = np.cumsum([len(user.history) for user in batch])[:-1]
            return [select_history(part, self.settings) for part in np.split(vectors, bounds)]

        chosen = self.settings.canonical()
        return self.store.map(
            "select",
            users,
            compute,
            inputs={k: v for k, v in chosen.items() if k.startswith("selection_")},
            key_of=lambda user: [user.task, [[i.text, i.label] for i in user.history]],
            batch_size=4 * _UNIT,
            label=f"{self.task} history selection",
            modules=("chameleon_lib.core.history", "chameleon_lib.backbones.embedder"),
        )

    def prepare(self, users: Sequence[User]) -> tuple[list[PreparedUser], dict[str, int]]:
        """Selected history and both insights per user.

        Returns:
            Users that can be used, and counts of those that cannot: ``too_long`` (not one history
            item fits the context) and ``empty_insight``; beside them ``dropped_items``.
        """
        chosen = self.select(users)
        fitted = []
        for user, indices in zip(users, chosen, strict=True):
            items = [user.history[index] for index in indices]
            fitted.append(
                (user, fit_context(self.backbone, user, items, self.settings), len(items))
            )
        usable = [entry for entry in fitted if entry[1]]

        def compute(batch: list[tuple[User, Any, int]]) -> list[tuple[str, str]]:
            return write_insights(self.backbone, self.task, [e[1] for e in batch], self.settings)

        insights = self.store.map(
            "insights",
            usable,
            compute,
            inputs=self._inputs("insight_", "decode_", "prompts_", "model_"),
            key_of=lambda entry: [[i.text, i.label] for i in entry[1]],
            batch_size=_UNIT,
            label=f"{self.backbone_id} {self.task} insights",
            modules=("chameleon_lib.core.preferences", "chameleon_lib.backbones"),
        )
        prepared = [
            PreparedUser(user, items, p, n, dropped_items=total - len(items))
            for (user, items, total), (p, n) in zip(usable, insights, strict=True)
        ]
        kept = [user for user in prepared if user.insight_p and user.insight_n]
        return kept, {
            "users": len(users),
            "too_long": len(users) - len(usable),
            "empty_insight": len(prepared) - len(kept),
            "dropped_items": sum(user.dropped_items for user in prepared),
        }

    def pairs(self, users: Sequence[PreparedUser]) -> list[PreferencePair]:
        """Both synthetic answers to every query, unfiltered."""

        def compute(batch: list[PreparedUser]) -> list[list[list[str]]]:
            answered = iter(answer_pairs(self.backbone, batch, self.settings))
            rows = []
            for user in batch:
                own = [next(answered) for _ in user.user.queries]
                rows.append([[pair.answer_p, pair.answer_n] for pair in own])
            return rows

        rows = self.store.map(
            "pairs",
            users,
            compute,
            inputs=self._inputs("insight_", "decode_", "prompts_", "model_"),
            key_of=_prepared_key,
            batch_size=_UNIT,
            label=f"{self.backbone_id} {self.task} pairs",
            modules=("chameleon_lib.core.preferences", "chameleon_lib.backbones"),
        )
        return [
            PreferencePair(u.user.id, q.id, q.text, u.items, *answers)
            for u, answered in zip(users, rows, strict=True)
            for q, answers in zip(u.user.queries, answered, strict=True)
        ]

    def activations(self, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
        """``H^P`` and ``H^N``, each (L, K, d) float32, rows in the order of ``pairs``."""

        def compute(batch: list[PreferencePair]) -> list[dict[str, Tensor]]:
            texts = [text for pair in batch for text in pair_texts(self.task, pair, self.settings)]
            h = self.backbone.activations(
                [context for context, _ in texts],
                [answer for _, answer in texts],
                pooling=self.settings.embed_pooling,  # type: ignore[arg-type]
                site=self.settings.edit_site,
            )  # (L, 2K, d)
            return [{"h": h[:, 2 * i : 2 * i + 2].clone()} for i in range(len(batch))]

        records = self.store.map(
            "activations",
            pairs,
            compute,
            inputs=self._inputs("pairs_text", "embed_", "edit_site", "t5_", "model_", "prompts_"),
            key_of=lambda pair: [
                pair.query,
                [[i.text, i.label] for i in pair.items],
                pair.answer_p,
                pair.answer_n,
            ],
            batch_size=_UNIT,
            label=f"{self.backbone_id} {self.task} activations",
            modules=("chameleon_lib.core.preferences", "chameleon_lib.backbones"),
        )
        h = torch.stack([torch.as_tensor(record["h"]) for record in records], dim=2)  # (L, 2, K, d)
        return h[:, 0].contiguous(), h[:, 1].contiguous()

    def prompt_texts(self, users: Sequence[PreparedUser], kind: str) -> list[str]:
        """The prompts of all queries of ``users`` in one of :data:`PROMPTS`."""
        s = self.settings
        texts = []
        for prepared in users:
            for query in prepared.user.queries:
                if kind == "official":
                    texts.append(official_prompt(self.task, (), query))
                elif kind == "official_history":
                    texts.append(official_prompt(self.task, prepared.items, query))
                elif kind == "unseen":
                    texts.append(unseen_prompt(self.task, query.text))
                else:
                    role, insight = {
                        "instruct": ("P", None),
                        "insight": ("P", prepared.insight_p),
                        "neutral": ("N", prepared.insight_n),
                    }[kind]
                    texts.append(
                        answer_prompt(
                            self.task,
                            prepared.items,
                            query.text,
                            role=role,  # type: ignore[arg-type]
                            insight=insight,
                            baseline=s.prompts_baseline,  # type: ignore[arg-type]
                            fix_typos=s.prompts_fix_typos,
                        )
                    )
        return texts

    def answer(
        self,
        users: Sequence[PreparedUser],
        arms: Mapping[str, tuple[str, Edit | None]],
        reference: Reference,
    ) -> dict[str, Answers]:
        """Answers and margins of many arms.

        Every prompt kind is read once: the arms share the unedited prefix (decoder) or the encoder
        states, which an edit of the last positions leaves as they are.

        Args:
            users: Test users.
            arms: Name → (prompt kind, edit or None).
            reference: What margins compare.

        Returns:
            Name → answers, in the order of ``arms``.
        """
        different = [p != g for p, g in zip(reference.personal, reference.generic, strict=True)]
        limit = max_new_tokens(self.task, self.settings)
        prepared_of: dict[str, Any] = {}

        def compute(batch: list[tuple[str, tuple[str, Edit | None]]]) -> list[dict[str, Any]]:
            values = []
            for _, (kind, edit) in batch:
                if kind not in prepared_of:
                    prepared_of[kind] = self.backbone.prepare(self.prompt_texts(users, kind))
                prepared = prepared_of[kind]
                with torch.no_grad():
                    texts = self.backbone.generate_prepared(
                        prepared,
                        max_new_tokens=limit,
                        edit=edit,
                        decode=decode_settings(self.settings),
                    )
                    personal, generic = (
                        self.backbone.score(prepared, answers, edit=edit)
                        for answers in (reference.personal, reference.generic)
                    )
                margin = (personal - generic).double()
                margin[~torch.tensor(different)] = float("nan")
                values.append({"json": texts, "tensors": {"margin": margin}})
            return values

        records = self.store.map(
            "answers",
            list(arms.items()),
            compute,
            inputs={
                **self._inputs("decode_", "prompts_", "model_"),
                "users": [_prepared_key(user) for user in users],
                "reference": [reference.personal, reference.generic],
            },
            key_of=lambda arm: [arm[1][0], _edit_key(arm[1][1])],
            batch_size=8,
            label=f"{self.backbone_id} {self.task} answers",
            modules=("chameleon_lib.core.edit", "chameleon_lib.backbones"),
        )
        return {
            name: Answers(record["json"], np.asarray(record["tensors"]["margin"]))
            for name, record in zip(arms, records, strict=True)
        }


def _prepared_key(user: PreparedUser) -> list[Any]:
    """What of a prepared user decides generations: never the gold."""
    return [
        [[item.text, item.label] for item in user.items],
        [[query.text, query.input] for query in user.user.queries],
        user.insight_p,
        user.insight_n,
    ]


def _edit_key(edit: Edit | None) -> Any:
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
