"""Format is not personality: the form of free-text answers, as scores beside those of the task.

A preamble, a refusal or a longer answer moves ROUGE and is nobody's style. Tables of levels
therefore show their rates, the length, and the first score of the answers without preambles.
Answers of a closed list have none of it: a sentence there is no valid answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chameleon_lib.core.answers import FORM, form_scores, without_preamble
from chameleon_lib.core.task import get_task
from chameleon_lib.data.metrics import sample_scores

_STRIPPED = " stripped"


def stripped(name: str) -> str:
    """What a metric or score is called once preambles are taken off the answers."""
    return name + _STRIPPED


def unstripped(name: str) -> str | None:
    """The metric or score that a stripped one is of; None for any other name."""
    return name.removesuffix(_STRIPPED) if name.endswith(_STRIPPED) else None


def measures_of(task: str) -> list[str]:
    """Names of what :func:`form_of` measures, as metrics of tables; none for a task with labels."""
    chosen = get_task(task)
    return [] if chosen.labels else [stripped(chosen.metrics[0]), *FORM]


def form_of(
    task: str, golds: Sequence[str], answers: Sequence[str], score: str = ""
) -> dict[str, np.ndarray]:
    """The form of answers.

    Args:
        task: Task name.
        golds: Gold outputs.
        answers: In the same order.
        score: Score per sample to repeat without preambles; the task's first if empty.

    Returns:
        Arrays (n,): the score of the answers without preambles, then
        :data:`chameleon_lib.core.answers.FORM`; empty for a task with labels.

    Raises:
        UserError: As :func:`chameleon_lib.data.metrics.sample_scores`.
    """
    chosen = get_task(task)
    if chosen.labels:
        return {}
    score = score or chosen.measures[0].of
    bare = [without_preamble(text) for text in answers]
    return {stripped(score): sample_scores(task, score, golds, bare), **form_scores(answers)}
