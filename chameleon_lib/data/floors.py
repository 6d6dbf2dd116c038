"""Answers that need no model: the floor every table of results must show.

Every floor is a function ``(users, train_users) -> answers``, one answer per query in the order
users x queries. None of them reads the gold of a query; ties of a most frequent label go to the
label met first. A task names its own (`Task.floors`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from chameleon_lib.core.task import Floor, HistoryItem, Query, Task, User, get_task
from chameleon_lib.errors import UserError


def floors_for(task: str | Task) -> dict[str, Floor]:
    """Return the floors of a task by name."""
    return dict(get_task(task).floors)


def _labels(items: Iterable[HistoryItem], owner: str) -> list[str]:
    labels = [item.label for item in items if item.label is not None]
    if not labels:
        raise UserError(f"{owner} has no labelled history item, so there is no label to count.")
    return labels


def _most_frequent(labels: Sequence[str]) -> str:
    return Counter(labels).most_common(1)[0][0]  # most_common keeps the order of first occurrence


def per_query(answer: Callable[[User, Query], str]) -> Floor:
    """Make a floor of what answers one query of a user without any train users."""

    def floor(users: Sequence[User], train_users: Sequence[User]) -> list[str]:
        del train_users  # one signature for all; these look at the user alone
        return [answer(user, query) for user in users for query in user.queries]

    return floor


def _mean(user: User) -> float:
    scores = [int(label) for label in _labels(user.history, f"User {user.id!r}")]
    return sum(scores) / len(scores)


def constant(answer: str) -> Floor:
    """Return the floor that always says `answer`."""
    return per_query(lambda _user, _query: answer)


def global_majority(users: Sequence[User], train_users: Sequence[User]) -> list[str]:
    """Answer with the most frequent label in the histories of the train users.

    Histories, not golds: golds enter at evaluation only.

    Raises:
        UserError: No train user has a labelled history item.
    """
    items = (item for user in train_users for item in user.history)
    answer = _most_frequent(_labels(items, "The set of train users"))
    return constant(answer)(users, train_users)


user_majority = per_query(
    lambda user, _query: _most_frequent(_labels(user.history, f"User {user.id!r}"))
)
user_mean = per_query(lambda user, _query: repr(_mean(user)))
# Halves go up, as a reader expects.
user_mean_rounded = per_query(lambda user, _query: str(math.floor(_mean(user) + 0.5)))
copy_input = per_query(lambda _user, query: query.text)
copy_input_field = per_query(lambda _user, query: query.input)
last_item = per_query(lambda user, _query: user.history[-1].text)
last_label = per_query(lambda user, _query: _labels(user.history, f"User {user.id!r}")[-1])
