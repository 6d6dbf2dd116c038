"""Questions about one user for the Explore cells: another history, or somebody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.records import HistoryItem, User
from chameleon_lib.sections.answering import Exam
from chameleon_lib.sections.explore import Sample
from chameleon_lib.sections.playground import FITTED, NO_EDIT, PAPER


def two_users(sample: Sample, first: int, second: int) -> pd.DataFrame:
    """One query, asked with the history of either user: who gets which answer?

    Args:
        sample: Users and edits.
        first: Number of a user of the sample; the query is this user's first one.
        second: Number of another one.
    """
    one, other = (_user(sample, number) for number in (first, second))
    asked = replace(other.user, queries=one.user.queries[:1])
    prepared, _ = sample.study.prepare([replace(one.user, queries=asked.queries), asked])
    return _said(sample, dict(zip((f"user {first}", f"user {second}"), prepared, strict=True)))


def edit_history(
    sample: Sample,
    user: int,
    *,
    drop: Sequence[int] = (),
    relabel: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """A user's first query, with the history as it is and after a change to it.

    Args:
        sample: Users and edits.
        user: Number of a user of the sample.
        drop: Items to leave out, numbered from 1 as in the quickstart's table.
        relabel: Item number → another label.

    Raises:
        UserError: An item that is not there, or none left.
    """
    one = _user(sample, user).user
    relabel = relabel or {}
    for number in [*drop, *relabel]:
        if not 1 <= number <= len(one.history):
            raise UserError(f"There is no item {number}; user {user} has {len(one.history)}.")
    items = tuple(
        HistoryItem(item.id, item.text, relabel.get(number, item.label))
        for number, item in enumerate(one.history, start=1)
        if number not in drop
    )
    if not items:
        raise UserError("No item is left; drop fewer.")
    queries = one.queries[:1]
    both: list[User] = [replace(one, queries=queries), replace(one, history=items, queries=queries)]
    prepared, _ = sample.study.prepare(both)
    return _said(sample, dict(zip(("as it is", "changed"), prepared, strict=True)))


def _user(sample: Sample, number: int) -> PreparedUser:
    if not 0 <= number < len(sample.users):
        raise UserError(f"user is {number}; the sample has the users 0 to {len(sample.users) - 1}.")
    return sample.users[number]


def _said(sample: Sample, users: Mapping[str, PreparedUser]) -> pd.DataFrame:
    """Insight and answers of prepared users with one query each."""
    tour, study = sample.tour, sample.study
    pairs = study.pairs(list(users.values()))
    reference = replace(
        sample.exam.reference,
        personal=[pair.answer_p for pair in pairs],
        generic=[pair.answer_n for pair in pairs],
    )
    arms: dict[str, tuple[str, Edit | None]] = {
        NO_EDIT: ("instruct", None),
        PAPER: ("instruct", tour.edit),
        FITTED: ("instruct", tour.fitted),
        "insight in the prompt": ("insight", None),
    }
    found = Exam(study, list(users.values()), reference).answer(arms)
    return pd.DataFrame(
        {
            "history": list(users),
            "query": [pair.query for pair in pairs],
            "insight": [user.insight_p for user in users.values()],
            **{name: answers.texts for name, answers in found.items()},
        }
    )
