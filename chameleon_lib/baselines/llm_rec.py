"""LLM-REC on LaMP, our declared adaptation: a summary stands where the history stood.

LLM-REC enriches the item texts of a recommender: an LLM is asked about an item, its neighbours or
both, and a recommender reads what it wrote. The paper runs it on LaMP as "summaries of selected
top user history data" (section 4.1, Tables 1 and 2) without saying how, and no such adaptation is
published. Ours: the target is the query and the neighbours are the selected history. The frozen
model writes a summary of both, then answers the question with the summary instead of the history.
All wording that is not the template's of A.3 is our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chameleon_lib.core.preferences import PreparedUser, decode_settings, max_new_tokens
from chameleon_lib.core.protocols import Backbone, DecodeSettings
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import Baseline, history_block, query_line, unseen_prompt
from chameleon_lib.lamp.records import HistoryItem, Query
from chameleon_lib.lamp.tasks import Task, get_task

SUMMARY_CUE = "Summary:"
SUMMARY_TOKENS = 120


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to ask.

    Attributes:
        id: Row id.
        user_data: The summary prompt shows the selected history (engagement-guided).
        recommend: It also asks what would recommend the thing to others.
        history: The answer prompt keeps the raw history beside the summary (ablation).
    """

    id: str
    user_data: bool = True
    recommend: bool = False
    history: bool = False


VARIANTS: dict[str, Variant] = {
    variant.id: variant
    for variant in (
        Variant("llm_rec"),
        Variant("llm_rec_comb", recommend=True),
        Variant("llm_rec_basic", user_data=False),
        Variant("llm_rec_hist", history=True),
        Variant("llm_rec_comb_hist", recommend=True, history=True),
        Variant("llm_rec_basic_hist", user_data=False, history=True),
    )
}

# What a query is called, and the thing it is about; nobody recommends a tweet to others.
_QUERIES = {"LaMP_2": "description", "LaMP_3": "review", "LaMP_7": "twitter post"}
_THINGS = {"LaMP_2": "movie", "LaMP_3": "product"}


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


def variants_for(task: str | Task) -> tuple[str, ...]:
    """Row ids that are valid for a task."""
    recommendable = get_task(task).name in _THINGS
    return tuple(v.id for v in VARIANTS.values() if recommendable or not v.recommend)


def get_variant(name: str, task: str | Task) -> Variant:
    """Look a variant up by its row id.

    Raises:
        UserError: There is none of that name, or it has no meaning for the task.
    """
    chosen = get_task(task)
    if name not in VARIANTS:
        raise UserError(f"Unknown LLM-REC variant {name!r}: use one of {', '.join(VARIANTS)}.")
    if name not in variants_for(chosen):
        raise UserError(
            f"{name} asks what would recommend a thing to others, which {chosen.title} has not: "
            f"use one of {', '.join(variants_for(chosen))}."
        )
    return VARIANTS[name]


def summary_tokens(settings: EditSettings) -> int:
    """Length limit of a summary: 120 new tokens, less where insights are shorter (small runs)."""
    return min(SUMMARY_TOKENS, settings.decode_insight_tokens)


def summary_prompt(
    task: str | Task, items: Sequence[HistoryItem], query_text: str, variant: str
) -> str:
    """Ask for the summary; it ends with "Summary:".

    Args:
        task: Task or its name.
        items: Selected history, the neighbours of LLM-REC; not read by the basic variants.
        query_text: The extracted query, the target of LLM-REC.
        variant: Row id.

    Raises:
        UserError: A variant that the task has not, or no history where it is needed.
    """
    chosen, kind = get_task(task), get_variant(variant, task)
    noun = _QUERIES[chosen.name]
    wish = f"Write one short summary of the new {noun}"
    if kind.user_data:
        wish = (
            f"Write one short summary of what the new {noun} has in common with the user profile "
            "history"
        )
    if kind.recommend:
        wish += f", and say what would recommend the {_THINGS[chosen.name]} to others"
    paragraphs = [history_block(chosen, items)] if kind.user_data else []
    return "\n".join([*paragraphs, query_line(chosen, query_text), f"{wish}.", SUMMARY_CUE])


def answer_prompt_with_summary(
    task: str | Task,
    items: Sequence[HistoryItem],
    query_text: str,
    summary: str,
    variant: str,
    *,
    baseline: Baseline = "drop_insight_sentence",
) -> str:
    """Ask the task's question: Instruct with its history paragraph replaced by the summary.

    Apart from what the model itself quotes in its summary, nothing of the history is left, unless
    the variant keeps it. Where no summary is there, the prompt says so.

    Args:
        task: Task or its name.
        items: Selected history; read by the variants that keep it.
        query_text: The extracted query.
        summary: What the model wrote; blank if it wrote nothing.
        variant: Row id.
        baseline: As in Instruct (B3).

    Raises:
        UserError: A variant that the task has not, or no history where it is kept.
    """
    chosen, kind = get_task(task), get_variant(variant, task)
    about = f"the {_QUERIES[chosen.name]} below"
    if kind.user_data:
        about = f"what {about} has in common with the user profile history"
    text = " ".join(summary.split())
    line = f"Summary of {about}: {text}" if text else f"There is no summary of {about}."
    paragraphs = [history_block(chosen, items)] if kind.history else []
    return "\n".join([*paragraphs, line, unseen_prompt(chosen, query_text, baseline=baseline)])


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
