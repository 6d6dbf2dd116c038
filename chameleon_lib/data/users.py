"""Who is a user: rebuild users from samples, divide them, and say how sure that is.

The files of the user-based split carry no user id. Most tasks repeat a user's profile unchanged, so
an identical profile is the same user. LaMP-2 has several samples per user with profiles that differ
a little, so there two samples are connected when their profiles overlap in exact (text, label)
pairs, and connected components are users. Files of the time-based split and imported tables name
their users, and then the name counts.

How much overlap is a choice. One shared pair is not enough: popular films get the same tag from
many people, and on MovieLens users known to be distinct that rule merges 101 of 102 into one. At a
Jaccard index of at least 0.5 none of them merge, while two profiles of one user that each leave
out one item (3 items or more) still connect.

That every sample counts as a user of its own is the declared alternative. It is declared in the
data folder (``lamp_users.json``), so that every notebook over these files reads the same users and
says so, and a change makes earlier results stale like a change of the data.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from chameleon_lib.core.task import HistoryItem, Task, User, get_task
from chameleon_lib.data.samples import Sample
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text

Grouping = Literal["identical", "overlap", "known", "samples"]
Content = tuple[str, str | None]  # text and label of an item: what can be compared across samples

DECLARATION = "lamp_users.json"
REBUILT, SAMPLES = "rebuilt", "samples"
MIN_OVERLAP = 0.5
# Where the rule is tried besides: laxer and stricter than any sensible choice.
LAX, STRICT = 0.3, 0.7

_log = logging.getLogger(__name__)


def contents(items: Iterable[HistoryItem]) -> tuple[Content, ...]:
    """What the items say, without their ids, which mean nothing outside their sample."""
    return tuple((item.text, item.label) for item in items)


def overlaps(
    profiles: Sequence[frozenset[Content]], least: float = 0.0
) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs of profiles that share an item.

    Args:
        profiles: The contents of each profile.
        least: Jaccard index below which a pair is left out.

    Yields:
        Indices i < j and the Jaccard index. One row of pairs is held at a time: among thousands of
        film lovers nearly every two share some film.
    """
    holders: dict[Content, list[int]] = defaultdict(list)
    for index, profile in enumerate(profiles):
        for content in profile:
            holders[content].append(index)
    owners = {content: np.array(indices) for content, indices in holders.items()}
    sizes = np.array([len(profile) for profile in profiles])
    for i, profile in enumerate(profiles):
        if not profile:
            continue
        held = np.concatenate([owners[content] for content in profile])
        shared = np.bincount(held, minlength=len(profiles))
        jaccard = shared / (sizes[i] + sizes - shared)
        later = np.arange(len(profiles)) > i
        for j in np.flatnonzero(later & (shared > 0) & (jaccard >= least)):
            yield i, int(j), float(jaccard[j])


def _equal(keys: Iterable[Hashable]) -> list[list[int]]:
    """Positions of equal keys together, ordered by their first member."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    return list(members.values())


def components(size: int, edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected components of the numbers below `size`, ordered by their first member."""
    # Imported on first use: only rebuilt users need it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(list(edges), dtype=np.int64).reshape(-1, 2).T  # (2, edges)
    graph = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(size, size))
    return _equal(connected_components(graph, directed=False)[1].tolist())


def sample_groups(
    samples: Sequence[Sample],
    task: str | Task,
    *,
    grouping: Grouping | None = None,
    min_overlap: float = MIN_OVERLAP,
) -> dict[str, list[int]]:
    """Name of each user -> indices of its samples; arguments as `group_samples_into_users`."""
    chosen = get_task(task)
    if not 0 < min_overlap <= 1:
        raise UserError(f"min_overlap is {min_overlap}; it must lie in (0, 1].")
    names = [sample.user_id for sample in samples]
    rule = grouping or ("known" if any(names) else chosen.users_by)
    if rule == "known":
        if None in names:
            raise UserError(
                f"The {chosen.name} records do not name their users; use another grouping."
            )
        return {str(names[group[0]]): group for group in _equal(names)}
    if rule == "overlap":
        profiles = [frozenset(contents(sample.profile)) for sample in samples]
        edges = ((i, j) for i, j, _ in overlaps(profiles, min_overlap))
        groups = components(len(samples), edges)
    elif rule == "identical":
        groups = _equal([contents(sample.profile) for sample in samples])
    else:
        groups = [[index] for index in range(len(samples))]
    return {samples[group[0]].query.id: group for group in groups}


def _as_user(name: str, samples: Sequence[Sample], task: Task) -> User:
    """Make a user of samples that belong together.

    Equal profiles are kept as they are. Others are united in order of first appearance, without
    items that are a query of this user (one sample's query may sit in another's profile, label
    included), and with ids "sample:item", because item ids are unique inside a sample only.

    Where every item of the history is asked by some sample, the last questions are given up until
    an item is left: a history without any item has no meaning, one with golds in it is worse.
    """
    kept, first = list(samples), samples[0].profile
    while any(contents(sample.profile) != contents(first) for sample in kept):
        asked = {sample.query.text for sample in kept}
        united: dict[Content, HistoryItem] = {}
        for sample in kept:
            for item in sample.profile:
                if item.text.strip() not in asked:
                    named = HistoryItem(f"{sample.query.id}:{item.id}", item.text, item.label)
                    united.setdefault((item.text, item.label), named)
        if united:
            first = tuple(united.values())
            break
        kept.pop()
    if len(kept) < len(samples):
        _log.warning(
            "User %r: questions %s are not asked, or no history would be left.",
            name,
            [sample.query.id for sample in samples[len(kept) :]],
        )
    return User(name, task.name, first, tuple(sample.query for sample in kept))


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
            name their users, else the rule of the task.
        min_overlap: Jaccard index in (0, 1] from which "overlap" connects two samples.

    Returns:
        Users named by their user id, else after their first sample. Where a merged history would
        be empty, the user's last questions are given up, with a warning.

    Raises:
        UserError: `min_overlap` is out of range, or a record lacks the name that others have.
    """
    chosen, listed = get_task(task), list(samples)
    groups = sample_groups(listed, chosen, grouping=grouping, min_overlap=min_overlap)
    return [_as_user(name, [listed[i] for i in own], chosen) for name, own in groups.items()]


def part_of(name: str, task: str | Task, fractions: Mapping[str, float], salt: str) -> str:
    """The part of a user, by shares that sum to 1; arguments as `split_users_by_hash`."""
    digest = hashlib.sha256(f"{salt}|{get_task(task).name}|{name}".encode()).digest()
    position, upper = int.from_bytes(digest[:8], "big") / 2**64, 0.0
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
    if users and (grouping or get_task(users[0].task).users_by) == "identical":
        return [(group[0], j) for group in _equal(profiles) for j in group[1:]]
    return ((i, j) for i, j, _ in overlaps(profiles, min_overlap))


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


@dataclass(frozen=True, slots=True)
class Choice:
    """What counts as a user.

    Attributes:
        users: "rebuilt" or "samples".
        min_overlap: Jaccard index from which LaMP-2 profiles belong to one user.

    Raises:
        UserError: Another word, or an overlap outside (0, 1].
    """

    users: str = REBUILT
    min_overlap: float = MIN_OVERLAP

    def __post_init__(self) -> None:
        number = isinstance(self.min_overlap, int | float)
        if self.users not in (REBUILT, SAMPLES) or not number or not 0 < self.min_overlap <= 1:
            raise UserError(
                f"Users are '{REBUILT}' or '{SAMPLES}' with an overlap in (0, 1], not "
                f"'{self.users}' with {self.min_overlap}."
            )


def read_choice(folder: Path, task: str | Task) -> Choice:
    """What the data folder declares for a task; rebuilt users where it declares nothing.

    Raises:
        UserError: The declaration cannot be understood.
    """
    path = folder / DECLARATION
    if not path.exists():
        return Choice()
    try:
        return Choice(**_read(path).get(get_task(task).name, {}))
    except (TypeError, AttributeError, UserError) as error:
        raise UserError(
            f"{path} cannot be understood ({error}); delete it, or write it again with "
            "python -m chameleon_lib data users."
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object")
    return content


def declare(folder: Path, task: str | Task, choice: Choice) -> Path:
    """Write what counts as a user of a task into the data folder; other tasks stay.

    Raises:
        UserError: The folder cannot be written, or an older declaration cannot be read.
    """
    path = folder / DECLARATION
    old = _read(path) if path.exists() else {}
    content = {**old, get_task(task).name: asdict(choice)}
    try:
        replace_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); declare users in a folder of your own."
        ) from error
    return path


def users_by_part(
    samples: Sequence[Sample],
    task: str | Task,
    fractions: Mapping[str, float],
    salt: str,
    choice: Choice,
) -> dict[str, list[User]]:
    """Divide samples into parts that share no rebuilt user, and return their users.

    Samples that count as users stay with their rebuilt user all the same: else one person's films
    would feed a fit and score it.
    """
    chosen = get_task(task)
    parts: dict[str, list[User]] = {part: [] for part in fractions}
    for name, group in sample_groups(samples, chosen, min_overlap=choice.min_overlap).items():
        own, part = [samples[index] for index in group], part_of(name, chosen, fractions, salt)
        alone = [(one.query.id, [one]) for one in own]
        people = [(name, own)] if choice.users == REBUILT else alone
        parts[part] += [_as_user(user, its_samples, chosen) for user, its_samples in people]
    return parts


@dataclass(frozen=True, slots=True)
class GroupingReport:
    """How far rebuilt users can be trusted. All counts are of samples unless said otherwise.

    Attributes:
        samples: All.
        users: Users rebuilt from them.
        alone: Samples that are the only one of their user.
        largest: Samples of the largest user.
        min_overlap: The rule.
        could_merge: Samples whose user would grow if the rule were `LAX`.
        could_split: Samples whose user would fall apart if the rule were `STRICT`.
    """

    samples: int
    users: int
    alone: int
    largest: int
    min_overlap: float
    could_merge: int
    could_split: int

    def sentence(self) -> str:
        """The report in one sentence."""
        return (
            f"{self.samples} samples are {self.users} users by profiles that overlap by at least "
            f"{self.min_overlap:g} ({self.could_merge} samples would join another user at {LAX:g}, "
            f"{self.could_split} would leave theirs at {STRICT:g})"
        )

    def lines(self) -> list[str]:
        """The report as lines of a name, a number and its share of the samples."""
        counts = {
            "samples": self.samples,
            f"users, profiles overlapping by {self.min_overlap:g} or more": self.users,
            "samples of the largest user": self.largest,
            "samples alone with their user": self.alone,
            f"ambiguous: would join another user at {LAX:g}": self.could_merge,
            f"ambiguous: would leave their user at {STRICT:g}": self.could_split,
        }
        whole = max(1, self.samples)
        return [f"{name:<52}{n:>7}{n / whole:>9.1%}" for name, n in counts.items()]


def grouping_report(samples: Iterable[Sample], min_overlap: float = MIN_OVERLAP) -> GroupingReport:
    """Measure how much the users rebuilt by the "overlap" rule depend on the rule."""
    profiles = [frozenset(contents(sample.profile)) for sample in samples]
    # Below LAX nearly every two film lovers are a pair: millions, and none of them is a link.
    links = list(overlaps(profiles, min(LAX, min_overlap)))

    def home_sizes(level: float) -> dict[int, int]:
        edges = [(i, j) for i, j, jaccard in links if jaccard >= level]
        return {k: len(group) for group in components(len(profiles), edges) for k in group}

    home = home_sizes(min_overlap)
    lax, strict = home_sizes(min(LAX, min_overlap)), home_sizes(max(STRICT, min_overlap))
    return GroupingReport(
        samples=len(profiles),
        users=round(sum(1 / size for size in home.values())),
        alone=sum(size == 1 for size in home.values()),
        largest=max(home.values(), default=0),
        min_overlap=min_overlap,
        could_merge=sum(lax[k] > home[k] for k in home),
        could_split=sum(strict[k] < home[k] for k in home),
    )
