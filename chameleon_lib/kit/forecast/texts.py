"""How many tokens a prompt has: the templates of A.3 with texts of mean length in them.

A prompt is a fixed part, k history items, and maybe a query and an insight. Two vocabularies are
known. The embedded models' makes one token of a whole template paragraph; its numbers were counted
on the embedded world. A public tokenizer is taken at four characters per token, and its numbers
follow from the templates and the mean lengths of LaMP's texts. A test counts both again.
"""

from __future__ import annotations

from dataclasses import dataclass

CHARS_PER_TOKEN = 4.0  # English under the tokenizers of Mistral, Qwen and T5

# Prompt → which of (history, query, insight or summary) it holds beside its fixed part.
PARTS: dict[str, tuple[bool, bool, bool]] = {
    "write insight": (True, False, False),
    "personalised": (True, True, True),
    "neutral": (True, True, True),
    "instruct": (True, True, False),
    "unseen": (False, True, False),
    "official": (False, True, False),
    "official_history": (True, True, False),
    "pair": (True, True, False),
    "write llm_rec": (True, True, False),
    "write llm_rec_comb": (True, True, False),
    "write llm_rec_basic": (False, True, False),
    "llm_rec": (False, True, True),
    "llm_rec_comb": (False, True, True),
    "llm_rec_basic": (False, True, True),
}
_NAMES = tuple(PARTS)


def _table(*numbers: float) -> dict[str, float]:
    return dict(zip(_NAMES, numbers, strict=True))


# Fixed parts: characters of the templates, and tokens under the embedded vocabulary.
FIXED_CHARS: dict[str, dict[str, float]] = {
    "LaMP_2": _table(161, 801, 798, 782, 701, 318, 314, 124, 217, 267, 87, 785, 785, 736),
    "LaMP_3": _table(204, 524, 462, 505, 381, 135, 131, 174, 262, 314, 89, 460, 460, 411),
    "LaMP_7": _table(195, 407, 406, 388, 273, 75, 124, 159, 253, 0, 89, 358, 0, 309),
}
FIXED_TOKENS: dict[str, dict[str, float]] = {
    "LaMP_2": _table(2, 6, 6, 5, 4, 1, 1, 3, 60, 88, 34, 46, 46, 21),
    "LaMP_3": _table(2, 6, 6, 5, 4, 1, 0, 3, 54, 88, 28, 40, 40, 15),
    "LaMP_7": _table(2, 6, 6, 5, 4, 1, 1, 3, 63, 0, 37, 49, 0, 24),
}
# What a line of the history has around the item, in characters: A.3's lines, and LaMP's own.
LINE_CHARS = {"LaMP_2": (38, 44), "LaMP_3": (42, 28), "LaMP_7": (4, 9)}


@dataclass(frozen=True)
class Shape:
    """Mean tokens of what stands in the prompts of a task, and of what is answered.

    Attributes:
        item: A history line of A.3.
        official: A history item as LaMP's own prompt shows it.
        query: The query's text.
        insight: An insight in a prompt.
        insight_written: Tokens written for one, its end included.
        summary: As the insight, LLM-REC's.
        answer: An answer, its end included.
        kept: Share of pairs whose two answers differ.
        items: History items of a user.
    """

    item: float
    official: float
    query: float
    insight: float
    insight_written: float
    summary: float
    answer: float
    kept: float
    items: int


# Counted on the embedded world and its models (tables of the demo run).
EMBEDDED: dict[str, Shape] = {
    "LaMP_2": Shape(12.4, 10.4, 7.5, 6, 7, 7.5, 2, 0.72, 14),
    "LaMP_3": Shape(10.0, 9.0, 6.0, 6, 7, 7.5, 2, 0.72, 14),
    "LaMP_7": Shape(9.4, 9.4, 7.0, 9.5, 10.5, 8.3, 8.8, 1.0, 14),
}

# LaMP: mean characters of an item or query (LaMP-3 and -7 counted on official texts, LaMP-2 from
# the size of its dev file), answers as they must look, mean items per user. How many pairs differ
# is not known before a run: assumed. Insights and summaries run to their length limits.
_LAMP = {  # item characters, answer tokens, share of pairs kept, items
    "LaMP_2": (305, 4.0, 0.5, 37),
    "LaMP_3": (780, 2.0, 0.5, 190),
    "LaMP_7": (93, 30.0, 1.0, 18),
}


def shape_of(task: str, embedded: bool, insight_limit: int, summary_limit: int) -> Shape:
    """The mean lengths of a task under the vocabulary of a backbone."""
    if embedded:
        return EMBEDDED[task]
    chars, answer, kept, items = _LAMP[task]
    line, official = (extra + chars for extra in LINE_CHARS[task])
    return Shape(
        line / CHARS_PER_TOKEN,
        official / CHARS_PER_TOKEN,
        chars / CHARS_PER_TOKEN,
        insight_limit,
        insight_limit,
        summary_limit,
        answer,
        kept,
        items,
    )


def prompt_tokens(kind: str, task: str, shape: Shape, k: int, embedded: bool) -> float:
    """Mean tokens of a prompt of ``PARTS`` with ``k`` history items."""
    history, query, said = PARTS[kind]
    fixed = FIXED_TOKENS[task][kind] if embedded else FIXED_CHARS[task][kind] / CHARS_PER_TOKEN
    item = shape.official if kind == "official_history" else shape.item
    insight = shape.summary if "llm_rec" in kind else shape.insight
    return (
        fixed
        + history * min(k, shape.items) * item
        + query * shape.query
        + said * insight
    )
