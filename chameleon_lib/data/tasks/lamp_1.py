"""LaMP-1: which of two papers would this author cite?

The history is the author's papers; an answer is "[1]" or "[2]". A history holds no answer, so no
label of it can be counted. The wording of the A.3 prompts is ours, in the pattern of the paper's.
"""

from __future__ import annotations

from chameleon_lib.core.task import Metric, Official, Task, Wording, agents, register
from chameleon_lib.data.floors import constant
from chameleon_lib.data.metrics import class_scores

CHOICES = ("[1]", "[2]")

LAMP_1 = register(
    Task(
        name="LaMP_1",
        title="LaMP-1 Personalised Citation Identification",
        labels=CHOICES,
        text_key="abstract",
        label_key="title",
        free_items=True,
        instruction="For an author who has written the paper with the title",
        query_marker="with the title",
        # The titles of the history go behind the word "title" of the input.
        official_item='"{label}"',
        official_prompt="{head}, and {items}{tail}",
        wording=Wording(
            opening="Suppose you are an author with the following user profile history of papers:",
            line='The paper "{label}" has the abstract: "{text}".',
            query="Now, given a new paper by the author with the title",
            question=(
                "Question: Which of the two references would the author cite in this paper? Just "
                "answer with [1] or [2] without further explanation."
            ),
            agents=agents(
                "You try to predict the reference that the author would cite based on their "
                "papers.",
                "Answer only with [1] or [2].",
                neutral_close="Answer only with [1] or [2].",
            ),
        ),
        noun="paper",
        measures=(Metric("accuracy", "accuracy"), Metric("f1", "answers", "macro_f1")),
        score=class_scores(CHOICES),
        floors={"constant_1": constant("[1]"), "constant_2": constant("[2]")},
        max_new_tokens=8,
        users_by="overlap",
        official=Official(
            records={
                ("user", "train"): -9682, ("user", "dev"): -2500, ("user", "test"): -2500,
                ("time", "train"): -6542, ("time", "dev"): -1500, ("time", "test"): -1500,
            },
        ),
        importable=False,
    )
)  # fmt: skip
