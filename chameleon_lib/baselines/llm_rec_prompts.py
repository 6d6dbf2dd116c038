"""The prompts of LLM-REC on LaMP: the six ways to ask for a summary and to answer from it.

All wording that is not the template's of A.3 is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import Baseline, history_block, query_line, unseen_prompt
from chameleon_lib.lamp.records import HistoryItem
from chameleon_lib.lamp.tasks import Task, get_task

SUMMARY_CUE = "Summary:"


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
