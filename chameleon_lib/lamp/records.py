"""The three records every other room passes around: history item, query, user."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One profile entry of a user.

    Attributes:
        id: Unique inside one sample only; never a key on its own.
        text: Movie description (LaMP-2), review (LaMP-3) or tweet (LaMP-7).
        label: Tag (LaMP-2), score ``"1"``..``"5"`` (LaMP-3), None (LaMP-7).
    """

    id: str
    text: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a user.

    Attributes:
        id: The sample id of the questions file.
        text: The extracted query (description, review or tweet), stripped.
        input: The official ``input`` field, kept for the official prompt.
        gold: The gold output, None where labels are withheld.
    """

    id: str
    text: str
    input: str
    gold: str | None


@dataclass(frozen=True, slots=True)
class User:
    """One user: a history and the queries asked about it.

    Attributes:
        id: Name of the user in this run; never parsed from a question id.
        task: ``"LaMP_2"``, ``"LaMP_3"`` or ``"LaMP_7"``.
        history: Profile items in file order.
        queries: At least one query.
    """

    id: str
    task: str
    history: tuple[HistoryItem, ...]
    queries: tuple[Query, ...]
