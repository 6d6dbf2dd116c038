"""Users where no file names them: how sure rebuilt users are, and "samples as users" instead.

The user-based LaMP-2 files carry no user id. Rebuilding users from overlapping profiles is the
default; that every sample counts as a user of its own is the declared alternative. It is declared
in the data folder (``lamp_users.json``), so that every notebook over these files reads the same
users and says so, and a change makes earlier results stale like a change of the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.overlap import components, contents, overlaps
from chameleon_lib.lamp.records import User
from chameleon_lib.lamp.samples import Sample
from chameleon_lib.lamp.tasks import Task, get_task
from chameleon_lib.lamp.users import (
    MIN_OVERLAP,
    group_samples_into_users,
    sample_groups,
    split_users_by_hash,
)

DECLARATION = "lamp_users.json"
REBUILT, SAMPLES = "rebuilt", "samples"

# Where the rule is tried besides: laxer and stricter than any sensible choice.
LAX, STRICT = 0.3, 0.7
_FEW = 3  # shared items below which a link is thin


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
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); declare users in a folder of your own."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
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
    rebuilt = group_samples_into_users(samples, task, min_overlap=choice.min_overlap)
    parts = split_users_by_hash(rebuilt, fractions, salt)
    if choice.users == REBUILT:
        return parts
    groups = sample_groups(samples, task, min_overlap=choice.min_overlap)
    members = {user.id: group for user, group in zip(rebuilt, groups, strict=True)}
    singles = group_samples_into_users(samples, task, grouping="samples")
    return {
        part: [singles[index] for user in users for index in members[user.id]]
        for part, users in parts.items()
    }


@dataclass(frozen=True, slots=True)
class GroupingReport:
    """How far rebuilt users can be trusted. All counts are of samples unless said otherwise.

    Attributes:
        samples: All.
        users: Users rebuilt from them.
        alone: Samples that are the only one of their user.
        largest: Samples of the largest user.
        min_overlap: The rule.
        bands: (from, below, samples whose largest overlap with any other sample lies there);
            the last one includes its upper end.
        could_merge: Samples whose user would grow if the rule were `LAX`.
        could_split: Samples whose user would fall apart if the rule were `STRICT`.
        chained: Samples of users in which some two samples overlap less than the rule asks, and
            which only others in between connect.
        thin: Samples whose every link to their user rests on fewer than three shared items.
    """

    samples: int
    users: int
    alone: int
    largest: int
    min_overlap: float
    bands: tuple[tuple[float, float, int], ...]
    could_merge: int
    could_split: int
    chained: int
    thin: int

    def sentence(self) -> str:
        """The report in one sentence."""
        return (
            f"{self.samples} samples are {self.users} users by profiles that overlap by at least "
            f"{self.min_overlap:g} ({self.could_merge} samples would join another user at {LAX:g}, "
            f"{self.could_split} would leave theirs at {STRICT:g})"
        )


def grouping_report(samples: Iterable[Sample], min_overlap: float = MIN_OVERLAP) -> GroupingReport:
    """Measure how much the users rebuilt by the "overlap" rule depend on the rule."""
    profiles = [frozenset(contents(sample.profile)) for sample in samples]
    n = len(profiles)
    best = [0.0] * n
    support = [0] * n
    # Below LAX nearly every two film lovers are a pair: millions, and none of them is a link.
    links = list(overlaps(profiles, min(LAX, min_overlap)))
    for i, j, shared, jaccard in links:
        for k in (i, j):
            best[k] = max(best[k], jaccard)
            if jaccard >= min_overlap:
                support[k] = max(support[k], shared)

    def groups_at(level: float) -> list[list[int]]:
        return components(n, [(i, j) for i, j, _, jaccard in links if jaccard >= level])

    chosen = groups_at(min_overlap)
    home = {k: len(group) for group in chosen for k in group}
    lax = {k: len(group) for group in groups_at(min(LAX, min_overlap)) for k in group}
    strict = {k: len(group) for group in groups_at(max(STRICT, min_overlap)) for k in group}
    close = {(i, j) for i, j, _, jaccard in links if jaccard >= min_overlap}
    chained = sum(
        len(group)
        for group in chosen
        if any((i, j) not in close for at, i in enumerate(group) for j in group[at + 1 :])
    )
    edges = [0.0, *sorted({LAX, min_overlap, STRICT} - {1.0}), 1.0]
    bands = tuple(
        (low, high, sum(low <= value < high or value == high == 1 for value in best))
        for low, high in zip(edges, edges[1:], strict=False)
    )
    return GroupingReport(
        samples=n,
        users=len(chosen),
        alone=sum(size == 1 for size in home.values()),
        largest=max(home.values(), default=0),
        min_overlap=min_overlap,
        bands=bands,
        could_merge=sum(lax[k] > home[k] for k in home),
        could_split=sum(strict[k] < home[k] for k in home),
        chained=chained,
        thin=sum(home[k] > 1 and support[k] < _FEW for k in home),
    )
