"""Keep of a large file what a run needs: whole samples of its few users, labels of all the others.

A LaMP-3 file has a profile of about 190 reviews per sample, hundreds of megabytes of text. A run
fits and scores its first users of each part; of the rest it counts labels alone. Who belongs to
which part depends on a user's name, so it is known when the user first appears in the stream.

A file of 401 MB is read so in about three seconds, within 120 MB of memory. A converted copy in the
cache would save most of that, and be a second place of people's texts to keep fresh and to forget.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from chameleon_lib.core.task import HistoryItem, Query, Task
from chameleon_lib.data.samples import Sample
from chameleon_lib.data.users import contents, part_of


class Slimmer:
    """Looks at the samples of one file in order, and makes those slim that are not wanted whole.

    Every slim or whole sample comes back with the name of its user, as `group_samples_into_users`
    would give it, so that users can be built from what is left. Samples stay as they are where
    every text counts: where users are rebuilt from overlapping profiles, and where floors repeat
    texts. Those files are small.

    Args:
        task: The task of the file.
        salt: Of the draw.
        limits: Part name -> most users that are wanted whole.
        divisions: Ways to divide the users, part name -> expected share each; a user is kept whole
            if any of them wants it.

    Attributes:
        named: User ids that the file itself gives.
    """

    def __init__(
        self, task: Task, salt: str, limits: Mapping[str, int],
        divisions: Sequence[Mapping[str, float]],
    ) -> None:  # fmt: skip
        self.task, self.salt, self.limits, self.divisions = task, salt, limits, divisions
        self.named: set[str] = set()
        self.keeps_all = not task.labels or task.users_by != "identical"
        self._names: dict[bytes, str] = {}
        self._whole: set[str] = set()
        self._taken: Counter[tuple[int, str]] = Counter()
        self._items: dict[str | None, HistoryItem] = {}

    def __call__(self, sample: Sample) -> Sample:
        """The sample, whole or slim, under the name of its user."""
        known = sample.user_id is not None
        if self.keeps_all:
            self.named |= {sample.user_id} if sample.user_id is not None else set()
            return sample
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
        # Named profiles are united item by item, so their texts leave a mark; nameless ones of a
        # user are all the same, and labels alone are enough.
        profile = tuple(
            HistoryItem(i.id, _mark(i.text), i.label) if known else self._item(i.label)
            for i in sample.profile
        )
        query = Query(sample.query.id, _mark(sample.query.text) if known else "", "", None)
        return Sample(query, profile, sample.repaired, name)

    def _wanted(self, name: str) -> bool:
        """Whether a new user is among the first of its part, in any of the divisions."""
        wanted = False
        for number, shares in enumerate(self.divisions):
            part = part_of(name, self.task, shares, self.salt)
            wanted = wanted or self._taken[number, part] < self.limits[part]
            self._taken[number, part] += 1
        return wanted

    def _item(self, label: str | None) -> HistoryItem:
        return self._items.setdefault(label, HistoryItem("", "", label))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _mark(text: str) -> str:
    """Equal where two texts are, apart from blanks around them."""
    return _digest(text.strip()).hex()
