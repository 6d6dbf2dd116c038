"""Film lovers with known names, shaped like LaMP-2: popular films, skewed profiles, no user id."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations

from chameleon_lib.data.lamp import Sample
from chameleon_lib.data.tasks.lamp_2 import TAGS
from tests.data.helpers import sample

Film = tuple[str, str]


def viewers(count: int, seed: int, films: int = 3000) -> list[list[Film]]:
    """Tagged films per person: popularity falls as 1/rank, seven in ten take a film's usual tag."""
    rng = random.Random(seed)
    usual = [rng.choice(TAGS) for _ in range(films)]
    popularity = list(accumulate(1 / (rank + 10) for rank in range(films)))
    people = []
    for _ in range(count):
        size = min(150, max(4, int(rng.lognormvariate(3.2, 0.9))))
        seen: dict[int, str] = {}
        while len(seen) < size:
            film = rng.choices(range(films), cum_weights=popularity)[0]
            seen.setdefault(film, usual[film] if rng.random() < 0.7 else rng.choice(TAGS))
        people.append([(f"film {film}", tag) for film, tag in seen.items()])
    return people


def samples_of(people: Sequence[list[Film]], seed: int, keep: float = 1.0) -> list[Sample]:
    """Some films of each person asked, the profile being a share of all the others.

    The sample id is "person/number", for the truth alone.
    """
    rng = random.Random(seed)
    found = []
    for person, films in enumerate(people):
        asked = rng.sample(films, 1 + min(len(films) // 4, int(rng.expovariate(1 / 1.6))))
        for number, film in enumerate(asked):
            rest = [other for other in films if other != film]
            rest = rng.sample(rest, max(min(3, len(rest)), round(keep * len(rest))))
            found.append(sample("LaMP_2", f"{person}/{number}", rest, film[0]))
    rng.shuffle(found)
    return found


def agreement(
    samples: Sequence[Sample], groups: Mapping[str, Sequence[int]]
) -> tuple[float, float]:
    """Precision and recall of the pairs of samples that are put together."""
    truth: dict[str, list[int]] = {}
    for index, one in enumerate(samples):
        truth.setdefault(one.query.id.partition("/")[0], []).append(index)
    together = {pair for group in truth.values() for pair in combinations(sorted(group), 2)}
    found = {pair for group in groups.values() for pair in combinations(sorted(group), 2)}
    right = len(together & found)
    return right / max(1, len(found)), right / max(1, len(together))
