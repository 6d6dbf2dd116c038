"""Rebuild users from samples, split them, and check that two sets of users are disjoint.

The files of the user-based split carry no user id. LaMP-3 and LaMP-7 repeat a user's profile
unchanged, so an identical profile is the same user. LaMP-2 has several samples per user with
profiles that differ a little, so there two samples are connected when their profiles overlap in
exact (text, label) pairs, and connected components are users. Files of the time-based split and
imported tables name their users, and then the name counts. That every sample is a user of its own
("samples") has to be asked for: see `chameleon_lib.lamp.grouping`, which also says how sure
rebuilt users are.

How much overlap is a choice. One shared pair is not enough: popular films get the same tag from
many people, and on MovieLens users known to be distinct that rule merges 101 of 102 into one. At a
Jaccard index of at least 0.5 none of them merge, while two profiles of one user that each leave
out one item (3 items or more) still connect.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.overlap import Content, components, contents, overlaps
from chameleon_lib.lamp.records import HistoryItem, User
from chameleon_lib.lamp.samples import Sample
from chameleon_lib.lamp.tasks import Task, get_task

Grouping = Literal["identical", "overlap", "known", "samples"]

MIN_OVERLAP = 0.5

_log = logging.getLogger(__name__)


def default_grouping(task: str | Task) -> Grouping:
    """Return the rule that fits the official files: "overlap" for LaMP-2, else "identical"."""
    return "overlap" if get_task(task).name == "LaMP_2" else "identical"


def _merged_history(samples: Sequence[Sample]) -> tuple[HistoryItem, ...]:
    """Return one history for the samples of a user; empty if all of it is asked.

    Equal profiles are kept as they are. Others are united in order of first appearance, without
    items that are a query of this user (one sample's query may sit in another's profile, label
    included), and with ids "sample:item", because item ids are unique inside a sample only.
    """
    first = samples[0].profile
    if all(contents(sample.profile) == contents(first) for sample in samples):
        return first
    asked = {sample.query.text for sample in samples}
    united: dict[Content, HistoryItem] = {}
    for sample in samples:
        for item in sample.profile:
            if item.text.strip() not in asked:
                named = HistoryItem(f"{sample.query.id}:{item.id}", item.text, item.label)
                united.setdefault((item.text, item.label), named)
    return tuple(united.values())


def _as_user(name: str, samples: Sequence[Sample], task: Task) -> User:
    """Make a user of samples that belong together.

    Where every item of the history is asked by some sample, the last questions are given up until
    an item is left: a history without any item has no meaning, one with golds in it is worse.
    """
    kept = list(samples)
    while not (history := _merged_history(kept)):
        kept.pop()
    if len(kept) < len(samples):
        _log.warning(
            "User %r: questions %s are not asked, or no history would be left.",
            name,
            [sample.query.id for sample in samples[len(kept) :]],
        )
    return User(name, task.name, history, tuple(sample.query for sample in kept))


def _rule(samples: Sequence[Sample], task: Task) -> Grouping:
    """The rule that the samples themselves ask for."""
    named = next((sample for sample in samples if sample.user_id is not None), None)
    check_names(named, next((s for s in samples if s.user_id is None), None), task)
    return "known" if named else default_grouping(task)


def check_names(named: Sample | None, nameless: Sample | None, task: Task) -> None:
    """Refuse a file in which some records name their user and some do not.

    Raises:
        UserError: There is a record of either kind.
    """
    if named is not None and nameless is not None:
        raise UserError(
            f"Record {named.query.id!r} of {task.name} has a user_id and record "
            f"{nameless.query.id!r} has none; give it to all records or to none."
        )


def _equal(keys: Sequence[Hashable]) -> list[list[int]]:
    """Positions of equal keys together, ordered by their first member."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    return list(members.values())


def sample_groups(
    samples: Sequence[Sample],
    task: str | Task,
    *,
    grouping: Grouping | None = None,
    min_overlap: float = MIN_OVERLAP,
) -> list[list[int]]:
    """Indices of the samples of each user; arguments as `group_samples_into_users`."""
    chosen = get_task(task)
    if not 0 < min_overlap <= 1:
        raise UserError(f"min_overlap is {min_overlap}; it must lie in (0, 1].")
    rule = grouping or _rule(samples, chosen)
    if rule == "known" and any(sample.user_id is None for sample in samples):
        raise UserError(f"The {chosen.name} records do not name their users; use another grouping.")
    if rule == "overlap":
        profiles = [frozenset(contents(sample.profile)) for sample in samples]
        edges = ((i, j) for i, j, *_ in overlaps(profiles, min_overlap))
        return components(len(samples), edges)
    if rule == "samples":
        return [[index] for index in range(len(samples))]
    return _equal([s.user_id if rule == "known" else contents(s.profile) for s in samples])


def group_samples_into_users(
    samples: Iterable[Sample],
    task: str | Task,
    *,
    grouping: Grouping | None = None,
    min_overlap: float = MIN_OVERLAP,
) -> list[User]:
    """Group samples into users, in order of first appearance.

    Args:
        samples: Validated samples of one file.
        task: Task or its name.
        grouping: "known" (equal user ids), "identical" (equal profiles), "overlap" (connected
            components) or "samples" (each its own user); None takes "known" where the records
            name their users, else `default_grouping`.
        min_overlap: Jaccard index in (0, 1] from which "overlap" connects two samples.

    Returns:
        Users named by their user id, else after their first sample. Where a merged history would
        be empty, the user's last questions are given up, with a warning.

    Raises:
        UserError: `min_overlap` is out of range, or only some records name their user.
    """
    chosen, listed = get_task(task), list(samples)
    rule = grouping or _rule(listed, chosen)
    users = []
    for group in sample_groups(listed, chosen, grouping=rule, min_overlap=min_overlap):
        own = [listed[index] for index in group]
        name = own[0].user_id if rule == "known" else own[0].query.id
        users.append(_as_user(str(name), own, chosen))
    return users


def _position(name: str, task: Task, salt: str) -> float:
    """Return a fixed position of a user in [0, 1)."""
    digest = hashlib.sha256(f"{salt}|{task.name}|{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def part_of(name: str, task: str | Task, fractions: Mapping[str, float], salt: str) -> str:
    """The part of a user, by shares that sum to 1; arguments as `split_users_by_hash`."""
    position, upper = _position(name, get_task(task), salt), 0.0
    for part, share in fractions.items():
        upper += share
        if position < upper:
            return part
    return list(fractions)[-1]  # the last part takes what rounding leaves above the sum


def split_users_by_hash(
    users: Sequence[User], fractions: Mapping[str, float], salt: str
) -> dict[str, list[User]]:
    """Split users into named, disjoint parts by a hash of their name.

    A user's part depends on its name, the task and `salt` only: not on the order of `users` and
    not on who else is there.

    Args:
        users: Users to split; order is kept inside every part.
        fractions: Part name -> expected share; the shares sum to 1.
        salt: Any text; another salt is another draw.

    Raises:
        UserError: A share is negative, or the shares do not sum to 1.
    """
    if min(fractions.values(), default=0) < 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise UserError(f"Split shares {dict(fractions)} must be positive and sum to 1.")
    parts: dict[str, list[User]] = {name: [] for name in fractions}
    for user in users:
        parts[part_of(user.id, user.task, fractions, salt)].append(user)
    return parts


def matching_histories(
    users: Sequence[User], grouping: Grouping | None = None, min_overlap: float = MIN_OVERLAP
) -> Iterable[tuple[int, int]]:
    """Return positions i < j of users whose histories are one person's by the rule of grouping.

    Args:
        users: Users of one task.
        grouping: See `group_samples_into_users`; of equal histories the first one is i.
        min_overlap: See there.
    """
    profiles = [frozenset(contents(user.history)) for user in users]
    if users and (grouping or default_grouping(users[0].task)) == "identical":
        return [(group[0], j) for group in _equal(profiles) for j in group[1:]]
    return ((i, j) for i, j, *_ in overlaps(profiles, min_overlap))


def check_disjoint(
    group: Sequence[User],
    evaluation: Sequence[User],
    *,
    grouping: Grouping | None = None,
    min_overlap: float = MIN_OVERLAP,
) -> None:
    """Assert that no user is in both sets, by the history content that makes a user.

    Content is compared because ids say nothing about users across files.

    Args:
        group: Users whose data fit the directions.
        evaluation: Users whose queries are scored.
        grouping: The rule of `group_samples_into_users` that the users were built with.
        min_overlap: See there.

    Raises:
        UserError: The sets share a user; the sentence names the first pair.
    """
    if not group or not evaluation:
        return
    n = len(group)
    matches = matching_histories([*group, *evaluation], grouping, min_overlap)
    pairs = [(i, j) for i, j in matches if i < n <= j]
    if pairs:
        i, j = min(pairs)
        raise UserError(
            f"User {group[i].id!r} of the group is also user {evaluation[j - n].id!r} of the "
            "evaluation (their histories match); split the users again."
        )
