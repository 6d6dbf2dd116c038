"""Keep of a large file what a run needs: whole samples of its few users, labels of all the others.

A LaMP-3 file has a profile of about 190 reviews per sample, hundreds of megabytes of text. A run
fits and scores its first users of each part; of the rest it counts labels alone. Who belongs to
which part depends on a user's name, so it is known when the user first appears in the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from chameleon_lib.lamp.overlap import contents
from chameleon_lib.lamp.records import HistoryItem, Query
from chameleon_lib.lamp.samples import Sample
from chameleon_lib.lamp.tasks import Task, get_task
from chameleon_lib.lamp.users import check_names, default_grouping, part_of


@dataclass(frozen=True)
class Division:
    """How the users of a file may be divided, and how many of each part are wanted.

    Attributes:
        fractions: Part name -> expected share.
        salt: Of the draw.
        limits: Part name -> most users that are wanted whole.
    """

    fractions: Mapping[str, float]
    salt: str
    limits: Mapping[str, int]


def slimmer(
    task: str, salt: str, limits: Mapping[str, int], *fractions: Mapping[str, float]
) -> Slimmer | None:
    """Keeps whole who may be among the first ``limits`` users of a part, divided in any way.

    None where every text counts: LaMP-2 rebuilds users from overlapping profiles, and the baselines
    of LaMP-7 repeat texts. Files of both are small.
    """
    chosen = get_task(task)
    if not chosen.labels or default_grouping(chosen) != "identical":
        return None
    return Slimmer(chosen, [Division(shares, salt, limits) for shares in fractions])


@dataclass
class Slimmer:
    """Looks at the samples of one file in order, and makes those slim that are not wanted whole.

    Every sample comes back with the name of its user, as `group_samples_into_users` would
    give it, so that users can be built from what is left.

    Attributes:
        task: The task of the file.
        divisions: A user is kept whole if any of them wants it.
        named: User ids that the file itself gives.
    """

    task: Task
    divisions: Sequence[Division]
    named: set[str] = field(default_factory=set)
    _names: dict[bytes, str] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)
    _taken: dict[tuple[int, str], int] = field(default_factory=dict)
    _items: dict[str | None, HistoryItem] = field(default_factory=dict)
    _first: dict[bool, Sample] = field(default_factory=dict)

    def __call__(self, sample: Sample) -> Sample:
        """The sample, whole or slim, under the name of its user.

        Raises:
            UserError: Some records name their user and some do not.
        """
        known = sample.user_id is not None
        self._first.setdefault(known, sample)
        check_names(self._first.get(True), self._first.get(False), self.task)
        if sample.user_id is not None:
            name, new = sample.user_id, sample.user_id not in self.named
            self.named.add(name)
        else:
            key = _digest(repr(contents(sample.profile)))
            new = key not in self._names
            name = self._names.setdefault(key, sample.query.id)
        if new and self._wanted(name):
            self._whole.add(name)
        if name in self._whole:
            return replace(sample, user_id=name)
        return self._named_slim(sample) if known else self._slim(sample, name)

    def _wanted(self, name: str) -> bool:
        """Whether a new user is among the first of its part, in any of the divisions."""
        wanted = False
        for number, division in enumerate(self.divisions):
            part = part_of(name, self.task, division.fractions, division.salt)
            place = self._taken.get((number, part), 0)
            self._taken[number, part] = place + 1
            wanted = wanted or place < division.limits[part]
        return wanted

    def _slim(self, sample: Sample, name: str) -> Sample:
        """Labels alone: the profiles of such a user are all the same."""
        profile = tuple(self._item(item.label) for item in sample.profile)
        query = Query(sample.query.id, "", "", None)
        return Sample(query, profile, sample.repaired, name)

    def _named_slim(self, sample: Sample) -> Sample:
        """Labels, and marks of the texts: such profiles are united, item by item."""
        profile = tuple(
            HistoryItem(item.id, _mark(item.text), item.label) for item in sample.profile
        )
        query = Query(sample.query.id, _mark(sample.query.text), "", None)
        return Sample(query, profile, sample.repaired, sample.user_id)

    def _item(self, label: str | None) -> HistoryItem:
        return self._items.setdefault(label, HistoryItem("", "", label))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _mark(text: str) -> str:
    """Equal where two texts are, apart from blanks around them."""
    return _digest(text.strip()).hex()
