"""LaMP-5: which title would this scholar give to a paper?

The wording of the A.3 prompts is ours, in the pattern of the paper's.
"""

from __future__ import annotations

from chameleon_lib.core.task import Metric, Official, Task, Wording, agents, register
from chameleon_lib.data.floors import copy_input, last_label
from chameleon_lib.data.metrics import rouge_scores

LAMP_5 = register(
    Task(
        name="LaMP_5",
        title="LaMP-5 Personalised Scholarly Title Generation",
        text_key="abstract",
        label_key="title",
        instruction="Generate a title for the following abstract of a paper:",
        query_marker="paper:",
        official_item='"{label}" is a title for "{text}" ',
        official_prompt="{items}. Following the given patterns {input}",
        wording=Wording(
            opening=(
                "Suppose you are a scholar with the following user profile history of paper titles:"
            ),
            line='"{label}" is the title for abstract: "{text}".',
            query="Now, given a new abstract by the author:",
            question=(
                "Question: Generate a title for the abstract in the style the author likes without "
                "any explanation before or after it."
            ),
            agents=agents(
                "You try to write the title in the style the author likes based on the history."
            ),
        ),
        noun="abstract",
        thing="paper",
        measures=(Metric("rouge1", "rouge1"), Metric("rougeL", "rougeL")),
        score=rouge_scores,
        floors={"copy_input": copy_input, "last_item": last_label},
        max_new_tokens=64,
        users_by="overlap",
        official=Official(
            first_digit=4,
            records={
                ("user", "train"): -9682, ("user", "dev"): -2500, ("user", "test"): -2500,
                ("time", "train"): -14682, ("time", "dev"): -1500, ("time", "test"): -1500,
            },
        ),
    )
)  # fmt: skip
