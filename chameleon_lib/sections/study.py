"""One backbone on one task, stage by stage, every stage resumable: the spine of all notebooks.

    users → selected history → insights → pairs → activations

Each method is one arrow; directions are found in ``arms``, answers in ``answering``. Units are kept
in the artifact store under a hash of all that decides them: a killed notebook goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from chameleon_lib.core.insights import with_query_insights, write_insights, write_query_insights
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    answer_pairs,
    fit_context,
    pair_texts,
)
from chameleon_lib.core.protocols import Backbone, Embedder
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.records import HistoryItem, User
from chameleon_lib.sections.loading import open_backbone, open_embedder, open_writer
from chameleon_lib.sections.selection import stored_selection

_BATCH = 64
_Fitted = tuple[User, tuple[HistoryItem, ...], int]  # with the items that fit, and how many did not
_Unit = TypeVar("_Unit")


class Study:
    """Stages of one (backbone, task).

    Args:
        profile: Run profile.
        backbone_id: One of its backbones.
        task: Task name.
        settings: Every choice of the method.
        store: Artifact store; the default one if None.

    Raises:
        UserError: Settings with a ``pairs_k_max``.
    """

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
        self.profile = profile
        self.backbone_id = backbone_id
        self.task = task
        self.settings = settings
        self.store = store or ArtifactStore()

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, loaded on first use."""
        return open_backbone(self.backbone_id, self.settings, self.profile)

    @cached_property
    def writer(self) -> Backbone:
        """Who writes insights and pairs, the backbone or vLLM (``RunProfile.generator``)."""
        return open_writer(self.backbone, self.backbone_id, self.settings, self.profile)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the backbone computes."""
        return self.backbone.fingerprint

    @cached_property
    def embedder(self) -> Embedder:
        """The sentence embedder, loaded on first use."""
        return open_embedder(self.settings.selection_embedder, self.profile.offline)

    def inputs(self, *fields: str) -> dict[str, Any]:
        """For a store key: backbone, task and the settings that start with one of ``fields``."""
        chosen = self.settings.canonical()
        return {
            "backbone": self.fingerprint,
            "task": self.task,
            "settings": {k: v for k, v in chosen.items() if k.startswith(fields)},
        }

    def _writing(self) -> dict[str, Any]:
        """For the store keys of insights and pairs."""
        asked = self.inputs("insight_", "decode_", "prompts_", "model_")
        return asked | {"backbone": self.writer.fingerprint}

    def select(self, users: Sequence[User]) -> list[list[int]]:
        """Eq. 1-2, or ``selection_rule``: indices of the selected history items, per user."""
        return stored_selection(self.store, users, self.settings, lambda: self.embedder)

    def prepare(self, users: Sequence[User]) -> tuple[list[PreparedUser], dict[str, int]]:
        """Selected history and both insights per user.

        Returns:
            Users that can be used, and counts of those that cannot: ``no_history`` (of their own),
            ``too_long`` (not one history item fits the context) and ``empty_insight`` (one of the
            user, or of a query where ``insight_scope`` is "query"); beside them ``dropped_items``.
        """
        fitted: list[_Fitted] = []
        for user, indices in zip(users, self.select(users), strict=True):
            items = [user.history[index] for index in indices]
            fitting = fit_context(self.backbone, user, items, self.settings)
            if fitting:
                fitted.append((user, fitting, len(items) - len(fitting)))

        def compute(batch: list[_Fitted]) -> list[tuple[str, str]]:
            histories = [items for _, items, _ in batch]
            return write_insights(self.writer, self.task, histories, self.settings)

        insights = self._insights(
            "insights",
            fitted,
            compute,
            lambda entry: [[i.text, i.label] for i in entry[1]],
            lambda entry: [entry[0].id],
        )
        written = [
            PreparedUser(user, items, p, n, dropped)
            for (user, items, dropped), (p, n) in zip(fitted, insights, strict=True)
        ]
        kept = [user for user in written if user.complete]
        if self.settings.insight_scope == "query":
            kept = [user for user in self._per_query(kept) if user.complete]
        bare = sum(not user.history for user in users)
        return kept, {
            "users": len(users),
            "no_history": bare,
            "too_long": len(users) - bare - len(fitted),
            "empty_insight": len(written) - len(kept),
            "dropped_items": sum(user.dropped_items for user in written),
        }

    def _per_query(self, users: Sequence[PreparedUser]) -> list[PreparedUser]:
        """The users with both insights of every query (B2)."""

        def compute(some: list[PreparedUser]) -> list[list[tuple[str, str]]]:
            return write_query_insights(self.writer, self.task, some, self.settings)

        insights = self._insights("query_insights", users, compute, _prepared_key, _owner)
        return with_query_insights(users, insights)

    def _insights(
        self,
        stage: str,
        units: Sequence[_Unit],
        compute: Callable[[list[_Unit]], Sequence[Any]],
        key_of: Callable[[_Unit], Any],
        about: Callable[[_Unit], list[str]],
    ) -> list[Any]:
        """Insights of users, or of their queries, through the store."""
        return self.store.map(
            stage,
            units,
            compute,
            inputs=self._writing(),
            key_of=key_of,
            batch_size=_BATCH,
            label=f"{self.backbone_id} {self.task} insights",
            modules=("chameleon_lib.core.insights", "chameleon_lib.backbones"),
            about=about,
        )

    def pairs(self, users: Sequence[PreparedUser]) -> list[PreferencePair]:
        """Both synthetic answers to every query, unfiltered."""

        def compute(batch: list[PreparedUser]) -> list[list[list[str]]]:
            pairs = iter(answer_pairs(self.writer, batch, self.settings))
            answered = ([pair.answer_p, pair.answer_n] for pair in pairs)
            return [[next(answered) for _ in user.user.queries] for user in batch]

        rows = self.store.map(
            "pairs",
            users,
            compute,
            inputs=self._writing(),
            key_of=_prepared_key,
            batch_size=_BATCH,
            label=f"{self.backbone_id} {self.task} pairs",
            modules=("chameleon_lib.core.preferences", "chameleon_lib.backbones"),
            about=_owner,
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
            inputs=self.inputs("pairs_text", "embed_", "edit_site", "t5_", "model_", "prompts_"),
            key_of=lambda pair: [
                pair.query,
                [[i.text, i.label] for i in pair.items],
                pair.answer_p,
                pair.answer_n,
            ],
            batch_size=_BATCH,
            label=f"{self.backbone_id} {self.task} activations",
            modules=("chameleon_lib.core.preferences", "chameleon_lib.backbones"),
            about=lambda pair: [pair.user_id],
        )
        h = torch.stack([torch.as_tensor(record["h"]) for record in records], dim=2)  # (L, 2, K, d)
        return h[:, 0].contiguous(), h[:, 1].contiguous()


def _owner(user: PreparedUser) -> list[str]:
    return [user.user.id]


def _prepared_key(user: PreparedUser) -> list[Any]:
    """What of a prepared user decides generations: never the gold."""
    return [
        [[item.text, item.label] for item in user.items],
        [[query.text, query.input] for query in user.user.queries],
        user.insight_p,
        user.insight_n,
        *map(list, user.query_insights),
    ]
