"""Who is a user: rebuild users from samples, divide them, and say how sure that is.

The files of the user-based split carry no user id. Most tasks repeat a user's profile unchanged, so
an identical profile is the same user, whatever the order of its items: LaMP's own ranking sorts
them anew for every question. LaMP-2 has several samples per user with profiles that differ
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
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lib.core.task import HistoryItem, Query, Task, User, get_task
from chameleon_lib.data.lamp import IMPORT_REPORT, Sample, find_split, load_samples
from chameleon_lib.data.metrics import without_tokens
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text

Content = tuple[str, str | None]  # text and label of an item: what can be compared across samples

DECLARATION = "lamp_users.json"
REBUILT, SAMPLES = "rebuilt", "samples"
MIN_OVERLAP = 0.5
# Where the rule is tried besides: laxer and stricter than any sensible choice.
LAX, STRICT = 0.3, 0.7
# A folder with one labelled split only (official test labels are withheld) is divided by user.
OWN_SPLIT = {"train": 0.4, "dev": 0.1, "test": 0.5}
FIT_SPLIT, SCORED_SPLIT = {"train": 0.9, "dev": 0.1}, {"test": 1.0}  # of a file each
SALT = "chameleon-kit"

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
    samples: Sequence[Sample], task: str | Task, min_overlap: float = MIN_OVERLAP
) -> dict[str, list[int]]:
    """Name of each user -> indices of its samples, in order of first appearance.

    A user is named by its user id, else after its first sample.

    Args:
        samples: Of one file: all name their users or none does.
        task: Task or its name, whose rule counts where the samples name nobody.
        min_overlap: Jaccard index from which profiles are one person's, where that is the rule.
    """
    if samples and samples[0].user_id is not None:
        groups = _equal(sample.user_id for sample in samples)
    elif get_task(task).users_by == "overlap":
        profiles = [frozenset(contents(sample.profile)) for sample in samples]
        edges = ((i, j) for i, j, _ in overlaps(profiles, min_overlap))
        groups = components(len(samples), edges)
    else:
        groups = _equal(frozenset(contents(sample.profile)) for sample in samples)
    firsts = [samples[group[0]] for group in groups]
    return {one.user_id or one.query.id: group for one, group in zip(firsts, groups, strict=True)}


def _same(profile: Sequence[HistoryItem], other: Sequence[HistoryItem]) -> bool:
    return frozenset(contents(profile)) == frozenset(contents(other))


def _as_user(name: str, samples: Sequence[Sample], task: Task) -> User:
    """Make a user of samples that belong together.

    Equal profiles are kept as they are, in the order of the first. Others are united in order of
    first appearance, without items that are a query of this user (one sample's query may sit in
    another's profile, label included), and with ids "sample:item", because item ids are unique
    inside a sample only.

    Where every item of the history is asked by some sample, the last questions are given up until
    an item is left: a history without any item has no meaning, one with golds in it is worse.
    """
    kept, first = list(samples), samples[0].profile
    while any(not _same(sample.profile, first) for sample in kept):
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
    users: Sequence[User], min_overlap: float = MIN_OVERLAP
) -> Iterable[tuple[int, int]]:
    """Return positions i < j of users whose histories are one person's by the rule of the task.

    Args:
        users: Users of one task; of equal histories the first one is i.
        min_overlap: See `sample_groups`.
    """
    profiles = [frozenset(contents(user.history)) for user in users]
    if users and get_task(users[0].task).users_by == "identical":
        return [(group[0], j) for group in _equal(profiles) for j in group[1:]]
    return ((i, j) for i, j, _ in overlaps(profiles, min_overlap))


def check_disjoint(
    group: Sequence[User], evaluation: Sequence[User], min_overlap: float = MIN_OVERLAP
) -> None:
    """Assert that no user is in both sets, by the history content that makes a user.

    Content is compared because ids say nothing about users across files.

    Args:
        group: Users whose data fit the directions.
        evaluation: Users whose queries are scored.
        min_overlap: Of the rule that the users were built with.

    Raises:
        UserError: The sets share a user; the sentence names the first pair.
    """
    if not group or not evaluation:
        return
    n = len(group)
    pairs = [
        (i, j) for i, j in matching_histories([*group, *evaluation], min_overlap) if i < n <= j
    ]
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
    for name, group in sample_groups(samples, chosen, choice.min_overlap).items():
        own, part = [samples[index] for index in group], part_of(name, chosen, fractions, salt)
        alone = [(one.query.id, [one]) for one in own]
        people = [(name, own)] if choice.users == REBUILT else alone
        parts[part] += [_as_user(user, its_samples, chosen) for user, its_samples in people]
    return parts


def load_users(
    questions: Path, outputs: Path | None, task: str | Task, choice: Choice | None = None
) -> list[User]:
    """Load the users of one split, in order of first appearance, named as `sample_groups` has it.

    Args:
        questions: The ``*_questions.json`` file.
        outputs: The ``*_outputs.json`` file; None leaves every gold None.
        task: Task or its name.
        choice: What counts as a user.

    Raises:
        UserError: A broken file or record, or golds that do not fit the questions.
    """
    samples = load_samples(questions, outputs, task)
    return users_by_part(samples, task, {"all": 1.0}, SALT, choice or Choice())["all"]


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


def slimmer(
    task: Task, limits: Mapping[str, int], divisions: Sequence[Mapping[str, float]]
) -> Callable[[Sample], Sample]:
    """Keep of a large file what a run needs: whole samples of its few users, labels of the others.

    A LaMP-3 file has hundreds of megabytes of text. A run fits and scores the first users of each
    part, which shows when a user first appears in the stream; of the rest it counts labels, and
    texts leave a mark, equal where they are (within this process), by which users are told apart.
    Samples stay whole where every text counts: where users are rebuilt from overlaps, and where
    floors repeat texts.

    Args:
        task: The task of the file.
        limits: Part name -> most users that are wanted whole.
        divisions: Ways to divide the users, part name -> expected share each; a user is kept whole
            if any of them wants it.

    Returns:
        What to call on the samples of one file in order.
    """
    whole: dict[str | int, bool] = {}
    taken: Counter[tuple[int, str]] = Counter()

    def mark(text: str) -> str:
        return str(hash(text.strip()))

    def slim(sample: Sample) -> Sample:
        if not task.labels or task.users_by != "identical":
            return sample
        key = sample.user_id or hash(frozenset(contents(sample.profile)))
        if key not in whole:
            name = sample.user_id or sample.query.id
            places = [(n, part_of(name, task, way, SALT)) for n, way in enumerate(divisions)]
            whole[key] = any(taken[place] < limits[place[1]] for place in places)
            taken.update(places)
        if whole[key]:
            return sample
        if sample.user_id is not None:  # samples of a named user are united item by item
            items = [HistoryItem("", mark(item.text), item.label) for item in sample.profile]
        else:  # nameless users are told apart by their whole history: one mark says it
            bare = {item.label: HistoryItem("", str(key), item.label) for item in sample.profile}
            items = [bare[item.label] for item in sample.profile]
        query = Query(sample.query.id, mark(sample.query.text), "", None)
        return replace(sample, query=query, profile=tuple(items))

    return slim


@dataclass(frozen=True)
class Parts:
    """The users of a folder.

    Attributes:
        users: Users of "train", "dev" and "test", which share nobody; beyond the limits that were
            asked for, users of large files have labels but no texts.
        source: What they are and how they were divided, one sentence.
        imported: Whether a table of one's own gave them.
        min_overlap: Overlap of profiles from which they count as one person's.
    """

    users: dict[str, list[User]]
    source: str
    imported: bool
    min_overlap: float


def load_parts(
    folder: Path, task: str | Task, limits: Mapping[str, int], *, scored: str = "dev",
    use_train: bool = True,
) -> Parts:  # fmt: skip
    """Load the users of a folder, divided into those who fit and those who are scored.

    Official files are a train file and the scored one; one file alone is divided by hash.

    Args:
        folder: Holds ``LaMP_N``.
        task: Task or its name.
        limits: Part -> most users that are wanted with their texts.
        scored: Split whose users are scored.
        use_train: Whether a train file is used where there is one.

    Raises:
        UserError: A file is missing or not valid.
    """
    chosen = get_task(task)
    questions, outputs = find_split(folder, chosen, scored)
    choice = read_choice(folder, chosen)
    train_files = _train_files(folder, chosen) if use_train else None
    # Which division it is shows when both files are read; till then the users of either are kept.
    slim = slimmer(chosen, limits, [OWN_SPLIT, *([SCORED_SPLIT] if train_files else [])])
    samples, fitting = load_samples(questions, outputs, chosen, slim=slim), []
    if samples[0].query.gold is None:
        raise UserError(f"{questions} has no outputs file beside it, so nothing can be scored.")
    if train_files:
        slim = slimmer(chosen, limits, [FIT_SPLIT])
        fitting = load_samples(*train_files, chosen, slim=slim)
        if fitting[0].query.gold is None:
            raise UserError(
                f"{train_files[0]} has no outputs file beside it, so its users cannot feed the "
                "positive control; add it, or set eval_split to 'custom' to use no train file."
            )
    names, fit_names = ({one.user_id for one in of} - {None} for of in (samples, fitting))
    shared = names & fit_names
    imported = (questions.parent / IMPORT_REPORT).is_file()

    def parts(of: Sequence[Sample], shares: Mapping[str, float]) -> dict[str, list[User]]:
        return users_by_part(of, chosen, shares, SALT, choice)

    if train_files is None or shared:
        users = parts(samples, OWN_SPLIT)
        source = "users of an imported table" if imported else f"official LaMP {scored} users"
        source += ", divided 40/10/50 by a hash of the user"
        if not imported:
            why = "no train file is used"
            if shared:
                why = f"the train file has {len(shared)} of the same users: a time-based split"
            source += f" (own split: {why}, and official test labels are withheld)"
        source += _unit(samples, chosen, choice, users)
    else:
        users = parts(samples, SCORED_SPLIT)
        source = (
            f"official LaMP: train users fit, {scored} users are scored (official test labels are "
            f"withheld){_unit(samples, chosen, choice, users)}"
        )
        users |= parts(fitting, FIT_SPLIT)
    if mute := without_tokens(chosen, [str(sample.query.gold) for sample in samples]):
        source += f"; {mute.rstrip('.')}"
    return Parts(users, source, imported, choice.min_overlap)


def _unit(
    samples: Sequence[Sample], task: Task, choice: Choice, parts: Mapping[str, Sequence[User]]
) -> str:
    """What counts as a user, where the files do not say it: the end of a sentence."""
    if choice.users == SAMPLES:
        return (
            f"; each of the {len(samples)} samples counts as a user, as {DECLARATION} declares, "
            "so intervals are too narrow where one person has several"
        )
    if samples[0].user_id is not None:
        return ""
    if task.users_by != "overlap":
        return _ranked(samples, task, sum(map(len, parts.values())))
    lost = len(samples) - sum(len(user.queries) for users in parts.values() for user in users)
    sure = f"; {grouping_report(samples, choice.min_overlap).sentence()}"
    if not lost:
        return sure
    return f"{sure}; {lost} questions are left out, or no history of their user would be left"


def _ranked(samples: Sequence[Sample], task: Task, users: int) -> str:
    """How many users have one history in several orders, where any has: the end of a sentence."""
    if users == len(samples):
        return ""
    groups = sample_groups(samples, task).values()
    orders = [len({contents(samples[i].profile) for i in group}) for group in groups]
    several = sum(count > 1 for count in orders)
    what = "; the samples of {} users list one history in several orders, of which the first counts"
    return what.format(several) if several else ""


def _train_files(folder: Path, task: Task) -> tuple[Path, Path | None] | None:
    """Questions and outputs of the train users; None where the folder holds no train file at all.

    Raises:
        UserError: Several train files, or one in a place of its own.
    """
    try:
        return find_split(folder, task, "train")
    except UserError:
        anywhere = f"{task.name.replace('_', '[_-]')}*/**/train_questions.json"
        if any(folder.glob(anywhere)):
            raise
        return None
