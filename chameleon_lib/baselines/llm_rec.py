"""LLM-REC on LaMP, our declared adaptation: a summary stands where the history stood.

LLM-REC enriches the item texts of a recommender: an LLM is asked about an item, its neighbours or
both, and a recommender reads what it wrote. The paper runs it on LaMP as "summaries of selected
top user history data" (section 4.1, Tables 1 and 2) without saying how, and no such adaptation is
published. Ours: the target is the query and the neighbours are the selected history. The frozen
model writes a summary of both, then answers the question with the summary instead of the history.
The wording is in ``llm_rec_prompts``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chameleon_lib.baselines.llm_rec_prompts import (
    answer_prompt_with_summary,
    get_variant,
    summary_prompt,
)
from chameleon_lib.core.preferences import PreparedUser, decode_settings, max_new_tokens
from chameleon_lib.core.protocols import Backbone, DecodeSettings
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.records import Query

SUMMARY_TOKENS = 120


@dataclass(frozen=True)
class LlmRecAnswers:
    """What one variant said; every tuple holds one entry per query, in order users × queries.

    Attributes:
        variant: Row id.
        texts: Answers.
        summaries: What the model wrote in between; "" where it wrote nothing.
        summary_prompts: How it was asked for them.
        prompts: Answer prompts, the summary in place: margins are scored behind them.
    """

    variant: str
    texts: tuple[str, ...]
    summaries: tuple[str, ...]
    summary_prompts: tuple[str, ...]
    prompts: tuple[str, ...]

    @property
    def empty_summaries(self) -> int:
        """Queries that were answered without a summary because the model wrote none."""
        return sum(not summary for summary in self.summaries)


def summary_tokens(settings: EditSettings) -> int:
    """Length limit of a summary: 120 new tokens, less where insights are shorter (small runs)."""
    return min(SUMMARY_TOKENS, settings.decode_insight_tokens)


def summary_prompts(users: Sequence[PreparedUser], variant: str) -> list[str]:
    """The summary prompts of all queries of ``users``."""
    return [summary_prompt(u.user.task, u.items, q.text, variant) for u, q in _queries(users)]


def write_summaries(
    backbone: Backbone, users: Sequence[PreparedUser], variant: str, settings: EditSettings
) -> list[str]:
    """One summary per query, greedy; "" where the model wrote only blanks and full stops."""
    # A user's prompts start with one and the same history, unless they show none.
    shared = get_variant(variant, _one_task(users)).user_data
    texts = backbone.generate(
        summary_prompts(users, variant),
        max_new_tokens=summary_tokens(settings),
        groups=_groups(users) if shared else None,
        decode=DecodeSettings(),
    )
    lines = [" ".join(text.split()) for text in texts]
    return [line if line.strip(". ") else "" for line in lines]


def answer_prompts(
    users: Sequence[PreparedUser],
    summaries: Sequence[str],
    variant: str,
    settings: EditSettings,
) -> list[str]:
    """The answer prompts of all queries of ``users``, given one summary per query."""
    return [
        answer_prompt_with_summary(
            prepared.user.task,
            prepared.items,
            query.text,
            summary,
            variant,
            baseline=settings.prompts_baseline,  # type: ignore[arg-type]
        )
        for (prepared, query), summary in zip(_queries(users), summaries, strict=True)
    ]


def llm_rec_answers(
    backbone: Backbone, users: Sequence[PreparedUser], variant: str, settings: EditSettings
) -> LlmRecAnswers:
    """Answer every query of ``users`` by way of a summary.

    Args:
        backbone: The frozen model; it writes the summaries and the answers.
        users: Users of one task with the selected history that Instruct shows; no gold and no
            insight is read.
        variant: Row id.
        settings: Length limits, decoding of the answers, ``prompts_baseline``.

    Raises:
        UserError: A variant that the task has not, users of several tasks, or a prompt beyond the
            context.
    """
    task = _one_task(users)
    history = get_variant(variant, task).history
    summaries = write_summaries(backbone, users, variant, settings)
    prompts = answer_prompts(users, summaries, variant, settings)
    texts = backbone.generate(
        prompts,
        max_new_tokens=max_new_tokens(task, settings),
        groups=_groups(users) if history else None,
        decode=decode_settings(settings),
    )
    return LlmRecAnswers(
        variant,
        tuple(texts),
        tuple(summaries),
        tuple(summary_prompts(users, variant)),
        tuple(prompts),
    )


def _queries(users: Sequence[PreparedUser]) -> Iterator[tuple[PreparedUser, Query]]:
    return ((prepared, query) for prepared in users for query in prepared.user.queries)


def _groups(users: Sequence[PreparedUser]) -> list[int]:
    return [index for index, prepared in enumerate(users) for _ in prepared.user.queries]


def _one_task(users: Sequence[PreparedUser]) -> str:
    tasks = sorted({prepared.user.task for prepared in users})
    if len(tasks) != 1:
        raise UserError(f"LLM-REC needs users of one task, got {tasks or 'no users'}.")
    return tasks[0]
