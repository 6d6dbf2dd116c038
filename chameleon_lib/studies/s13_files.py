"""The people of local LaMP-7 files, for the study of poisoned histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.task import User, get_task, official_input
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.s13_attacks import Crowd, Person, history_pairs

TASK = "LaMP_7"
ITEMS = 9  # of a history that get a plain version; the others give no pair


def crowd_of_folder(
    method: Chameleon, profile: RunProfile, folder: str, group: int, held: int, victims: int,
    pairs: int,
) -> Crowd:  # fmt: skip
    """Train users as the group and those it is checked on, test users with a gold as victims.

    The plain version of a text is what the unedited model makes of it without a history, as source
    "history" has it. Fewer users than asked for are all there are.

    Args:
        pairs: First texts of a member of the group that a pool learns from.

    Raises:
        UserError: Fewer than four victims or members of the group, or a model that makes nothing
            else of their texts.
    """
    data = load_task_data(profile, TASK, folder)
    known = [u for u in data.train if len(u.history) > 1]
    asked = [u for u in data.test if len(u.history) > 1 and u.queries and u.queries[0].gold]
    group = min(group, max(4, len(known) - held))
    if len(known) < group + 4 or len(asked) < 4:
        raise UserError(
            f"{folder} holds {len(known)} train users and {len(asked)} scored ones of LaMP-7 with "
            "a history; poisoned histories need eight and four or more."
        )
    people = _people(method, [*known[: group + held], *asked[:victims]])
    if not any(history_pairs(person, method.settings, pairs) for person in people[:group]):
        raise UserError(
            f"The first {pairs} texts of every user of {folder} come back unchanged from "
            f"{method.backbone.name} when it is asked without a history, so no pair has two "
            "different answers; give another model."
        )
    n = min(len(known), group + held)
    return Crowd(TASK, people[:group], people[group:n], people[n:], data.source)


def _people(method: Chameleon, users: Sequence[User]) -> tuple[Person, ...]:
    task = get_task(TASK)
    texts = [item.text for user in users for item in user.history[:ITEMS]]
    said = method.neutral_outputs(TASK, [official_input(task, text) for text in texts])
    plain = dict(zip(texts, said, strict=True))
    found = []
    for user in users:
        known = {}
        for at, item in enumerate(user.history):
            neutral = plain[item.text].strip() if at < ITEMS else item.text
            known[item.id] = (neutral or item.text, neutral or item.text)
        query = user.queries[0]
        own = replace(user, queries=(query,))
        found.append(Person(own, known, (query.gold or "").strip(), query.text))
    return tuple(found)
