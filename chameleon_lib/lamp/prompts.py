"""Prompts: Appendix A.3 of the paper, Figure 2's insight queries, LaMP's own prompt.

Paragraphs are joined by one newline, history lines are numbered from 1 and substituted in place.
The personalised (P) and the neutral (N) prompt are the same string up to the agent paragraph.
Texts are assembled, never searched and replaced, so a tweet that says "[INSIGHT]" stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.records import HistoryItem, Query
from chameleon_lib.lamp.tasks import Task, get_task
from chameleon_lib.lamp.templates import TEMPLATES, Agent

Role = Literal["P", "N"]
Baseline = Literal["drop_insight_sentence", "drop_agent_block"]

ANSWER_CUE = "Your answer:"

INSIGHT_QUERIES: dict[str, str] = {
    "P": "Conclude the user's characteristics and preference.",
    "N": (
        "Do not consider the user's preferences or profile history when responding. "
        "Conclude the style of your answer."
    ),
}


def _label(task: Task, item: HistoryItem) -> str:
    if item.label is None:
        raise UserError(f"History item {item.id!r} has no {task.label_key}; {task.name} needs one.")
    return item.label


def history_line(task: str | Task, item: HistoryItem) -> str:
    """Render one history item as A.3 does, without its running number (also B1's `line`)."""
    chosen = get_task(task)
    if chosen.name == "LaMP_2":
        return f'The tag for movie: "{item.text}" is "{_label(chosen, item)}".'
    if chosen.name == "LaMP_3":
        return f'{_label(chosen, item)} is the rating score for product: "{item.text}".'
    return item.text


def history_lines(task: str | Task, items: Sequence[HistoryItem]) -> str:
    """Render the history: one item per line, numbered from 1."""
    return "\n".join(f"{i}. {history_line(task, item)}" for i, item in enumerate(items, start=1))


def history_block(task: str | Task, items: Sequence[HistoryItem]) -> str:
    """Render the first paragraph of A.3: the opening sentence with the history in place.

    Raises:
        UserError: `items` is empty; the prompt without a history is `unseen_prompt`.
    """
    if not items:
        raise UserError("A prompt with a history needs at least one item; use unseen_prompt.")
    return f"{TEMPLATES[get_task(task).name].opening} {history_lines(task, items)}"


def query_line(task: str | Task, query_text: str) -> str:
    """Render the paragraph that states the query (also part of a pair text, A3)."""
    return f"{TEMPLATES[get_task(task).name].query} {query_text}"


def insight_prompt(task: str | Task, items: Sequence[HistoryItem], role: Role) -> str:
    """Ask for an insight (Figure 2, A14): history paragraph, then the query of `role`.

    The marker "P:" / "N:" of the figure is a caption and not part of the prompt; no task query
    takes part (B2).
    """
    return f"{history_block(task, items)}\n{INSIGHT_QUERIES[role]}"


def _agent_paragraph(
    agent: Agent, insight: str | None, baseline: Baseline, fix_typos: bool
) -> str | None:
    if insight is None and baseline == "drop_agent_block":
        return None
    sentences = [agent.lead]
    if insight is not None:
        stem = agent.stem.replace("shoulds", "should") if fix_typos else agent.stem
        sentences.append(f"{stem} {insight.strip()}.")
    if agent.close is not None:
        sentences.append(agent.close)
    return " ".join(sentences)


def _question_onwards(
    task: Task, query_text: str, role: Role, insight: str | None, baseline: Baseline, fix: bool
) -> str:
    """Everything after the history paragraph."""
    template = TEMPLATES[task.name]
    agent = _agent_paragraph(template.agents[role], insight, baseline, fix)
    paragraphs = [query_line(task, query_text), template.question]
    if agent is not None:
        paragraphs.append(agent)
    return "\n".join([*paragraphs, ANSWER_CUE])


def answer_prompt(
    task: str | Task,
    items: Sequence[HistoryItem],
    query_text: str,
    *,
    role: Role | None,
    insight: str | None,
    baseline: Baseline = "drop_insight_sentence",
    fix_typos: bool = False,
) -> str:
    """Build the A.3 prompt; it ends with "Your answer:".

    Args:
        task: Task or its name.
        items: Selected history, rendered in the given order.
        query_text: The extracted query.
        role: "P" or "N"; None means no insight and equals "P" without an insight.
        insight: Text put in place of [INSIGHT] (stripped). None gives the paper's Instruct
            baseline, which exists for the personalised role only.
        baseline: What "without insights" removes (B3): the sentence that holds [INSIGHT], or the
            whole agent paragraph.
        fix_typos: Write "should" where the paper prints "shoulds" (A23).

    Raises:
        UserError: No history, a blank insight, an insight without a role, or role "N" without
            an insight.
    """
    if insight is None and role == "N":
        raise UserError("The neutral prompt needs an insight; the one without is role 'P'.")
    if insight is not None and role is None:
        raise UserError("An insight needs a role: 'P' or 'N'.")
    if insight is not None and not insight.strip():
        raise UserError(f"The insight for role {role!r} is empty; generate it again before use.")
    rest = _question_onwards(get_task(task), query_text, role or "P", insight, baseline, fix_typos)
    return f"{history_block(task, items)}\n{rest}"


def unseen_prompt(
    task: str | Task, query_text: str, *, baseline: Baseline = "drop_insight_sentence"
) -> str:
    """Build the prompt for a user without history: Instruct minus its history paragraph (A19)."""
    return _question_onwards(get_task(task), query_text, "P", None, baseline, False)


def official_prompt(task: str | Task, items: Sequence[HistoryItem], query: Query) -> str:
    """Build LaMP's own prompt (controls C1 and C2); without items it is the input alone.

    The blanks before the joiner and before "are written" belong to the official format.
    """
    chosen = get_task(task)
    if not items:
        return query.input
    if chosen.name == "LaMP_2":
        parts = [f'the tag for the movie: "{i.text}" is "{_label(chosen, i)}" ' for i in items]
    elif chosen.name == "LaMP_3":
        parts = [f'{_label(chosen, i)} is the score for "{i.text}" ' for i in items]
    else:
        joined = ", and ".join(f'"{i.text}" ' for i in items)
        return f"{joined} are written by a person. Following the given patterns {query.input}"
    return f"{', and '.join(parts)}. {query.input}"
