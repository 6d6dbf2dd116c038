"""How much profiles share: the evidence from which users are rebuilt where no file names them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from chameleon_lib.lamp.records import HistoryItem

Content = tuple[str, str | None]  # text and label of an item: what can be compared across samples


def contents(items: Iterable[HistoryItem]) -> tuple[Content, ...]:
    """What the items say, without their ids, which mean nothing outside their sample."""
    return tuple((item.text, item.label) for item in items)


def overlaps(
    profiles: Sequence[frozenset[Content]], least: float = 0.0
) -> Iterator[tuple[int, int, int, float]]:
    """Yield the pairs of profiles that share an item.

    Args:
        profiles: The contents of each profile.
        least: Jaccard index below which a pair is left out.

    Yields:
        Indices i < j, the number of shared items, and the Jaccard index. One row of pairs is held
        at a time: among thousands of film lovers nearly every two share some film.
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
            yield i, int(j), int(shared[j]), float(jaccard[j])


def components(size: int, edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected components of the numbers below `size`, ordered by their first member."""
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
