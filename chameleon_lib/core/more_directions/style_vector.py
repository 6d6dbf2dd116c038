"""Authentic minus neutral outputs, as in StyleVector (Zhang and others 2025, arXiv 2503.05213).

The history of a user holds what the user really wrote, or chose, for an input. The model answers
the same inputs without a history; the mean difference of the activations, read at the ends of input
and answer, is the direction. StyleVector adds it; here it is the boost of the paper's edit, without
a removal. No gold answer of a query takes part.
"""

from __future__ import annotations

from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.directions import direction
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreferencePair
from chameleon_lib.core.task import unseen_prompt


@direction(
    "style_vector",
    title="mean of authentic minus neutral outputs (StyleVector)",
    kind="ours",
    of="pairs",
    shown=False,
)
def style_vector(case: Case) -> Edit:
    """The mean difference over the history items of all users of the case."""
    method = case.method.with_(pairs_text="query_answer")
    return case.edit_of_texts(method, authentic_pairs(case), "mean_difference")


def authentic_pairs(case: Case) -> list[PreferencePair]:
    """A pair per shown history item: the user's own output, and the model's without a history.

    An item without a label (LaMP-7) is its own output: the text to paraphrase and the style of it.
    """
    method, settings = case.method, case.method.settings
    shown = {(pair.user_id, item.id): (pair, item) for pair in case.pairs for item in pair.items}
    prompts = [
        unseen_prompt(case.task, item.text, baseline=settings.prompts_baseline)
        for _, item in shown.values()
    ]
    answers = method.neutral_outputs(case.task, prompts)
    return [
        PreferencePair(
            pair.user_id, item.id, item.text, pair.items, item.label or item.text, answer, case.task
        )
        for (pair, item), answer in zip(shown.values(), answers, strict=True)
    ]
