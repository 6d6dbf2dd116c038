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

from chameleon_lib.core.backbone import Backbone, DecodeSettings
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import Query, Task, get_task, history_block, query_line, unseen_prompt
from chameleon_lib.errors import UserError
from chameleon_lib.rivals.registry import register

SUMMARY_TOKENS = 120
SUMMARY_CUE = "Summary:"


@dataclass(frozen=True)
class LlmRec:
    """One way to ask.

    Attributes:
        id: Row id.
        title: Row name.
        paper: Name in the paper's tables.
        user_data: The summary prompt shows the selected history (engagement-guided).
        recommend: It also asks what would recommend the thing to others.
    """

    id: str
    title: str
    paper: str = ""
    user_data: bool = True
    recommend: bool = False
    uses_gold: bool = False

    def suits(self, task: str | Task) -> bool:
        """Whether a task has things that one could recommend, where the variant asks for it."""
        return not self.recommend or get_task(task).thing is not None

    def write(
        self, backbone: Backbone, users: Sequence[PreparedUser], settings: EditSettings
    ) -> list[str]:
        """One summary per query, greedy; "" where the model wrote only blanks and full stops.

        No gold and no insight is read.

        Raises:
            UserError: A task that the variant does not suit, users of several tasks, or no history
                where it is shown.
        """
        tasks = sorted({prepared.user.task for prepared in users})
        if len(tasks) != 1:
            raise UserError(f"LLM-REC needs users of one task, got {tasks or 'no users'}.")
        # A user's prompts start with one and the same history, unless they show none.
        groups = [index for index, user in enumerate(users) for _ in user.user.queries]
        texts = backbone.generate(
            [self.summary_prompt(user, query) for user, query in _queries(users)],
            max_new_tokens=summary_tokens(settings),
            groups=groups if self.user_data else None,
            decode=DecodeSettings(),
        )
        lines = [" ".join(text.split()) for text in texts]
        return [line if line.strip(". ") else "" for line in lines]

    def summary_prompt(self, prepared: PreparedUser, query: Query) -> str:
        """Ask for the summary of a query (the target) and the selected history (its neighbours).

        It ends with "Summary:".
        """
        task = get_task(prepared.user.task)
        if not self.suits(task):
            raise UserError(
                f"{self.id} asks what would recommend a thing to others, which {task.title} has "
                "not."
            )
        noun = task.noun
        wish = f"Write one short summary of the new {noun}"
        if self.user_data:
            wish = (
                f"Write one short summary of what the new {noun} has in common with the user "
                "profile history"
            )
        if self.recommend:
            wish += f", and say what would recommend the {task.thing} to others"
        paragraphs = [history_block(task, prepared.items)] if self.user_data else []
        return "\n".join([*paragraphs, query_line(task, query.text), f"{wish}.", SUMMARY_CUE])

    def prompts(
        self, users: Sequence[PreparedUser], written: Sequence[str], settings: EditSettings
    ) -> list[str]:
        """Instruct with its history paragraph replaced by the summary, per query.

        Apart from what the model itself quotes in its summary, nothing of the history is left.
        Where no summary is there, the prompt says so.
        """
        found = []
        for (prepared, query), summary in zip(_queries(users), written, strict=True):
            task = get_task(prepared.user.task)
            about = f"the {task.noun} below"
            if self.user_data:
                about = f"what {about} has in common with the user profile history"
            text = " ".join(summary.split())
            line = f"Summary of {about}: {text}" if text else f"There is no summary of {about}."
            baseline = settings.prompts_baseline
            asked = unseen_prompt(task, query.text, baseline=baseline)
            found.append(f"{line}\n{asked}")
        return found


def summary_tokens(settings: EditSettings) -> int:
    """Length limit of a summary: 120 new tokens, less where insights are shorter (small runs)."""
    return min(SUMMARY_TOKENS, settings.decode_insight_tokens)


def _queries(users: Sequence[PreparedUser]) -> Iterator[tuple[PreparedUser, Query]]:
    return ((prepared, query) for prepared in users for query in prepared.user.queries)


register(LlmRec("llm_rec", "LLM-REC (adapted)", "LLM-REC"))
register(LlmRec("llm_rec_comb", "LLM-REC (adapted), recommending", recommend=True))
register(LlmRec("llm_rec_basic", "LLM-REC (adapted), no history", user_data=False))
