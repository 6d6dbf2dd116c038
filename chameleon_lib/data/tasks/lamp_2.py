"""LaMP-2: which of fifteen tags would this user give to a movie?"""

from __future__ import annotations

from chameleon_lib.core.task import Metric, Official, Task, Wording, agents, register
from chameleon_lib.data.floors import global_majority, user_majority
from chameleon_lib.data.metrics import class_scores

# Official order: the index is the class id of macro-F1.
TAGS: tuple[str, ...] = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)
_TAGS = ", ".join(TAGS)


def _read(text: str) -> str | None:
    return text.lower() if text.lower() in TAGS else None


LAMP_2 = register(
    Task(
        name="LaMP_2",
        title="LaMP-2 Personalised Movie Tagging",
        labels=TAGS,
        text_key="description",
        label_key="tag",
        instruction=(
            "Which tag does this movie relate to among the following tags? "
            f"Just answer with the tag name without further explanation. tags: [{_TAGS}] "
            "description:"
        ),
        query_marker="description:",
        official_item='the tag for the movie: "{text}" is "{label}" ',
        wording=Wording(
            opening=(
                "Suppose you are a user with the following user profile history of movie tagging:"
            ),
            line='The tag for movie: "{text}" is "{label}".',
            query="Now, given a new description:",
            question=(
                "Question: Which tag does this movie relate to among the following tags? Just "
                f"answer with only ONE tag name without further explanation. tags: [{_TAGS}]"
            ),
            # "shoulds" is printed so in this one template (A23).
            agents=agents(
                "You try to predict the movie tagging that the user preferred based on their "
                "history.",
                f"Answer only with one tag name ({_TAGS}).",
                neutral_stem="Your answer shoulds",
                neutral_close=f"Answer only with one tag name ({_TAGS}).",
            ),
        ),
        noun="description",
        thing="movie",
        measures=(Metric("accuracy", "accuracy"), Metric("f1", "answers", "macro_f1")),
        score=class_scores(TAGS),
        floors={"global_majority": global_majority, "user_majority": user_majority},
        max_new_tokens=16,
        users_by="overlap",
        official=Official(
            first_digit=1,
            # Without "new" the server still has the old news task.
            folder="new",
            records={
                ("user", "train"): -3820, ("user", "dev"): 692, ("user", "test"): -870,
                ("time", "train"): -5073, ("time", "dev"): -1410, ("time", "test"): -1557,
            },
            bytes={"dev_questions.json": 9_493_217, "dev_outputs.json": 27_502},
        ),
        # In the official dev file question 110 starts with "x " and the movie overview.
        lost_instruction="x ",
        foreign=(
            ("category", "title"),
            "belongs to the old news task (profile items with category and title); download "
            "LaMP-2 movies from the folder LaMP_2/new",
        ),
        read_label=_read,
    )
)  # fmt: skip
