from __future__ import annotations

import random

import pytest

from chameleon_lib.lamp.overlap import components, contents, overlaps
from tests.lamp.helpers import sample


def test_overlaps_are_those_of_the_definition() -> None:
    rng = random.Random(0)
    universe = [(f"film {i}", "comedy") for i in range(30)]
    profiles = [frozenset(rng.sample(universe, rng.randint(0, 12))) for _ in range(40)]
    for least in (0.0, 0.3):
        expected = [
            (i, j, len(a & b), len(a & b) / len(a | b))
            for i, a in enumerate(profiles)
            for j, b in enumerate(profiles)
            if i < j and a & b and len(a & b) / len(a | b) >= least
        ]
        found = list(overlaps(profiles, least))
        assert [(i, j, n) for i, j, n, _ in found] == [(i, j, n) for i, j, n, _ in expected]
        assert [x for *_, x in found] == pytest.approx([x for *_, x in expected])


def test_no_profiles_and_empty_profiles_overlap_with_nothing() -> None:
    assert list(overlaps([])) == [] and list(overlaps([frozenset(), frozenset()])) == []


def test_contents_leave_ids_out_and_components_are_ordered_by_first_member() -> None:
    first, second = (
        sample("LaMP_2", "1", [("a", "comedy")]),
        sample("LaMP_2", "2", [("a", "comedy")]),
    )
    assert contents(first.profile) == contents(second.profile) == (("a", "comedy"),)
    assert components(6, [(4, 1), (5, 3), (1, 5)]) == [[0], [1, 3, 4, 5], [2]]
