"""CHAMELEON in scikit-learn manners: ``Chameleon(backbone, embedder).fit(users)``.

The whole method of the paper for people who bring their own users: select history (eq. 1-2),
write insights, answer queries in both roles, read activations, find θ^P and θ^N, choose layers,
and return an edit that runs in the backbone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from chameleon_lib.core.contrasts import contrasts_from_pairs
from chameleon_lib.core.directions import Directions, fit_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import FittedDirections, fit_by_preference
from chameleon_lib.core.history import item_texts, select_history
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    answer_pairs,
    decode_settings,
    fit_context,
    keep_different,
    max_new_tokens,
    pair_texts,
    write_insights,
)
from chameleon_lib.core.protocols import Backbone, Embedder
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import answer_prompt, unseen_prompt
from chameleon_lib.lamp.records import User

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EditProfile:
    """What ``fit`` returns: an edit with where it came from.

    Attributes:
        task: LaMP task of the users.
        edit: The edit, ready for ``backbone.generate(..., edit=profile.edit)``.
        settings: Settings of the fit.
        backbone: Name and fingerprint of the model the directions belong to.
        users: Ids of the users whose pairs were pooled (one for a personal profile).
        n_pairs: Pairs the directions were made from.
        n_identical: Pairs that were discarded because both outputs agree.
        directions: Directions of all layers with diagnostics; None for fitted directions.
        fitted: Record of the gradient fit; None for the paper's directions.
    """

    task: str
    edit: Edit
    settings: EditSettings
    backbone: tuple[str, str]
    users: tuple[str, ...]
    n_pairs: int
    n_identical: int
    directions: Directions | None = None
    fitted: FittedDirections | None = None


@dataclass
class Chameleon:
    """The method, with a backbone and an embedder as arguments.

    Attributes:
        backbone: Frozen language model ω.
        embedder: Sentence embedder of eq. 1.
        settings: Every choice; ``EditSettings()`` is the paper's reading.
        counts: After a fit: users left out and history items dropped, by reason.
    """

    backbone: Backbone
    embedder: Embedder
    settings: EditSettings = field(default_factory=EditSettings)
    counts: dict[str, int] = field(default_factory=dict, init=False)
    _task: str = field(default="", init=False, repr=False)

    def prepare(self, users: Sequence[User]) -> list[PreparedUser]:
        """History selection (eq. 1-2) and both insights of every user of one task.

        Users whose history does not fit the context, or whose insight comes back empty, are left
        out and counted in ``counts``.
        """
        task = self._task = _one_task(users)
        texts = [text for user in users for text in item_texts(task, user.history, self.settings)]
        bounds = np.cumsum([len(user.history) for user in users])[:-1]
        vectors = np.split(self.embedder.encode(texts), bounds)
        chosen = []
        for user, part in zip(users, vectors, strict=True):
            items = [user.history[index] for index in select_history(part, self.settings)]
            kept = fit_context(self.backbone, user, items, self.settings)
            if kept:
                chosen.append((user, kept, len(items) - len(kept)))
        insights = write_insights(
            self.backbone, task, [kept for _, kept, _ in chosen], self.settings
        )
        prepared = [
            PreparedUser(user, kept, p, n, dropped)
            for (user, kept, dropped), (p, n) in zip(chosen, insights, strict=True)
            if p and n
        ]
        self.counts = {
            "users": len(users),
            "too_long": len(users) - len(chosen),
            "empty_insight": len(chosen) - len(prepared),
            "dropped_items": sum(user.dropped_items for user in prepared),
        }
        if any(self.counts[name] for name in ("too_long", "empty_insight", "dropped_items")):
            log.warning("history preparation: %s", self.counts)
        return prepared

    def pairs(self, users: Sequence[PreparedUser]) -> list[PreferencePair]:
        """Synthetic answers of both agents to every query, unfiltered."""
        return answer_pairs(self.backbone, users, self.settings)

    def activations(self, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
        """``H^P`` and ``H^N``, (L, K, d) float32 each."""
        task = self._task
        texts = [text for pair in pairs for text in pair_texts(task, pair, self.settings)]
        h = self.backbone.activations(
            [context for context, _ in texts],
            [answer for _, answer in texts],
            pooling=self.settings.embed_pooling,  # type: ignore[arg-type]
            site=self.settings.edit_site,
        )  # (L, 2K, d)
        return h[:, 0::2].contiguous(), h[:, 1::2].contiguous()

    def fit(self, users: Sequence[User]) -> EditProfile:
        """One edit for all ``users``: their pairs pooled (group mode), or one user's own.

        Raises:
            UserError: Fewer than ``pairs_k_min`` pairs with different outputs are left
                (``pairs_on_too_few``), or users of different tasks.
        """
        return self._fit_pairs(self.pairs(self.prepare(users)), seed=self.settings.seed)

    def fit_each(self, users: Sequence[User]) -> dict[str, EditProfile]:
        """One edit per user, from that user's pairs alone; generation is shared by all users."""
        pairs = self.pairs(self.prepare(users))
        own: dict[str, list[PreferencePair]] = {}
        for pair in pairs:
            own.setdefault(pair.user_id, []).append(pair)
        return {
            user_id: self._fit_pairs(group, seed=self.settings.seed)
            for user_id, group in own.items()
        }

    def answer(self, users: Sequence[User], profile: EditProfile | None = None) -> list[str]:
        """Answer every query of ``users``, in order (sections 3.2 and 4.3; A13, A19).

        ``infer_edit`` and ``infer_insight_in_prompt`` choose a cell of the 2 x 2 of insight and
        edit; ``eval_user_mode`` "unseen" with ``unseen_prompt`` "no_history" asks the plain
        question without any history.

        Args:
            users: Users of one task; with a history unless they are unseen.
            profile: The edit to run; needed while ``infer_edit`` is on.

        Raises:
            UserError: No profile, a profile of another task or backbone, or a user that
                :meth:`prepare` has to leave out.
        """
        task, s = _one_task(users), self.settings
        if s.infer_edit:
            self._check_profile(profile, task)
        if s.eval_user_mode == "unseen" and s.unseen_prompt == "no_history":
            prompts = [unseen_prompt(task, q.text) for user in users for q in user.queries]
        else:
            prepared = self.prepare(users)
            if len(prepared) < len(users):
                raise UserError(f"Some users cannot be asked ({self.counts}); leave them out.")
            prompts = [
                answer_prompt(
                    task,
                    user.items,
                    query.text,
                    role="P",
                    insight=user.insight_p if s.infer_insight_in_prompt else None,
                    baseline=s.prompts_baseline,  # type: ignore[arg-type]
                )
                for user in prepared
                for query in user.user.queries
            ]
        return self.backbone.generate(
            prompts,
            max_new_tokens=max_new_tokens(task, s),
            edit=profile.edit if profile is not None and s.infer_edit else None,
            decode=decode_settings(s),
        )

    def _check_profile(self, profile: EditProfile | None, task: str) -> None:
        if profile is None:
            raise UserError("answer needs the profile of a fit, or settings with infer_edit=False.")
        own = (self.backbone.name, self.backbone.fingerprint)
        if profile.task != task or profile.backbone != own:
            raise UserError(
                f"The profile belongs to {profile.task} and {profile.backbone[0]}, not to {task} "
                f"and {own[0]}; fit one for them."
            )

    def _fit_pairs(self, pairs: Sequence[PreferencePair], seed: int) -> EditProfile:
        kept, identical = keep_different(pairs, self.settings)
        check_pair_count(len(kept), self.settings)
        common: dict[str, Any] = {
            "task": self._task,
            "settings": self.settings,
            "backbone": (self.backbone.name, self.backbone.fingerprint),
            "users": tuple(dict.fromkeys(pair.user_id for pair in pairs)),
            "n_pairs": len(kept),
            "n_identical": len(identical),
        }
        directions = None
        if self.settings.theta_method == "paper" or self.settings.fit_layers != "all":
            h_p, h_n = self.activations(kept)
            directions = fit_directions(h_p, h_n, self.settings, seed)
        if self.settings.theta_method == "paper":
            assert directions is not None
            return EditProfile(
                edit=directions.to_edit(self.settings), directions=directions, **common
            )
        layers = fitted_layers(self.backbone, directions, self.settings)
        contrasts = contrasts_from_pairs(self._task, kept, identical, self.settings)
        fitted = fit_by_preference(self.backbone, contrasts, layers, self.settings, seed=seed)
        return EditProfile(edit=fitted.edit, fitted=fitted, directions=directions, **common)


def check_pair_count(n_pairs: int, settings: EditSettings) -> None:
    """Refuse (or warn about) a fit on too few pairs (A20).

    Raises:
        UserError: ``n_pairs`` is 0, or below ``pairs_k_min`` with ``pairs_on_too_few`` "error".
    """
    sentence = (
        f"{n_pairs} pairs with different outputs are left, fewer than pairs_k_min = "
        f"{settings.pairs_k_min}: pool more users, or set pairs_on_too_few to 'warn'."
    )
    if n_pairs == 0 or (n_pairs < settings.pairs_k_min and settings.pairs_on_too_few == "error"):
        raise UserError(sentence)
    if n_pairs < settings.pairs_k_min:
        log.warning(sentence)


def fitted_layers(
    backbone: Backbone, directions: Directions | None, settings: EditSettings
) -> tuple[int, ...]:
    """Layers a preference fit edits: all, or those the layer rule picks (``fit_layers``)."""
    if settings.fit_layers == "all":
        return tuple(range(backbone.n_layers))
    assert directions is not None
    return directions.choose_layers(settings)


def _one_task(users: Sequence[User]) -> str:
    tasks = sorted({user.task for user in users})
    if len(tasks) != 1:
        raise UserError(f"A fit needs users of one task, got {tasks or 'no users'}.")
    return tasks[0]
