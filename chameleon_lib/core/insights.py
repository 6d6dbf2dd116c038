"""Insights c^P and c^N: what the model says about a user (paper section 3.1, Figure 2; A14, B2).

The frozen model writes both from the same selected history: the personalised insight in view of
the user, the neutral one in spite of it. No gold answer takes part.

An insight then stands in the answer prompts, which keep ``decode_insight_tokens`` free for it. What
was written in so many tokens may take more when it is read again (broken characters, mostly): it is
cut to the budget, at the last whole word that fits, so that no prompt outgrows the context.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace

from chameleon_lib.core.preferences import Insights, PreparedUser, decode_settings
from chameleon_lib.core.protocols import Backbone
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.lamp.prompts import INSIGHT_QUERIES, history_block, insight_prompt, query_line
from chameleon_lib.lamp.records import HistoryItem


def write_insights(
    backbone: Backbone,
    task: str,
    histories: Sequence[Sequence[HistoryItem]],
    settings: EditSettings,
) -> list[Insights]:
    """Both insights of every user, ``(c^P, c^N)``.

    An insight may come back empty; callers exclude and count such users.
    """
    prompts = [insight_prompt(task, items, role) for items in histories for role in ("P", "N")]
    groups = [index // 2 for index in range(len(prompts))]
    return _written(backbone, prompts, groups, settings)


def write_query_insights(
    backbone: Backbone, task: str, users: Sequence[PreparedUser], settings: EditSettings
) -> list[list[Insights]]:
    """Both insights per query of every user: the query stands in the insight prompt (B2 ``query``).

    An insight may come back empty; callers exclude and count such users.
    """
    prompts: list[str] = []
    groups: list[int] = []
    for index, prepared in enumerate(users):
        for query in prepared.user.queries:
            for role in ("P", "N"):
                parts = (history_block(task, prepared.items), query_line(task, query.text))
                prompts.append("\n".join([*parts, INSIGHT_QUERIES[role]]))
                groups.append(index)
    written = iter(_written(backbone, prompts, groups, settings))
    return [[next(written) for _ in user.user.queries] for user in users]


def with_query_insights(
    users: Sequence[PreparedUser], insights: Sequence[Sequence[Insights]]
) -> list[PreparedUser]:
    """The users with what :func:`write_query_insights` returned for them."""
    return [
        replace(user, query_insights=tuple((p, n) for p, n in own))
        for user, own in zip(users, insights, strict=True)
    ]


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

    Args:
        backbone: Whose tokens count.
        text: As it was written.
        budget: Tokens that the prompts keep free for it.

    Returns:
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
