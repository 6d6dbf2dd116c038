"""From selected history to preference pairs: insights c^P, c^N and answers y^P, y^N.

Paper sections 3.1-3.2, Figure 2 and A.3. The same frozen model plays both agents: it writes a
personalised insight in view of the user and a neutral one in spite of it, then answers the queries
of the user once with each. No gold answer can be reached from here: of a query, only the text is
read.

An insight stands in the answer prompts, which keep ``decode_insight_tokens`` free for it. What was
written in so many tokens may take more when it is read again (broken characters, mostly): it is cut
to the budget, at the last whole word that fits, so that no prompt outgrows the context.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from chameleon_lib.core.backbone import Backbone, DecodeSettings
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import (
    ANSWER_CUE,
    INSIGHT_QUERIES,
    HistoryItem,
    Query,
    Role,
    User,
    answer_prompt,
    get_task,
    history_block,
    insight_prompt,
    official_prompt,
    query_line,
    unseen_prompt,
)
from chameleon_lib.errors import UserError

log = logging.getLogger(__name__)

ROLES: tuple[Role, Role] = ("P", "N")
Insights = tuple[str, str]  # personalised c^P, neutral c^N

# Prompts that an answer can be asked with; "insight" is the personalised prompt of A.3.
PROMPTS = ("instruct", "insight", "neutral", "official", "official_history", "unseen")

NO_HISTORY = "The history is empty."
TOO_LONG = "Not one history item fits the context beside the query."
EMPTY_INSIGHT = "An insight came back empty."


@dataclass(frozen=True, slots=True)
class PreparedUser:
    """A user with the selected history H_u^k and both insights, of the user or of each query."""

    user: User  # the user
    # Selected history in profile order, after dropping what did not fit the context
    items: tuple[HistoryItem, ...]
    insight_p: str  # personalised insight c_u^P
    insight_n: str  # neutral insight c_u^N
    dropped_items: int = 0  # selected items that were dropped because the prompt was too long (B9)
    cut_items: int = 0  # shown items whose text was cut to prompts_item_words (B9)
    # Both insights of every query where ``insight_scope`` is "query" (B2); empty where the user's
    # own serve all queries
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


class Preparation(NamedTuple):
    """What ``Chameleon.prepare`` returns."""

    users: list[PreparedUser]  # those who can be used, in order
    left_out: dict[str, str]  # id of every other user → why, one sentence

    @property
    def counts(self) -> dict[str, int]:
        """Users in all, users left out by reason; items dropped by the context, and cut items."""
        reasons = list(self.left_out.values())
        return {
            "users": len(self.users) + len(self.left_out),
            "no_history": reasons.count(NO_HISTORY),
            "too_long": reasons.count(TOO_LONG),
            "empty_insight": reasons.count(EMPTY_INSIGHT),
            "dropped_items": sum(user.dropped_items for user in self.users),
            "cut_items": sum(user.cut_items for user in self.users),
        }


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One query of one user with both synthetic answers; immutable, so nothing can misalign."""

    user_id: str  # whose pair it is
    query_id: str  # which query
    query: str  # text of the query
    items: tuple[HistoryItem, ...]  # selected history
    answer_p: str  # output under the personalised prompt, ŷ^P
    answer_n: str  # output under the neutral prompt, ŷ^N
    task: str  # name of the task

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


def in_prompts(item: HistoryItem, settings: EditSettings) -> HistoryItem:
    """An item as prompts show it (``prompts_item_words``); itself where nothing is cut."""
    words, said = settings.prompts_item_words, item.text.split()
    if words is None or len(said) <= words:
        return item
    return replace(item, text=" ".join(said[:words]) + " …")


def fit_context(
    backbone: Backbone, user: User, items: Sequence[HistoryItem], settings: EditSettings
) -> tuple[HistoryItem, ...]:
    """Cut items to ``prompts_item_words``, then drop some until the longest prompt fits (B9, R7).

    An item that does not fit alone, or takes more than half the room and twice what half of the
    items take, goes first, the longest before others: it would take the place of all behind it.
    Then they go from the end.

    Returns:
        The items that stay; empty if not even one of them fits beside the longest query.

    Raises:
        UserError: They do not fit under ``prompts_overflow`` "error".
    """
    answer = max_new_tokens(user.task, settings)
    texts = [query.text for query in user.queries]
    longest = max(texts, key=backbone.count_tokens, default="")

    def fits(items: Sequence[HistoryItem]) -> bool:
        # The insight takes its whole budget again when it stands in the answer prompt.
        room = answer + settings.decode_insight_tokens
        prompts = (answer_prompt(user.task, items, longest, role=r, insight="-") for r in ROLES)
        return all(backbone.fits(text, room) for text in prompts)

    kept = [in_prompts(item, settings) for item in items]
    if not kept or fits(kept):
        return tuple(kept)
    if settings.prompts_overflow == "error":
        raise UserError(
            f"The prompt of user {user.id} is longer than the context of {backbone.name}; "
            "lower selection_k or set prompts_overflow to 'drop_items'."
        )
    sizes = [backbone.count_tokens(item.text) for item in kept]
    usual = sorted(sizes)[(len(sizes) - 1) // 2]
    by_size = sorted(zip(sizes, range(len(kept)), strict=True))
    large = [kept[at] for n, at in by_size if not fits([kept[at]] * (2 if n > 2 * usual else 1))]
    while kept and not fits(kept):
        # By what it is, not by what it says: two items may say the same.
        gone = large.pop() if large else kept[-1]
        kept = [item for item in kept if item is not gone]
    return tuple(kept)


def write_insights(
    backbone: Backbone,
    task: str,
    histories: Sequence[Sequence[HistoryItem]],
    settings: EditSettings,
) -> list[Insights]:
    """Both insights of every user, ``(c^P, c^N)``; one may come back empty."""
    prompts = [insight_prompt(task, items, role) for items in histories for role in ROLES]
    groups = [index // 2 for index in range(len(prompts))]
    return _written(backbone, prompts, groups, settings)


def write_query_insights(
    backbone: Backbone, task: str, users: Sequence[PreparedUser], settings: EditSettings
) -> list[list[Insights]]:
    """Both insights per query of every user: the query stands in the insight prompt (B2)."""
    prompts, groups = [], []
    for index, prepared in enumerate(users):
        for query in prepared.user.queries:
            parts = f"{history_block(task, prepared.items)}\n{query_line(task, query.text)}"
            prompts += [f"{parts}\n{INSIGHT_QUERIES[role]}" for role in ROLES]
            groups += [index] * 2
    written = iter(_written(backbone, prompts, groups, settings))
    return [[next(written) for _ in user.user.queries] for user in users]


def _written(
    backbone: Backbone, prompts: list[str], groups: list[int], settings: EditSettings
) -> list[Insights]:
    """Answers to insight prompts, two by two."""
    texts = backbone.generate(
        prompts,
        max_new_tokens=settings.decode_insight_tokens,
        groups=groups,
        decode=decode_settings(settings),
    )
    texts = [within(backbone, text, settings.decode_insight_tokens) for text in texts]
    return list(zip(texts[::2], texts[1::2], strict=True))


def within(backbone: Backbone, text: str, budget: int) -> str:
    """An insight as it stands in a prompt: one line, no full stop, at most ``budget`` tokens.

    The longest start that fits, cut after a word; inside one only where the first is too long.
    """
    # The templates close the sentence themselves: "The user prefers [INSIGHT]."
    line = " ".join(text.split()).rstrip(". ")
    # What it adds to a prompt: a template and special tokens count in both.
    nothing = backbone.count_tokens("-")

    def fits(length: int) -> bool:
        return backbone.count_tokens(f"- {line[:length]}") - nothing <= budget

    if not line or fits(len(line)):
        return line
    # The last start that fits; a few characters more may take fewer tokens, which is no loss.
    length = bisect.bisect_left(range(1, len(line) + 1), True, key=lambda at: not fits(at))
    words = line[: length + 1].rpartition(" ")[0]
    return (words or line[:length]).rstrip(". ")


def answer_pairs(
    backbone: Backbone, users: Sequence[PreparedUser], settings: EditSettings
) -> list[PreferencePair]:
    """Every query of every user answered under both prompts, before any filter (section 3.2).

    Args:
        users: Users of one task, each with items and :attr:`PreparedUser.complete`.

    Returns:
        One pair per (user, query), in order; identical outputs are still in.
    """
    if not users:
        return []
    task = users[0].user.task
    prompts, groups = [], []
    for index, user in enumerate(users):
        asked = (prompt_texts(task, [user], kind, settings) for kind in ("insight", "neutral"))
        prompts += [prompt for both in zip(*asked, strict=True) for prompt in both]
        groups += [index] * 2 * len(user.user.queries)
    answers = iter(
        backbone.generate(
            prompts,
            max_new_tokens=max_new_tokens(task, settings),
            groups=groups,
            decode=decode_settings(settings),
        )
    )
    return [
        PreferencePair(u.user.id, q.id, q.text, u.items, next(answers), next(answers), task)
        for u in users
        for q in u.user.queries
    ]


def keep_different(
    pairs: Sequence[PreferencePair], settings: EditSettings
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Split pairs into (kept, identical).

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


def prompt_texts(
    task: str, users: Sequence[PreparedUser], kind: str, settings: EditSettings
) -> list[str]:
    """The prompts of all queries of ``users`` in one of :data:`PROMPTS`."""
    baseline, fix = settings.prompts_baseline, settings.prompts_fix_typos
    role: Role = "N" if kind == "neutral" else "P"

    def written(user: PreparedUser, query: Query, insight: str | None) -> str:
        if kind in ("official", "official_history"):
            return official_prompt(task, user.items if kind == "official_history" else (), query)
        if kind == "unseen":
            return unseen_prompt(task, query.text, baseline=baseline)
        asked = (task, user.items, query.text)
        return answer_prompt(*asked, role=role, insight=insight, baseline=baseline, fix_typos=fix)

    texts = []
    for user in users:
        shown: list[str | None] = [None] * len(user.user.queries)
        if kind in ("insight", "neutral"):
            own = user.insights_for(settings.insight_scope)
            shown = [pair[ROLES.index(role)] for pair in own]
        texts += [written(user, *asked) for asked in zip(user.user.queries, shown, strict=True)]
    return texts


def plain_prompt(pair: PreferencePair, settings: EditSettings) -> str:
    """The prompt without an insight that asks a pair's query (the paper's Instruct)."""
    asked, baseline = (pair.task, pair.items, pair.query), settings.prompts_baseline
    return answer_prompt(*asked, role="P", insight=None, baseline=baseline)


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
    tail = f"\n{history}" if settings.pairs_text == "answer_history" else ""
    context = contexts[settings.pairs_text]
    return [(context, f"{answer}{tail}") for answer in (pair.answer_p, pair.answer_n)]


@dataclass(frozen=True)
class Pool:
    """What a fit is made from."""

    different: list[PreferencePair]  # pairs with two different outputs, at most ``pairs_k_max``
    # Pairs whose outputs agree, at most as many; the leash of a fitted edit
    identical: list[PreferencePair]
    n_identical: int  # how many agreed before the draw
    users: tuple[str, ...]  # ids of all whose pairs are in the pool, in order


def pooled(pairs: Sequence[PreferencePair], settings: EditSettings) -> Pool:
    """The pool of a fit from the pairs of one or many users."""
    different, identical = keep_different(pairs, settings)
    chosen, agreed = drawn(different, settings), drawn(identical, settings)
    members = {pair.user_id for pair in (*chosen, *agreed)}
    users = dict.fromkeys(pair.user_id for pair in pairs if pair.user_id in members)
    return Pool(chosen, agreed, len(identical), tuple(users))


def drawn(pairs: Sequence[PreferencePair], settings: EditSettings) -> list[PreferencePair]:
    """At most ``pairs_k_max`` pairs, in their order.

    Every pair has a place in a random order made of ``seed``, user and query, and the first ones
    stay: more users change the draw only as far as their own pairs come before others.
    """
    limit = settings.pairs_k_max
    if limit is None or len(pairs) <= limit:
        return list(pairs)

    def place(at: int) -> bytes:
        pair = pairs[at]
        text = f"{settings.seed}\0{pair.user_id}\0{pair.query_id}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    return [pairs[at] for at in sorted(sorted(range(len(pairs)), key=place)[:limit])]


def prompts_digest(task: str, settings: EditSettings) -> str:
    """SHA-256 of every prompt of a task, written out for a user made of placeholders.

    Profiles keep it: directions were read off texts of this wording, and belong to no other.
    """
    items = tuple(HistoryItem(str(at), f"<history {at}>", f"<label {at}>") for at in (1, 2))
    query = Query("", "<query>", "", None)
    user = PreparedUser(User("", task, items, (query,)), items, "<insight>", "<insight>")
    own = settings.with_(insight_scope="user")
    pair = PreferencePair("", "", query.text, items, "<personal>", "<neutral>", task)
    texts = [insight_prompt(task, items, role) for role in ROLES]
    for kind in ("insight", "instruct", "neutral", "unseen"):
        texts += prompt_texts(task, [user], kind, own)
    texts += [part for text in pair_texts(task, pair, settings) for part in text]
    return hashlib.sha256(json.dumps(texts).encode("ascii")).hexdigest()
