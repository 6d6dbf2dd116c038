"""The wording of the tasks' prompts, as Appendix A.3 of the paper prints it."""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_lib.lamp.tasks import TAGS

_TAGS = ", ".join(TAGS)
_NEUTRAL = (
    "You are a generic and impersonal assistant. "
    "You do not consider the user's preferences or profile history when responding."
)


@dataclass(frozen=True)
class Agent:
    """An agent paragraph: `lead`, the sentence `stem` + insight + ".", then `close`."""

    lead: str
    stem: str
    close: str | None = None


@dataclass(frozen=True)
class Template:
    """The paragraphs of one task in A.3."""

    opening: str
    query: str
    question: str
    agents: dict[str, Agent]


TEMPLATES: dict[str, Template] = {
    "LaMP_2": Template(
        opening="Suppose you are a user with the following user profile history of movie tagging:",
        query="Now, given a new description:",
        question=(
            "Question: Which tag does this movie relate to among the following tags? Just answer "
            f"with only ONE tag name without further explanation. tags: [{_TAGS}]"
        ),
        agents={
            "P": Agent(
                lead=(
                    "You are a helpfully personalized assistant. You try to predict the movie "
                    "tagging that the user preferred based on their history."
                ),
                stem="The user prefers",
                close=f"Answer only with one tag name ({_TAGS}).",
            ),
            # "shoulds" is printed so in this one template (A23).
            "N": Agent(
                lead=_NEUTRAL,
                stem="Your answer shoulds",
                close=f"Answer only with one tag name ({_TAGS}).",
            ),
        },
    ),
    "LaMP_3": Template(
        opening=(
            "Suppose you are a user with the following user profile history of product rating "
            "based on the user's review of the product:"
        ),
        query="Now, given a new review by the user:",
        question=(
            "Question: What is the rating score of the following review on a scale of 1 to 5? "
            "Just answer with 1, 2, 3, 4, or 5 without further explanation."
        ),
        agents={
            "P": Agent(
                lead=(
                    "You are a helpfully personalized assistant. You try to predict the rating of "
                    "the product based on the user history ratings."
                ),
                stem="The user prefers",
                close="Just answer with 1, 2, 3, 4, or 5 without further explanation.",
            ),
            # No closing reminder here, as printed (section 4.5).
            "N": Agent(lead=_NEUTRAL, stem="Your answer should"),
        },
    ),
    "LaMP_7": Template(
        opening=(
            "Suppose you are a twitter user with the following user profile history that shows "
            "their preferred way of speaking:"
        ),
        query="Now, given a new twitter post:",
        question=(
            "Question: Paraphrase the tweet in the style the user likes without any explanation "
            "before or after it."
        ),
        agents={
            "P": Agent(
                lead=(
                    "You are a helpfully personalized assistant. You try to paraphrase the tweet "
                    "in the style the user likes based on the history."
                ),
                stem="The user prefers",
            ),
            "N": Agent(lead=_NEUTRAL, stem="Your answer should"),
        },
    ),
}
