"""The list in this folder's docstring names tests that there are, and every trap from 1 to 11."""

from __future__ import annotations

import re
from pathlib import Path

import tests.profiles

HERE = Path(__file__).parent


def test_every_test_that_the_list_names_is_there() -> None:
    named = re.findall(r"`([\w./]+\.py)::(test_\w+)`", tests.profiles.__doc__ or "")
    assert len(named) > 20
    missing = [
        name for file, name in named
        if f"\ndef {name}(" not in (HERE / file).read_text(encoding="utf-8")
    ]  # fmt: skip
    assert not missing


def test_every_trap_from_1_to_11_has_a_test_in_the_list() -> None:
    names = re.findall(r"::test_traps?_((?:\d+_)+)", tests.profiles.__doc__ or "")
    numbers = {int(number) for name in names for number in name.strip("_").split("_")}
    # "rank 8" and the like stand behind words, so only leading numbers count.
    assert numbers == set(range(1, 12))
