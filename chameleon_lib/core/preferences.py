"""The synthetic preference pairs p^P, p^N (paper sections 3.1-3.2, A.3).

The same frozen model plays both agents: it answers the queries of a user once with the personalised
insight and once with the neutral one. The gold answer of a query cannot be reached from here: only
its text is read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from chameleon_lib.core.protocols import Backbone, DecodeSettings
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import ANSWER_CUE, answer_prompt, history_block, query_line
from chameleon_lib.lamp.records import HistoryItem, User
from chameleon_lib.lamp.tasks import get_task

log = logging.getLogger(__name__)

ROLES = ("P", "N")
Insights = tuple[str, str]  # personalised c^P, neutral c^N


@dataclass(frozen=True, slots=True)
class PreparedUser:
    """A user with the selected history H_u^k and both insights, of the user or of each query.

    Attributes:
        user: The user.
        items: Selected history in profile order, after dropping what did not fit the context.
        insight_p: Personalised insight c_u^P.
        insight_n: Neutral insight c_u^N.
        dropped_items: Selected items that were dropped because the prompt was too long (B9).
        query_insights: Both insights of every query where ``insight_scope`` is "query" (B2); empty
            where the user's own serve all queries.
    """

    user: User
    items: tuple[HistoryItem, ...]
    insight_p: str
    insight_n: str
    dropped_items: int = 0
    query_insights: tuple[Insights, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no insight came back empty: without one there is no prompt to ask with."""
        own = (self.insight_p, self.insight_n)
        return all(text for pair in (own, *self.query_insights) for text in pair)

    def insights_for(self, scope: str) -> list[Insights]:
        """One pair of insights per query, under ``insight_scope``.

        Raises:
            ValueError: Scope "query" for a user who was prepared without insights per query.
        """
        if scope != "query":
            return [(self.insight_p, self.insight_n)] * len(self.user.queries)
        if len(self.query_insights) != len(self.user.queries):
            raise ValueError(f"User {self.user.id} was prepared without an insight per query.")
        return list(self.query_insights)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One query of one user with both synthetic answers; immutable, so nothing can misalign (R13).

    Attributes:
        user_id: Whose pair it is.
        query_id: Which query.
        query: Text of the query.
        items: Selected history.
        answer_p: Output under the personalised prompt, ŷ^P.
        answer_n: Output under the neutral prompt, ŷ^N.
    """

    user_id: str
    query_id: str
    query: str
    items: tuple[HistoryItem, ...]
    answer_p: str
    answer_n: str

    def identical(self, rule: str) -> bool:
        """Whether the two outputs are the same under ``pairs_drop_identical``."""
        if rule == "exact":
            return self.answer_p == self.answer_n
        return _normalised(self.answer_p) == _normalised(self.answer_n)


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()


def decode_settings(settings: EditSettings) -> DecodeSettings:
    """The one decoding object of a run (A15, R10)."""
    return DecodeSettings(
        do_sample=settings.decode_do_sample,
        num_beams=settings.decode_num_beams,
        temperature=settings.decode_temperature,
        seed=settings.decode_seed,
    )


def max_new_tokens(task: str, settings: EditSettings) -> int:
    """Length limit of an answer in new tokens: the task's own unless the settings name one."""
    return settings.decode_max_new_tokens or get_task(task).max_new_tokens


def fit_context(
    backbone: Backbone, user: User, items: Sequence[HistoryItem], settings: EditSettings
) -> tuple[HistoryItem, ...]:
    """Drop whole items from the end until the longest prompt of this user fits (B9, R7).

    Args:
        backbone: The model whose context limit counts.
        user: Gives task and queries; these are never cut.
        items: Selected history.
        settings: ``prompts_overflow`` ``"drop_items"`` or ``"error"``.

    Returns:
        The items that stay; empty if not even one of them fits beside the longest query.
    """
    answer = max_new_tokens(user.task, settings)
    texts = [query.text for query in user.queries]
    longest = max(texts, key=backbone.count_tokens, default="")
    kept = tuple(items)
    while kept:
        # The insight takes its whole budget again when it stands in the answer prompt.
        prompts = (
            answer_prompt(user.task, kept, longest, role="P", insight="-"),
            answer_prompt(user.task, kept, longest, role="N", insight="-"),
        )
        if all(backbone.fits(text, answer + settings.decode_insight_tokens) for text in prompts):
            break
        if settings.prompts_overflow == "error":
            raise UserError(
                f"The prompt of user {user.id} is longer than the context of {backbone.name}; "
                "lower selection_k or set prompts_overflow to 'drop_items'."
            )
        kept = kept[:-1]
    return kept


def answer_pairs(
    backbone: Backbone, users: Sequence[PreparedUser], settings: EditSettings
) -> list[PreferencePair]:
    """Every query of every user answered under both prompts, before any filter (section 3.2).

    Args:
        backbone: The frozen model.
        users: Users of one task, each with items and :attr:`PreparedUser.complete`.
        settings: Prompt and decoding fields.

    Returns:
        One pair per (user, query), in order; identical outputs are still in.
    """
    if not users:
        return []
    task = users[0].user.task
    prompts: list[str] = []
    groups: list[int] = []
    for index, prepared in enumerate(users):
        insights = prepared.insights_for(settings.insight_scope)
        for query, pair in zip(prepared.user.queries, insights, strict=True):
            for role, insight in zip(ROLES, pair, strict=True):
                prompts.append(
                    answer_prompt(
                        task,
                        prepared.items,
                        query.text,
                        role="P" if role == "P" else "N",
                        insight=insight,
                        fix_typos=settings.prompts_fix_typos,
                    )
                )
                groups.append(index)
    answers = iter(
        backbone.generate(
            prompts,
            max_new_tokens=max_new_tokens(task, settings),
            groups=groups,
            decode=decode_settings(settings),
        )
    )
    return [
        PreferencePair(u.user.id, q.id, q.text, u.items, next(answers), next(answers))
        for u in users
        for q in u.user.queries
    ]


def keep_different(
    pairs: Sequence[PreferencePair], settings: EditSettings
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Split pairs into (kept, identical); whole records only, so answers stay with their query.

    A pair with an empty output is counted as identical: it holds no contrast to learn from.
    """
    kept: list[PreferencePair] = []
    identical: list[PreferencePair] = []
    for pair in pairs:
        empty = not (pair.answer_p.strip() and pair.answer_n.strip())
        same = empty or pair.identical(settings.pairs_drop_identical)
        (identical if same else kept).append(pair)
    return kept, identical


def check_pair_count(n_pairs: int, settings: EditSettings) -> None:
    """Refuse (or warn about) a fit on too few pairs (A20); each warning is given once.

    Raises:
        UserError: ``n_pairs`` is 0, or below ``pairs_k_min`` with ``pairs_on_too_few`` "error".
    """
    sentence = (
        f"{n_pairs} pairs with different outputs are left, fewer than pairs_k_min = "
        f"{settings.pairs_k_min}: pool more users"
    )
    if n_pairs == 0:
        raise UserError(f"{sentence}.")
    if n_pairs < settings.pairs_k_min:
        if settings.pairs_on_too_few == "error":
            raise UserError(f"{sentence}, or set pairs_on_too_few to 'warn'.")
        _warn_once(f"{sentence}.")


@cache
def _warn_once(sentence: str) -> None:
    """A study makes many fits, and the same words over and over would bury the others."""
    log.warning(sentence)


def pair_texts(task: str, pair: PreferencePair, settings: EditSettings) -> list[tuple[str, str]]:
    """The pair texts p^P and p^N as (context, continuation), P first (A3).

    Default layout: history block, query line, "Your answer:", then the answer; neither insight
    nor agent sentences take part, so the two texts differ in the answer only (R12).

    Returns:
        ``[(context, continuation of P), (context, continuation of N)]``; an encoder-decoder reads
        the context in its encoder and the continuation in its decoder (A21). The continuation is
        the answer; with ``answer_history`` it is the whole text, answer and history.
    """
    history = history_block(task, pair.items)
    query = query_line(task, pair.query)
    contexts = {
        "history_query_answer": f"{history}\n{query}\n{ANSWER_CUE}",
        "history_answer": f"{history}\n{ANSWER_CUE}",
        "query_answer": f"{query}\n{ANSWER_CUE}",
        "answer_only": "",
        "answer_history": "",
    }
    if settings.pairs_text not in contexts:
        raise UserError(f"Unknown pairs_text {settings.pairs_text!r}: use one of {list(contexts)}.")
    tail = f"\n{history}" if settings.pairs_text == "answer_history" else ""
    context = contexts[settings.pairs_text]
    return [(context, f"{answer}{tail}") for answer in (pair.answer_p, pair.answer_n)]
