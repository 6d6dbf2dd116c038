"""LaMP-4: which headline would this journalist give to an article?

The wording of the A.3 prompts is ours, in the pattern of the paper's.
"""

from __future__ import annotations

from chameleon_lib.core.task import Metric, Official, Task, Wording, agents, register
from chameleon_lib.data.floors import copy_input, last_label
from chameleon_lib.data.metrics import rouge_scores

LAMP_4 = register(
    Task(
        name="LaMP_4",
        title="LaMP-4 Personalised News Headline Generation",
        label_key="title",
        instruction="Generate a headline for the following article:",
        query_marker="article:",
        official_item='"{label}" is the title for "{text}" ',
        wording=Wording(
            opening=(
                "Suppose you are a journalist with the following user profile history of news "
                "headlines:"
            ),
            line='"{label}" is the headline for article: "{text}".',
            query="Now, given a new article by the author:",
            question=(
                "Question: Generate a headline for the article in the style the author likes "
                "without any explanation before or after it."
            ),
            agents=agents(
                "You try to write the headline in the style the author likes based on the history."
            ),
        ),
        noun="article",
        thing="article",
        measures=(Metric("rouge1", "rouge1"), Metric("rougeL", "rougeL")),
        score=rouge_scores,
        floors={"copy_input": copy_input, "last_item": last_label},
        max_new_tokens=64,
        users_by="overlap",
        official=Official(
            first_digit=3,
            records={
                ("user", "train"): -12527, ("user", "dev"): -1925, ("user", "test"): -2376,
                ("time", "train"): -12500, ("time", "dev"): -1500, ("time", "test"): -1800,
            },
        ),
    )
)  # fmt: skip
