"""The stages that write and read texts with the frozen model: from users to pairs and activations.

    users → select → prepare → pairs → activations

and where pairs come from (``pairs_source``). ``Chameleon`` goes on from here. A finished unit of
work is kept under all that decides it, so that a killed run goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.core.backbone import Backbone, Embedder, Keep, Unit, Unkept
from chameleon_lib.core.history import select_items
from chameleon_lib.core.pairs import (
    EMPTY_INSIGHT,
    NO_HISTORY,
    TOO_LONG,
    PreferencePair,
    Preparation,
    PreparedUser,
    answer_pairs,
    decode_settings,
    fit_context,
    max_new_tokens,
    pair_texts,
    plain_prompt,
    write_insights,
    write_query_insights,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.sources import (
    PairQuality,
    filtered,
    history_pairs,
    own_history_gains,
    pair_quality,
    with_golds,
)
from chameleon_lib.core.task import HistoryItem, User, get_task
from chameleon_lib.errors import UserError

log = logging.getLogger(__name__)

_BATCH = 64  # users or pairs in work at a time
_WRITING = ("insight_", "decode_", "prompts_", "model_")  # settings that write insights and pairs


class Stages:
    """A frozen model with the stages that come before any direction; arguments as of Chameleon."""

    def __init__(
        self,
        backbone: Backbone,
        embedder: Embedder,
        settings: EditSettings | None = None,
        keep: Keep | None = None,
    ) -> None:
        self._backbone, self._embedder = backbone, embedder
        self.settings = settings or EditSettings()
        self.keep: Keep = keep or Unkept()

    @property
    def backbone(self) -> Backbone:
        return self._backbone

    @property
    def embedder(self) -> Embedder:
        return self._embedder

    @property
    def scorer(self) -> Backbone:
        """Who scores the answers of a fit: the backbone, counting their tokens if it can."""
        counting = getattr(self.backbone, "counting", None)
        return self.backbone if counting is None else counting()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the backbone computes."""
        return self.backbone.fingerprint

    @property
    def code(self) -> tuple[str, str]:
        """Modules of backbone and embedder, which the keys of kept work name."""
        return type(self.backbone).__module__, type(self.embedder).__module__

    def tell(self, note: str) -> None:
        """Say what takes long while it runs."""
        log.info(note)

    def _inputs(self, task: str, *prefixes: str) -> dict[str, Any]:
        """For a store key: backbone, task and the settings that start with one of ``prefixes``."""
        settings = self.settings.starting(*prefixes)
        wording = get_task(task).wording_digest
        own = {"backbone": self.fingerprint, "task": task}
        return own | {"wording": wording, "settings": settings}

    def _map(
        self,
        stage: str,
        units: Sequence[Unit],
        compute: Callable[[list[Unit]], Sequence[Any]],
        inputs: dict[str, Any],
        key_of: Callable[[Unit], Any],
    ) -> Iterable[Any]:
        """A stage of texts or activations, unit by unit."""
        return self.keep.map(
            stage,
            units,
            compute,
            inputs=inputs,
            key_of=key_of,
            batch_size=_BATCH,
            label=f"{self.backbone.name} {inputs['task']} {stage.replace('_', ' ')}",
            modules=library_modules("chameleon_lib.core.pairs", self.code[0]),
        )

    def select(self, users: Sequence[User]) -> list[list[int]]:
        """Eq. 1-2, or ``selection_rule``: indices of the selected history items, per user."""
        code = library_modules(self.code[1])
        # The embedder may be opened by the first call.
        return select_items(
            users, lambda texts: self.embedder.encode(texts), self.settings, self.keep, code,
            self.tell,
        )  # fmt: skip

    def prepare(self, users: Sequence[User]) -> Preparation:
        """Selected history (eq. 1-2) and both insights of every user of one task.

        Users without a history, or whose history does not fit the context, or of whom an insight
        comes back empty, are left out, with the reason.
        """
        if not users:
            return Preparation([], {})
        task = one_task(users)
        selected, left = self._selected(users)
        written = self._with_insights(task, selected)
        left |= {user.user.id: EMPTY_INSIGHT for user in written if not user.complete}
        return Preparation([user for user in written if user.complete], left)

    def _selected(self, users: Sequence[User]) -> tuple[list[PreparedUser], dict[str, str]]:
        """The users with the history they show, without insights; id of the others → why."""
        selected, left = [], {}
        for user, indices in zip(users, self.select(users), strict=True):
            items = [user.history[index] for index in indices]
            fitting = fit_context(self.backbone, user, items, self.settings)
            if fitting:
                cut = sum(all(item is not one for one in items) for item in fitting)
                gone = len(items) - len(fitting)
                selected.append(PreparedUser(user, fitting, "", "", gone, cut))
            else:
                left[user.id] = TOO_LONG if user.history else NO_HISTORY
        return selected, left

    def _with_insights(self, task: str, users: Sequence[PreparedUser]) -> list[PreparedUser]:
        """The users with all insights that ``insight_scope`` asks for, empty ones among them."""
        backbone, settings, inputs = self.backbone, self.settings, self._inputs(task, *_WRITING)
        found = self._map(
            "insights",
            users,
            lambda some: write_insights(backbone, task, [user.items for user in some], settings),
            inputs,
            lambda user: _texts(user.items),
        )
        pairs = zip(users, found, strict=True)
        users = [replace(user, insight_p=p, insight_n=n) for user, (p, n) in pairs]
        if settings.insight_scope != "query":
            return users
        per_query = self._map(
            "query_insights",
            users,
            lambda some: write_query_insights(backbone, task, some, settings),
            inputs,
            _prepared_key,
        )
        return [
            replace(user, query_insights=tuple((p, n) for p, n in own))
            for user, own in zip(users, per_query, strict=True)
        ]

    def pairs(self, prepared: Preparation | Sequence[PreparedUser]) -> list[PreferencePair]:
        """Synthetic answers of both agents to every query, unfiltered."""
        users = prepared.users if isinstance(prepared, Preparation) else list(prepared)
        if not users:
            return []
        task = one_task([user.user for user in users])

        def compute(batch: list[PreparedUser]) -> list[list[list[str]]]:
            pairs = iter(answer_pairs(self.backbone, batch, self.settings))
            answered = ([pair.answer_p, pair.answer_n] for pair in pairs)
            return [[next(answered) for _ in user.user.queries] for user in batch]

        inputs = self._inputs(task, *_WRITING)
        rows = self._map("pairs", users, compute, inputs, _prepared_key)
        return [
            PreferencePair(u.user.id, q.id, q.text, u.items, p, n, task)
            for u, answered in zip(users, rows, strict=True)
            for q, (p, n) in zip(u.user.queries, answered, strict=True)
        ]

    def activations(self, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
        """``H^P`` and ``H^N``, each (L, K, d) float32, rows in the order of ``pairs``."""
        h_p = h_n = torch.zeros(self.backbone.n_layers, 0, self.backbone.d)
        if not pairs:
            return h_p, h_n
        task, s = pairs[0].task, self.settings

        def compute(batch: list[PreferencePair]) -> list[dict[str, Tensor]]:
            texts = [text for pair in batch for text in pair_texts(task, pair, s)]
            h = self.backbone.activations(
                [context for context, _ in texts],
                [answer for _, answer in texts],
                pooling=s.embed_pooling,
                site=s.edit_site,
            )  # (L, 2K, d)
            return [{"h": h[:, 2 * i : 2 * i + 2].clone()} for i in range(len(batch))]

        records = self._map(
            "activations",
            pairs,
            compute,
            self._inputs(task, "pairs_text", "embed_", "edit_site", "t5_", "model_", "prompts_"),
            lambda pair: [pair.query, _texts(pair.items), pair.answer_p, pair.answer_n],
        )
        for at, record in enumerate(records):
            h = torch.as_tensor(record["h"])  # (L, 2, d)
            if at == 0:
                shape = (h.shape[0], len(pairs), h.shape[2])
                h_p, h_n = h.new_empty(shape), h.new_empty(shape)
            h_p[:, at], h_n[:, at] = h[:, 0], h[:, 1]
        return h_p, h_n

    @property
    def source(self) -> str:
        """``pairs_source``, with "auto" resolved."""
        chosen = self.settings.pairs_source
        own = "history" if self.settings.theta_method == "fitted" else "self"
        return own if chosen == "auto" else chosen

    def source_pairs(self, users: Sequence[User]) -> list[PreferencePair]:
        """The pairs that a fit of ``users`` learns from, by ``pairs_source``.

        Source "history" needs no insights, so none are written for it.

        Raises:
            UserError: Users of different tasks, or source "gold" and a query without a gold answer.
        """
        one_task(users)
        source = self.source
        if source == "history":
            return self.history_pairs(users)
        prepared = self.prepare(users)
        if prepared.left_out or prepared.counts["dropped_items"] or prepared.counts["cut_items"]:
            log.warning("history preparation: %s", prepared.counts)
        pairs = self.pairs(prepared)
        if source == "gold":
            return with_golds(pairs, prepared.users)
        return self.filtered(pairs) if source == "filtered" else pairs

    def filtered(self, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
        """Those of the pairs that are worth learning from (``sources.filtered``)."""
        return filtered(pairs, self.settings, self._own(pairs))

    def history_pairs(self, users: Sequence[User], skip: int = 0) -> list[PreferencePair]:
        """What ``users`` wrote against the model's neutral version (``sources.history_pairs``).

        Users whose history does not fit the context, or is empty, are left out and named in a
        warning.
        """
        selected, left = self._selected(users)
        for why in dict.fromkeys(left.values()):
            named = ", ".join(one for one in left if left[one] == why)
            log.warning("no pairs of %s: %s", named, why)
        if not selected:
            return []
        neutral = partial(self.neutral_outputs, selected[0].user.task)
        return history_pairs(selected, neutral, self.settings, skip)

    def neutral_outputs(self, task: str, prompts: Sequence[str]) -> list[str]:
        """The unedited backbone's answers to prompts that show no history."""
        limit = max_new_tokens(task, self.settings)
        answers: list[str] = self.keep.get_or_compute(
            "neutral_outputs",
            {
                "backbone": self.fingerprint,
                "prompts": list(prompts),
                "max_new_tokens": limit,
                "settings": self.settings.starting("decode_", "model_"),
            },
            lambda: self.backbone.generate(
                prompts, max_new_tokens=limit, decode=decode_settings(self.settings)
            ),
            modules=("chameleon_lib.core.pairs",),
        )
        return answers

    def pair_quality(self, pairs: Sequence[PreferencePair], *, own: bool = True) -> PairQuality:
        """How good pairs are, before a fit learns from them; ``sentence()`` is to be printed.

        Args:
            own: Whether the personalised answers are scored under the own and another history,
                which reads two prompts per pair.
        """
        return pair_quality(pairs, self.settings, self._own(pairs) if own else None)

    def _own(self, pairs: Sequence[PreferencePair]) -> list[float] | None:
        """``own_history_gains``, kept."""
        told = [[pair.user_id, plain_prompt(pair, self.settings), pair.answer_p] for pair in pairs]
        gains: list[float] | None = self.keep.get_or_compute(
            "own_history",
            {"backbone": self.fingerprint, "pairs": told},
            lambda: own_history_gains(self.backbone, pairs, self.settings),
            modules=library_modules("chameleon_lib.core.sources", self.code[0]),
        )
        return gains


def library_modules(*modules: str) -> tuple[str, ...]:
    """Those of the modules that belong to the library, whose code a key can name."""
    return tuple(dict.fromkeys(name for name in modules if name.startswith("chameleon_lib.")))


def _texts(items: Sequence[HistoryItem]) -> list[list[str | None]]:
    return [[item.text, item.label] for item in items]


def _prepared_key(user: PreparedUser) -> list[Any]:
    """What of a prepared user decides generations: never the gold."""
    return [
        _texts(user.items),
        [[query.text, query.input] for query in user.user.queries],
        user.insight_p,
        user.insight_n,
        *map(list, user.query_insights),
    ]


def one_task(users: Sequence[User]) -> str:
    tasks = sorted({user.task for user in users})
    if len(tasks) != 1:
        raise UserError(f"A fit needs users of one task, got {tasks or 'no users'}.")
    return tasks[0]
