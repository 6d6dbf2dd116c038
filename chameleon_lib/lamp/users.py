"""Rebuild users from samples, split them, and check that two sets of users are disjoint.

Where every sample says whose it is (``user_id``: the time-based split, imported tables), that
counts. The files of the user-based split carry no user id. LaMP-3 and LaMP-7 repeat a user's
profile unchanged, so an identical profile is the same user. LaMP-2 has several samples per user
with profiles that differ a little, so there two samples are connected when their profiles overlap
in exact (text, label) pairs, and connected components are users.

How much overlap is a choice. One shared pair is not enough: popular films get the same tag from
many people, and on MovieLens users known to be distinct that rule merges 101 of 102 into one. At a
Jaccard index of at least 0.5 none of them merge, while two profiles of one user that each leave
out one item (3 items or more) still connect.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.records import HistoryItem, User
from chameleon_lib.lamp.samples import Sample
from chameleon_lib.lamp.tasks import Task, get_task

Grouping = Literal["identical", "overlap"]
Content = tuple[str, str | None]

MIN_OVERLAP = 0.5


def default_grouping(task: str | Task) -> Grouping:
    """Return the rule that fits the official files: "overlap" for LaMP-2, else "identical"."""
    return "overlap" if get_task(task).name == "LaMP_2" else "identical"


def _contents(items: Iterable[HistoryItem]) -> tuple[Content, ...]:
    return tuple((item.text, item.label) for item in items)


def _overlapping_pairs(
    profiles: Sequence[frozenset[Content]], min_overlap: float
) -> Iterable[tuple[int, int]]:
    """Yield index pairs i < j of profiles whose Jaccard index reaches `min_overlap`."""
    holders: dict[Content, list[int]] = defaultdict(list)
    for index, profile in enumerate(profiles):
        for content in profile:
            holders[content].append(index)
    shared: Counter[tuple[int, int]] = Counter()
    for owners in holders.values():
        shared.update(combinations(owners, 2))
    for (i, j), n in shared.items():
        if n >= min_overlap * (len(profiles[i]) + len(profiles[j]) - n):
            yield i, j


def _components(size: int, edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return connected components by union-find, ordered by their first member."""
    parent = list(range(size))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in edges:
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    members: dict[int, list[int]] = defaultdict(list)
    for i in range(size):
        members[root(i)].append(i)
    return list(members.values())


def _equal(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the positions of equal keys together, ordered by their first member."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    return list(members.values())


def _merged_history(samples: Sequence[Sample]) -> tuple[HistoryItem, ...]:
    """Return one history for the samples of a user.

    Equal profiles are kept as they are. Others are united in order of first appearance, without
    items that are a query of this user (one sample's query may sit in another's profile, label
    included), and with ids "sample:item", because item ids are unique inside a sample only.
    """
    first = samples[0].profile
    if all(_contents(sample.profile) == _contents(first) for sample in samples):
        return first
    asked = {sample.query.text for sample in samples}
    united: dict[Content, HistoryItem] = {}
    for sample in samples:
        for item in sample.profile:
            if item.text.strip() not in asked:
                named = HistoryItem(f"{sample.query.id}:{item.id}", item.text, item.label)
                united.setdefault((item.text, item.label), named)
    if not united:
        raise UserError(
            f"Samples {[s.query.id for s in samples]} form one user whose whole history is also "
            "asked; load them with the grouping 'identical'."
        )
    return tuple(united.values())


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
        grouping: "identical" (equal profiles) or "overlap" (connected components); None goes by
            ``user_id`` where every sample has one, else by `default_grouping`.
        min_overlap: Jaccard index in (0, 1] from which "overlap" connects two samples.

    Returns:
        Users named by their ``user_id``, else after their first sample.

    Raises:
        UserError: `min_overlap` is out of range, or a merged history would be empty.
    """
    chosen = get_task(task)
    if not 0 < min_overlap <= 1:
        raise UserError(f"min_overlap is {min_overlap}; it must lie in (0, 1].")
    listed = list(samples)
    declared = grouping is None and all(sample.user_id is not None for sample in listed)
    if declared:
        groups = _equal([sample.user_id for sample in listed])
    elif (grouping or default_grouping(chosen)) == "identical":
        groups = _equal([_contents(sample.profile) for sample in listed])
    else:
        profiles = [frozenset(_contents(sample.profile)) for sample in listed]
        groups = _components(len(listed), _overlapping_pairs(profiles, min_overlap))
    users = []
    for group in groups:
        own = [listed[index] for index in group]
        queries = tuple(sample.query for sample in own)
        name = own[0].user_id if declared else None
        users.append(User(name or queries[0].id, chosen.name, _merged_history(own), queries))
    return users


def _position(user: User, salt: str) -> float:
    """Return a fixed position of the user in [0, 1)."""
    digest = hashlib.sha256(f"{salt}|{user.task}|{user.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


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
    names = list(fractions)
    for user in users:
        position, upper = _position(user, salt), 0.0
        for name in names:
            upper += fractions[name]
            # The last part takes what rounding leaves above the sum.
            if position < upper or name == names[-1]:
                parts[name].append(user)
                break
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
    profiles = [frozenset(_contents(user.history)) for user in users]
    if users and (grouping or default_grouping(users[0].task)) == "identical":
        return [(group[0], j) for group in _equal(profiles) for j in group[1:]]
    return _overlapping_pairs(profiles, min_overlap)


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
