"""Answers that need no model: the floor every table of results must show.

Every baseline is a function ``(users, train_users) -> answers``, one answer per query in the order
users x queries. None of them reads the gold of a query; ties of a most frequent label go to the
label met first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.records import HistoryItem, Query, User
from chameleon_lib.lamp.tasks import Task, get_task

Baseline = Callable[[Sequence[User], Sequence[User]], list[str]]


def _labels(items: Iterable[HistoryItem], owner: str) -> list[str]:
    labels = [item.label for item in items if item.label is not None]
    if not labels:
        raise UserError(f"{owner} has no labelled history item, so there is no label to count.")
    return labels


def _most_frequent(labels: Sequence[str]) -> str:
    return Counter(labels).most_common(1)[0][0]  # most_common keeps the order of first occurrence


def _per_query(answer: Callable[[User, Query], str]) -> Baseline:
    def baseline(users: Sequence[User], train_users: Sequence[User]) -> list[str]:
        del train_users  # one signature for all; these look at the user alone
        return [answer(user, query) for user in users for query in user.queries]

    return baseline


def _mean(user: User) -> float:
    scores = [int(label) for label in _labels(user.history, f"User {user.id!r}")]
    return sum(scores) / len(scores)


def constant(answer: str) -> Baseline:
    """Return the baseline that always says `answer`."""
    return _per_query(lambda _user, _query: answer)


def global_majority(users: Sequence[User], train_users: Sequence[User]) -> list[str]:
    """Answer with the most frequent label in the histories of the train users.

    Histories, not golds: golds enter at evaluation only.

    Raises:
        UserError: No train user has a labelled history item.
    """
    items = (item for user in train_users for item in user.history)
    answer = _most_frequent(_labels(items, "The set of train users"))
    return constant(answer)(users, train_users)


def _user_mode(user: User, _query: Query) -> str:
    return _most_frequent(_labels(user.history, f"User {user.id!r}"))


def _user_mean(user: User, _query: Query) -> str:
    return repr(_mean(user))


def _user_mean_rounded(user: User, _query: Query) -> str:
    return str(math.floor(_mean(user) + 0.5))  # halves go up, as a reader expects


BASELINES: MappingProxyType[str, MappingProxyType[str, Baseline]] = MappingProxyType(
    {
        "LaMP_2": MappingProxyType(
            {
                "global_majority": global_majority,
                "user_majority": _per_query(_user_mode),
            }
        ),
        "LaMP_3": MappingProxyType(
            {
                "constant_5": constant("5"),
                "global_majority": global_majority,
                "user_mean": _per_query(_user_mean),
                "user_mean_rounded": _per_query(_user_mean_rounded),
                "user_mode": _per_query(_user_mode),
            }
        ),
        "LaMP_7": MappingProxyType(
            {
                "copy_input": _per_query(lambda _user, query: query.text),
                "copy_input_field": _per_query(lambda _user, query: query.input),
                "last_item": _per_query(lambda user, _query: user.history[-1].text),
            }
        ),
    }
)


def baselines_for(task: str | Task) -> dict[str, Baseline]:
    """Return the baselines of a task by name."""
    return dict(BASELINES[get_task(task).name])
