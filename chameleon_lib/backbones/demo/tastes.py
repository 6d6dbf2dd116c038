"""What is planted in a user of the embedded world, and what it makes of an answer.

A taste is one law per task: a favourite tag, a shift of the score, a set of writing habits. The
*personal* answer obeys it; the *generic* answer is anyone's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from chameleon_lib.backbones.demo import lexicon as lx
from chameleon_lib.backbones.demo.scenes import Scene


@dataclass(frozen=True)
class Taste:
    """What is planted in one user. Exactly the fields of the user's task are set."""

    tag: str = ""
    shift: int = 0
    opener: str = ""
    closer: str = ""
    slang: bool = False
    short: bool = False


NEUTRAL_INSIGHT: dict[str, str] = {
    "LaMP_2": "name the theme that comes first",
    "LaMP_3": "match the words of the review",
    "LaMP_7": "keep the tweet as it is",
}


def draw_taste(task: str, rng: random.Random) -> Taste:
    """A random taste for one user of ``task``."""
    if task == "LaMP_2":
        return Taste(tag=rng.choice(list(lx.CUES)))
    if task == "LaMP_3":
        return Taste(shift=rng.choice((-2, -1, 1, 2)))
    opener = rng.choice(lx.OPENERS)
    return Taste(
        opener=opener if rng.random() < 0.5 else opener.capitalize(),
        closer=rng.choice(lx.CLOSERS),
        slang=rng.random() < 0.5,
        short=rng.random() < 0.5,
    )


def insight_text(task: str, taste: Taste) -> str:
    """The personalised insight that names the taste; it completes 'The user prefers ...'."""
    if task == "LaMP_2":
        return f"the tag {taste.tag} wherever it fits"
    if task == "LaMP_3":
        points = "one point" if abs(taste.shift) == 1 else "two points"
        return f"scores {points} {'above' if taste.shift > 0 else 'below'} the words"
    words = "slang words" if taste.slang else "plain words"
    length = "short posts" if taste.short else "full posts"
    return f"opening with {taste.opener}, closing with {taste.closer}, {words}, {length}"


def style_tweet(scene: Scene, taste: Taste) -> str:
    """The tweet in the habits of ``taste``; a habit that is switched off leaves its part as is."""
    words = list(scene.words[:-1] if taste.short else scene.words)
    if taste.slang:
        words = [lx.SLANG.get(word, word) for word in words]
    if taste.opener:
        words[0] = words[0][0].lower() + words[0][1:]
        words.insert(0, taste.opener)
    if taste.closer:
        words.append(taste.closer)
    return " ".join(words)


def personal_answer(task: str, scene: Scene, taste: Taste) -> str:
    """What the user would answer, were taste the only law."""
    if task == "LaMP_2":
        return taste.tag if taste.tag in scene.tags else scene.tags[0]
    if task == "LaMP_3":
        return str(min(5, max(1, scene.level + taste.shift)))
    return style_tweet(scene, taste)


def generic_answer(task: str, scene: Scene) -> str:
    """What anyone would answer who does not know the user."""
    if task == "LaMP_2":
        return scene.tags[0]
    return str(scene.level) if task == "LaMP_3" else scene.text


def habits_followed(answer: str, taste: Taste) -> float:
    """Share of the four writing habits (opener with its case, closer, slang, length) in a tweet."""
    words = answer.split()
    slang = any(word in lx.SLANG.values() for word in words)
    times = {*lx.TWEET_TIMES, *(lx.SLANG[time] for time in lx.TWEET_TIMES)}
    if not words:
        return 0.0
    ends = (words[0] == taste.opener) + (words[-1] == taste.closer)
    return (ends + (slang == taste.slang) + ((not times & set(words)) == taste.short)) / 4
