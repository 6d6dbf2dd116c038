"""Small views on the embedded world that several tests need."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

from chameleon_lib.core.task import User
from chameleon_lib.demo import lexicon as lx
from chameleon_lib.demo.world import Taste


def random_of(name: str) -> random.Random:
    return random.Random(f"tests/{name}")


def all_tastes(task: str) -> list[Taste]:
    """Every taste a user of the task can have."""
    if task == "LaMP_2":
        return [Taste(tag=tag) for tag in lx.CUES]
    if task == "LaMP_3":
        return [Taste(shift=shift) for shift in (-2, -1, 1, 2)]
    openers = [*lx.OPENERS, *(opener.capitalize() for opener in lx.OPENERS)]
    flags = (False, True)
    return [
        Taste(opener=opener, closer=closer, slang=slang, short=short)
        for opener, closer, slang, short in itertools.product(openers, lx.CLOSERS, flags, flags)
    ]


def whole_sentences(task: str, users: Iterable[User]) -> set[str]:
    """History and query texts of some users; of tweets those that kept their last word."""
    texts = {
        text
        for user in users
        for text in (*(item.text for item in user.history), *(q.text for q in user.queries))
    }
    if task != "LaMP_7":
        return texts
    times = {*lx.TWEET_TIMES, *(lx.SLANG[time] for time in lx.TWEET_TIMES)}
    return {text for text in texts if times & set(text.split())}
