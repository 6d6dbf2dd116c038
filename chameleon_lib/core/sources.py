"""Where the pairs of a fit come from, how good they are, and which of them are worth learning from.

The paper lets the model write both answers (``pairs_source`` "self"). A small model writes
refusals, preambles and echoes there, and a fit then learns those. Three other sources stand beside
it:

- "filtered": of the self-made pairs, those whose answers have the form of an answer, and whose
  personalised answer is likelier under the user's own history than under another user's;
- "history": what the user really wrote, against the model's neutral version of it. The item is left
  out of the history that its own prompt shows. A text of the user's own (LaMP-7) is asked for by
  its neutral version, as the benchmark made its queries; a label by the text it belongs to. No
  query and no gold answer takes part;
- "gold": gold answers of the queries against the neutral output, the positive control.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from chameleon_lib.core.answers import is_echo, is_refusal, preamble
from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.pairs import PreferencePair, PreparedUser, in_prompts, plain_prompt
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import HistoryItem, User, get_task, official_input
from chameleon_lib.errors import UserError

FAULTS = ("empty", "identical", "refusal", "preamble", "echo")


def faults(pair: PreferencePair, settings: EditSettings) -> tuple[str, ...]:
    """What of :data:`FAULTS` makes a pair unfit to learn from.

    An empty or refusing answer of either agent counts; a preamble or an echo of the query only in
    the personalised answer, which is the one to prefer.
    """
    both = (pair.answer_p, pair.answer_n)
    found = {
        "empty": not all(answer.strip() for answer in both),
        "identical": pair.identical(settings.pairs_drop_identical),
        "refusal": any(is_refusal(answer) for answer in both),
        "preamble": bool(preamble(pair.answer_p)),
        "echo": is_echo(pair.answer_p, pair.query),
    }
    return tuple(name for name in FAULTS if found[name])


@dataclass(frozen=True)
class PairQuality:
    """How good pairs are. Rates are shares of all of them."""

    n: int  # pairs
    users: int  # users they belong to
    rates: dict[str, float]  # pairs with each of :data:`FAULTS`
    faulty: float  # pairs with any of them
    # log p of the personalised answer under the own history minus under another user's, nats per
    # token: mean over pairs, 95 % normal interval, share of pairs above 0; None if not measured
    own: tuple[float, float, float, float] | None = None

    def sentence(self) -> str:
        """What to print of it."""
        rates = ", ".join(f"{name} {rate:.0%}" for name, rate in self.rates.items())
        told = (
            f"{self.n} pairs of {self.users} users, {self.faulty:.0%} unfit to learn from ({rates})"
        )
        if self.own is None:
            return f"{told}."
        mean, low, high, share = self.own
        return (
            f"{told}; the own history makes the personalised answer likelier than another user's "
            f"in {share:.0%} of them ({mean:+.3f} nats per token, 95 % interval {low:+.3f} to "
            f"{high:+.3f})."
        )


def pair_quality(
    pairs: Sequence[PreferencePair], settings: EditSettings, gains: Sequence[float] | None = None
) -> PairQuality:
    """Measure pairs of any source before a fit learns from them.

    Args:
        pairs: Unfiltered.
        gains: Of :func:`own_history_gains`.

    Raises:
        UserError: No pairs.
    """
    if not pairs:
        raise UserError("There are no pairs to measure; give the pairs of at least one user.")
    found = [faults(pair, settings) for pair in pairs]
    own = None
    if gains is not None:
        values = np.asarray(gains, dtype=np.float64)
        mean = float(values.mean())
        half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.inf
        own = (mean, mean - half, mean + half, float((values > 0).mean()))
    return PairQuality(
        n=len(pairs),
        users=len({pair.user_id for pair in pairs}),
        rates={name: sum(name in some for some in found) / len(pairs) for name in FAULTS},
        faulty=sum(map(bool, found)) / len(pairs),
        own=own,
    )


def own_history_gains(
    backbone: Backbone, pairs: Sequence[PreferencePair], settings: EditSettings
) -> list[float] | None:
    """log p of the personalised answer under the own history minus under another user's.

    Plain prompt, nats per answer token, one number per pair. The other user is the next one in the
    order of the pairs. None where all pairs belong to one user.
    """
    shown = {pair.user_id: pair.items for pair in pairs}
    owners = list(shown)
    if len(owners) < 2:
        return None
    others = {
        one: shown[other] for one, other in zip(owners, [*owners[1:], owners[0]], strict=True)
    }
    foreign = [replace(pair, items=others[pair.user_id]) for pair in pairs]

    def scored(some: Sequence[PreferencePair]) -> Tensor:
        prepared = backbone.prepare([plain_prompt(pair, settings) for pair in some])
        return backbone.score(prepared, [pair.answer_p for pair in some], reduce="mean")

    with torch.no_grad():
        return [float(gain) for gain in scored(pairs) - scored(foreign)]


def filtered(
    pairs: Sequence[PreferencePair], settings: EditSettings, gains: Sequence[float] | None
) -> list[PreferencePair]:
    """The pairs without a fault whose personalised answer the own history makes likelier.

    Without ``gains`` (one user alone has no other to compare with) the faults decide.
    """
    values = [1.0] * len(pairs) if gains is None else gains
    return [
        pair
        for pair, gain in zip(pairs, values, strict=True)
        if gain > 0 and not faults(pair, settings)
    ]


def of_other_users(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Every pair with the personalised answer of a pair of the next user (a control of format).

    Raises:
        UserError: The pairs belong to one user alone.
    """
    own: dict[str, list[str]] = {}
    for pair in pairs:
        own.setdefault(pair.user_id, []).append(pair.answer_p)
    owners = list(own)
    if len(owners) < 2:
        raise UserError("Answers of another user need pairs of two users or more; pool more users.")
    answers = {
        one: cycle(own[other])
        for one, other in zip(owners, [*owners[1:], owners[0]], strict=True)
    }
    return [replace(pair, answer_p=next(answers[pair.user_id])) for pair in pairs]


def with_golds(
    pairs: Sequence[PreferencePair], users: Sequence[PreparedUser]
) -> list[PreferencePair]:
    """The pairs with the gold answer in the place of the personalised one.

    Raises:
        UserError: A query has no gold answer.
    """
    golds = {query.id: query.gold for user in users for query in user.user.queries}
    replaced = []
    for pair in pairs:
        gold = golds[pair.query_id]
        if gold is None:
            raise UserError(f"Query {pair.query_id} has no gold; the positive control needs it.")
        replaced.append(replace(pair, answer_p=gold))
    return replaced


def held_out_users(users: Sequence[User], settings: EditSettings) -> tuple[list[User], list[User]]:
    """Those to learn from and those held out of the fit: ``check_share``, rounded down.

    Drawn by ``seed`` and the users' ids, so that a user more or less moves few others.
    """

    def place(user: User) -> bytes:
        text = f"check\0{settings.seed}\0{user.id}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    held = sorted(users, key=place)[: int(len(users) * settings.check_share)]
    names = {user.id for user in held}
    return [user for user in users if user.id not in names], held


def own_items(user: PreparedUser, settings: EditSettings, skip: int = 0) -> list[HistoryItem]:
    """At most ``pairs_items`` history items to learn from, or to be checked on.

    In an order made of user and text, those first that no answer prompt shows; ``skip`` leaves so
    many out at the start. Whole, as queries are: only what a prompt shows of a history is cut.
    """

    def place(item: HistoryItem) -> tuple[bool, bytes]:
        text = f"{user.user.id}\0{item.text}\0{item.label}"
        shown = in_prompts(item, settings) in user.items
        return shown, hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    usable = [
        item for item in dict.fromkeys(user.user.history) if (item.label or item.text).strip()
    ]
    return sorted(usable, key=place)[skip : skip + settings.pairs_items]


def history_pairs(
    users: Sequence[PreparedUser],
    neutral: Callable[[list[str]], list[str]],
    settings: EditSettings,
    skip: int = 0,
) -> list[PreferencePair]:
    """A pair per item of :func:`own_items`: the user's own output against the neutral one.

    Args:
        users: Of one task, with selected history; insights are not needed.
        neutral: Answers of the backbone to prompts, unedited.
        skip: Items per user that are left out at the start.

    An item whose neutral version is empty, a refusal or, as a query, the same text gives no pair,
    and neither does one beside which there is no other to show.
    """
    asked = [
        (user, item, rest)
        for user in users
        for item in own_items(user, settings, skip)
        if (rest := tuple(other for other in user.items if other != in_prompts(item, settings)))
    ]
    if not asked:
        return []
    task = get_task(asked[0][0].user.task)
    answers = neutral([official_input(task, item.text) for _, item, _ in asked])
    pairs = []
    for (user, item, rest), answer in zip(asked, answers, strict=True):
        # A text of the user's own is asked for by its neutral version, as the queries are.
        query, own = (item.text, task.label_of(item)) if task.label_key else (answer, item.text)
        pair = PreferencePair(
            user.user.id, item.id, query.strip(), rest, own.strip(), answer.strip(), task.name
        )
        useless = {"empty", "refusal"} if task.label_key else {"empty", "refusal", "identical"}
        if not useless & set(faults(pair, settings)):
            pairs.append(pair)
    return pairs
