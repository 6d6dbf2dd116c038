"""LaMP-7: how would this user write a tweet?"""

from __future__ import annotations

from chameleon_lib.core.task import Metric, Official, Task, Wording, agents, register
from chameleon_lib.data.floors import copy_input, copy_input_field, last_item
from chameleon_lib.data.metrics import rouge_scores

LAMP_7 = register(
    Task(
        name="LaMP_7",
        title="LaMP-7 Personalised Tweet Paraphrasing",
        instruction="Paraphrase the following tweet without any explanation before or after it:",
        query_marker=":",
        # The blanks before the joiner and before "are written" belong to the official format.
        official_item='"{text}" ',
        official_prompt=(
            "{items} are written by a person. Following the given patterns {input}"
        ),
        wording=Wording(
            opening=(
                "Suppose you are a twitter user with the following user profile history that shows "
                "their preferred way of speaking:"
            ),
            line="{text}",
            query="Now, given a new twitter post:",
            question=(
                "Question: Paraphrase the tweet in the style the user likes without any "
                "explanation before or after it."
            ),
            agents=agents(
                "You try to paraphrase the tweet in the style the user likes based on the history."
            ),
        ),
        noun="twitter post",
        measures=(Metric("rouge1", "rouge1"), Metric("rougeL", "rougeL")),
        score=rouge_scores,
        floors={
            "copy_input": copy_input,
            "copy_input_field": copy_input_field,
            "last_item": last_item,
        },
        max_new_tokens=128,
        official=Official(
            first_digit=6,
            records={
                ("user", "train"): 10437, ("user", "dev"): 1500, ("user", "test"): 1496,
                ("time", "train"): -13437, ("time", "dev"): -1498, ("time", "test"): -1500,
            },
        ),
    )
)  # fmt: skip
