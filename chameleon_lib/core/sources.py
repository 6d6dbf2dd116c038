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

import torch

from chameleon_lib.core.answers import is_echo, is_empty, is_refusal, preamble
from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.pairs import PreferencePair, PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import HistoryItem, answer_prompt, get_task, official_input
from chameleon_lib.errors import UserError

FAULTS = ("empty", "identical", "refusal", "preamble", "echo")


def faults(pair: PreferencePair, settings: EditSettings) -> tuple[str, ...]:
    """What of :data:`FAULTS` makes a pair unfit to learn from.

    An empty or refusing answer of either agent counts; a preamble or an echo of the query only in
    the personalised answer, which is the one to prefer.
    """
    both = (pair.answer_p, pair.answer_n)
    found = {
        "empty": any(is_empty(answer) for answer in both),
        "identical": pair.identical(settings.pairs_drop_identical),
        "refusal": any(is_refusal(answer) for answer in both),
        "preamble": bool(preamble(pair.answer_p)),
        "echo": is_echo(pair.answer_p, pair.query),
    }
    return tuple(name for name in FAULTS if found[name])


@dataclass(frozen=True)
class PairQuality:
    """How good the pairs of a fit are. Rates are shares of all pairs."""

    n: int  # pairs
    users: int  # users they belong to
    identical: float  # both answers agree (``pairs_drop_identical``)
    empty: float  # an answer without a word
    refusal_p: float  # personalised answers that decline
    refusal_n: float  # neutral ones
    preamble_p: float  # personalised answers that announce themselves
    preamble_n: float  # neutral ones
    echo: float  # personalised answers that repeat the query
    faulty: float  # pairs with at least one of :data:`FAULTS`
    # log p of the personalised answer under the own history minus under another user's, nats per
    # token: mean over pairs, 95 % normal interval, share above 0; None with one user alone
    own: tuple[float, float, float, float] | None

    def sentence(self) -> str:
        """What to print of it, one sentence."""
        own = ""
        if self.own is not None:
            mean, low, high, share = self.own
            own = (
                f"; the personalised answer is likelier under the own history than under another "
                f"user's in {share:.0%} ({mean:+.3f} nats per token, 95 % interval {low:+.3f} to "
                f"{high:+.3f})"
            )
        return (
            f"{self.n} pairs of {self.users} users: {self.faulty:.0%} unfit to learn from "
            f"(identical {self.identical:.0%}, empty {self.empty:.0%}, refusals "
            f"{self.refusal_p:.0%} personalised and {self.refusal_n:.0%} neutral, preambles "
            f"{self.preamble_p:.0%} and {self.preamble_n:.0%}, echoes {self.echo:.0%}){own}."
        )


def own_history_gains(
    backbone: Backbone, pairs: Sequence[PreferencePair], settings: EditSettings
) -> list[float] | None:
    """log p of the personalised answer under the own history minus under another user's.

    Nats per answer token, plain prompt, one per pair. The other user is the next one in the order
    of the pairs. None where all pairs belong to one user.
    """
    owners = list(dict.fromkeys(pair.user_id for pair in pairs))
    if len(owners) < 2:
        return None
    shown = {pair.user_id: pair.items for pair in pairs}
    other = dict(zip(owners, [*owners[1:], owners[0]], strict=True))

    def scored(items_of: Callable[[PreferencePair], tuple[HistoryItem, ...]]) -> torch.Tensor:
        prompts = [plain_prompt(replace(pair, items=items_of(pair)), settings) for pair in pairs]
        answers = [pair.answer_p for pair in pairs]
        return backbone.score(backbone.prepare(prompts), answers, reduce="mean")

    with torch.no_grad():
        gains = scored(lambda pair: pair.items) - scored(lambda pair: shown[other[pair.user_id]])
    return [float(gain) for gain in gains]


def plain_prompt(pair: PreferencePair, settings: EditSettings) -> str:
    """The prompt without an insight that a pair's query is asked with (the paper's Instruct)."""
    return answer_prompt(
        pair.task, pair.items, pair.query, role="P", insight=None, baseline=settings.prompts_baseline
    )


def pair_quality(
    backbone: Backbone, pairs: Sequence[PreferencePair], settings: EditSettings
) -> PairQuality:
    """Measure pairs before any fit; unfiltered ones, or those of any source.

    Raises:
        UserError: No pairs.
    """
    raise NotImplementedError


def filtered(
    backbone: Backbone, pairs: Sequence[PreferencePair], settings: EditSettings
) -> list[PreferencePair]:
    """The pairs without a fault whose personalised answer the own history makes likelier.

    With one user alone there is no other history to compare with; faults alone decide then.
    """
    raise NotImplementedError


def own_items(user: PreparedUser, settings: EditSettings) -> list[HistoryItem]:
    """At most ``pairs_items`` history items to learn from or to be checked on.

    In an order made of the user and the text, those first that no answer prompt shows.
    """
    raise NotImplementedError


def history_pairs(
    users: Sequence[PreparedUser],
    neutral: Callable[[list[str]], list[str]],
    settings: EditSettings,
) -> list[PreferencePair]:
    """A pair per item of :func:`own_items`: the user's own output against the neutral one.

    Args:
        users: Of one task, with selected history; insights are not needed.
        neutral: Prompts → the backbone's answers, unedited.

    Items whose neutral version is empty or a refusal, and users without a second item to show, give
    no pair.
    """
    raise NotImplementedError
