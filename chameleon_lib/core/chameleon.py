"""CHAMELEON in scikit-learn manners: ``Chameleon(backbone, embedder).fit(users)``.

The whole method of the paper for people who bring their own users: select history (eq. 1-2),
write insights, answer queries in both roles, read activations, find θ^P and θ^N, choose layers,
and return an edit that runs in the backbone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.core.history import select_items
from chameleon_lib.core.insights import with_query_insights, write_insights, write_query_insights
from chameleon_lib.core.pool_fit import fit_pool
from chameleon_lib.core.pooling import USERS, Pool, parts, pooled, read_pairs
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    answer_pairs,
    check_pair_count,
    decode_settings,
    fit_context,
    max_new_tokens,
)
from chameleon_lib.core.protocols import Backbone, Embedder
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import answer_prompt, unseen_prompt
from chameleon_lib.lamp.records import User

log = logging.getLogger(__name__)

NO_HISTORY = "The history is empty."
TOO_LONG = "Not one history item fits the context beside the query."
EMPTY_INSIGHT = "An insight came back empty."


@dataclass
class Chameleon:
    """The method, with a backbone and an embedder as arguments.

    Attributes:
        backbone: Frozen language model ω.
        embedder: Sentence embedder of eq. 1.
        settings: Every choice; ``EditSettings()`` is the paper's reading.
        counts: After :meth:`prepare` or a fit: users left out and history items dropped, by
            reason.
        left_out: Likewise: id of every user who has no part in it → why, one sentence.
    """

    backbone: Backbone
    embedder: Embedder
    settings: EditSettings = field(default_factory=EditSettings)
    counts: dict[str, int] = field(default_factory=dict, init=False)
    left_out: dict[str, str] = field(default_factory=dict, init=False)
    _task: str = field(default="", init=False, repr=False)

    def prepare(self, users: Sequence[User]) -> list[PreparedUser]:
        """History selection (eq. 1-2) and both insights of every user of one task.

        Users without a history, or whose history does not fit the context, or of whom an insight
        comes back empty, are left out, counted in ``counts`` and named in ``left_out``.
        """
        self._task = _one_task(users)
        self.left_out = {}
        prepared: list[PreparedUser] = []
        for some in parts(users, USERS):
            selected, left = self._selected(some)
            written = self._with_insights(self._task, selected)
            prepared += [user for user in written if user.complete]
            self.left_out |= left
            self.left_out |= {u.user.id: EMPTY_INSIGHT for u in written if not u.complete}
        reasons = list(self.left_out.values())
        self.counts = {
            "users": len(users),
            "no_history": reasons.count(NO_HISTORY),
            "too_long": reasons.count(TOO_LONG),
            "empty_insight": reasons.count(EMPTY_INSIGHT),
            "dropped_items": sum(user.dropped_items for user in prepared),
        }
        if any(count for name, count in self.counts.items() if name != "users"):
            log.warning("history preparation: %s", self.counts)
        return prepared

    def _selected(self, users: Sequence[User]) -> tuple[list[PreparedUser], dict[str, str]]:
        """The users with the history they show, without insights; id of the others → why."""
        selected, left = [], {}
        chosen = select_items(users, self.embedder, self.settings)
        for user, indices in zip(users, chosen, strict=True):
            items = [user.history[index] for index in indices]
            kept = fit_context(self.backbone, user, items, self.settings)
            if kept:
                selected.append(PreparedUser(user, kept, "", "", len(items) - len(kept)))
            else:
                left[user.id] = TOO_LONG if user.history else NO_HISTORY
        return selected, left

    def _with_insights(self, task: str, users: Sequence[PreparedUser]) -> list[PreparedUser]:
        """The users with all insights that ``insight_scope`` asks for, empty ones among them."""
        insights = write_insights(self.backbone, task, [u.items for u in users], self.settings)
        written = [
            replace(user, insight_p=p, insight_n=n)
            for user, (p, n) in zip(users, insights, strict=True)
        ]
        if self.settings.insight_scope == "query":
            per_query = write_query_insights(self.backbone, task, written, self.settings)
            written = with_query_insights(written, per_query)
        return written

    def pairs(self, users: Sequence[PreparedUser]) -> list[PreferencePair]:
        """Synthetic answers of both agents to every query, unfiltered."""
        return [
            pair
            for some in parts(users, USERS)
            for pair in answer_pairs(self.backbone, some, self.settings)
        ]

    def activations(self, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
        """``H^P`` and ``H^N``, (L, K, d) float32 each."""
        return read_pairs(self.backbone, self._task, pairs, self.settings)

    def fit(self, users: Sequence[User]) -> EditProfile:
        """One edit for all ``users``: their pairs pooled (group mode), or one user's own.

        Raises:
            UserError: Fewer than ``pairs_k_min`` pairs with different outputs are left
                (``pairs_on_too_few``), or users of different tasks.
        """
        return self._fit(self._usable(self.pairs(self.prepare(users))))

    def fit_each(self, users: Sequence[User]) -> dict[str, EditProfile]:
        """One edit per user, from that user's pairs alone; generation is shared by all users.

        Whoever has too few pairs for an edit of their own (``pairs_k_min``; with
        ``pairs_on_too_few`` "warn": not one) is left out, counted in ``counts`` as
        ``too_few_pairs`` and named in ``left_out``.

        Returns:
            User id → edit profile. Every user of the call is here or in ``left_out``.

        Raises:
            UserError: No user is left, or users of different tasks.
        """
        prepared = self.prepare(users)
        own: dict[str, list[PreferencePair]] = {user.user.id: [] for user in prepared}
        for pair in self.pairs(prepared):
            own[pair.user_id].append(pair)
        usable: dict[str, Pool] = {}
        refused: dict[str, str] = {}
        for user_id, pairs in own.items():
            try:
                usable[user_id] = self._usable(pairs)
            except UserError as problem:
                refused[user_id] = str(problem)
        self.counts["too_few_pairs"] = len(refused)
        self.left_out |= refused
        if not usable:
            raise UserError(
                f"No user can have an edit of their own ({self.counts}); pool users with fit, or "
                "give them more queries."
            )
        if refused:
            log.warning("%d users have no edit of their own: %s", len(refused), refused)
        return {user_id: self._fit(pool) for user_id, pool in usable.items()}

    def answer(self, users: Sequence[User], profile: EditProfile | None = None) -> list[str]:
        """Answer every query of ``users``, in order (sections 3.2 and 4.3; A13, A19).

        ``infer_edit`` and ``infer_insight_in_prompt`` choose a cell of the 2 x 2 of insight and
        edit; ``eval_user_mode`` "unseen" with ``unseen_prompt`` "no_history" asks the plain
        question without any history. Insights are written only where one stands in the prompts;
        ``counts`` and ``left_out`` stay those of the last fit.

        Args:
            users: Users of one task; with a history unless they are unseen.
            profile: The edit to run; needed while ``infer_edit`` is on.

        Raises:
            UserError: No profile, a profile of another task or backbone, or a user who cannot be
                asked: without a history, with one that does not fit the context, or with an empty
                insight where insights stand in the prompts.
        """
        task, s = _one_task(users), self.settings
        if s.infer_edit:
            self._check_profile(profile, task)
        if s.eval_user_mode == "unseen" and s.unseen_prompt == "no_history":
            prompts = [
                unseen_prompt(task, query.text, baseline=s.prompts_baseline)  # type: ignore[arg-type]
                for user in users
                for query in user.queries
            ]
        else:
            prompts = [
                answer_prompt(
                    task,
                    user.items,
                    query.text,
                    role="P",
                    insight=insight,
                    baseline=s.prompts_baseline,  # type: ignore[arg-type]
                )
                for user, insights in self._shown(task, users)
                for query, insight in zip(user.user.queries, insights, strict=True)
            ]
        return self.backbone.generate(
            prompts,
            max_new_tokens=max_new_tokens(task, s),
            edit=profile.edit if profile is not None and s.infer_edit else None,
            decode=decode_settings(s),
        )

    def _shown(
        self, task: str, users: Sequence[User]
    ) -> list[tuple[PreparedUser, list[str | None]]]:
        """What the answer prompts of every user show: the history, and an insight per query.

        The insights are None where the settings keep them out of the prompt.
        """
        shown: list[tuple[PreparedUser, list[str | None]]] = []
        left: dict[str, str] = {}
        for some in parts(users, USERS):
            selected, unfit = self._selected(some)
            left |= unfit
            if not self.settings.infer_insight_in_prompt:
                shown += [(user, [None] * len(user.user.queries)) for user in selected]
                continue
            for user in self._with_insights(task, selected):
                insights = [p for p, _ in user.insights_for(self.settings.insight_scope)]
                if not all(insights):
                    left[user.user.id] = EMPTY_INSIGHT
                shown.append((user, list(insights)))
        if left:
            named = {why: [one for one in left if left[one] == why] for why in left.values()}
            raise UserError(
                f"{len(left)} of {len(users)} users cannot be asked; leave them out. "
                + " ".join(f"{', '.join(ids)}: {why}" for why, ids in named.items())
            )
        dropped = sum(user.dropped_items for user, _ in shown)
        if dropped:
            log.warning("answer prompts: %d history items do not fit and are dropped", dropped)
        return shown

    def _check_profile(self, profile: EditProfile | None, task: str) -> None:
        if profile is None:
            raise UserError("answer needs the profile of a fit, or settings with infer_edit=False.")
        own = (self.backbone.name, self.backbone.fingerprint)
        if profile.task != task or profile.backbone != own:
            raise UserError(
                f"The profile belongs to {profile.task} and {profile.backbone[0]}, not to {task} "
                f"and {own[0]}; fit one for them."
            )

    def _usable(self, pairs: Sequence[PreferencePair]) -> Pool:
        pool = pooled(pairs, self.settings)
        check_pair_count(len(pool.different), self.settings)
        return pool

    def _fit(self, pool: Pool) -> EditProfile:
        return fit_pool(self.backbone, self._task, pool, self.settings)


def _one_task(users: Sequence[User]) -> str:
    tasks = sorted({user.task for user in users})
    if len(tasks) != 1:
        raise UserError(f"A fit needs users of one task, got {tasks or 'no users'}.")
    return tasks[0]
