"""The embedded world: users with planted tastes, in official LaMP format.

A synthetic LaMP-2, -3 and -7 in which the truth is known. A user of LaMP-2 has a favourite tag
that breaks the tie whenever a movie fits it; a user of LaMP-3 scores a fixed number of points
above or below what the words of a review say; a user of LaMP-7 has writing habits (opener, case,
closer, slang, length). The *generic* answer ignores the user: the tag of the first cue, the score
of the words, the tweet as it stands. What is planted is kept in :class:`Truth`, beside the data
and never in a prompt.

Users of train, dev and test are disjoint, and so are the sentences they see
(:func:`sentence_split`): train, dev and test share the vocabulary but not a single sentence.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from chameleon_lib.core.task import (
    PAPER_TASKS,
    HistoryItem,
    Query,
    User,
    get_task,
    official_input,
)
from chameleon_lib.demo import lexicon as lx
from chameleon_lib.errors import UserError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class Scene:
    """One sentence with the facts that decide its answers."""

    text: str
    tags: tuple[str, ...] = ()
    level: int = 0
    words: tuple[str, ...] = ()


def sentence_split(text: str) -> Split:
    """The split that owns a sentence: 60 % train, 10 % dev, 30 % test, by CRC-32 of the text."""
    bucket = zlib.crc32(text.encode()) % 10
    return "train" if bucket < 6 else "dev" if bucket == 6 else "test"


def draw_movie(rng: random.Random, tags: tuple[str, ...]) -> Scene:
    """A movie whose cues name ``tags`` in this order (two or three tags)."""
    cues = [rng.choice(lx.CUES[tag]) for tag in tags]
    link = rng.choice(lx.MOVIE_LINKS)
    tail = f"and a {cues[2]}" if len(cues) == 3 else f"in {rng.choice(lx.PLACES)}"
    return Scene(f"A {cues[0]} {link} a {cues[1]} {tail}", tags=tags)


def draw_review(rng: random.Random, level: int) -> Scene:
    """A review whose words say ``level`` (1..5)."""
    start, product = rng.choice(lx.REVIEW_STARTS), rng.choice(lx.PRODUCTS)
    word, end = rng.choice(lx.SENTIMENT[level]), rng.choice(lx.REVIEW_ENDS)
    return Scene(f"{start} {product} was {word} {end}", level=level)


def draw_tweet(rng: random.Random) -> Scene:
    """A tweet in standard wording."""
    words = (
        rng.choice(lx.TWEET_SUBJECTS),
        rng.choice(lx.TWEET_VERBS),
        "the",
        rng.choice(lx.TWEET_ADJECTIVES),
        rng.choice(lx.TWEET_NOUNS),
        rng.choice(lx.TWEET_TIMES),
    )
    return Scene(" ".join(words), words=words)


def owned(split: Split, draw: Callable[[], Scene]) -> Scene:
    """Draw until the sentence belongs to ``split``: rejection keeps the splits disjoint."""
    while True:
        scene = draw()
        if sentence_split(scene.text) == split:
            return scene


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


@dataclass(frozen=True)
class WorldSettings:
    """Knobs of the world.

    Attributes:
        users: Number of users per split and task (train, dev, test).
        queries: Queries per user.
        history: Smallest and largest profile length (uniform).
        strength: Probability that the user's taste decides where it could decide; for writing
            habits, per habit. It governs history items and gold answers alike.
        noise: Probability that a history label is random.
        agree: Share of queries on which the user and the generic answer agree anyway.
        fit: Share of LaMP-2 history movies that fit the user's tag.
        common: Probability that a user's taste is the one common taste of the world. At 0 nothing
            about a user can be guessed from other users; above it, something can.
        seed: Seed of the world.

    Raises:
        UserError: A knob out of its range.
    """

    users: tuple[int, int, int] = (150, 60, 200)
    queries: int = 1
    history: tuple[int, int] = (12, 16)
    strength: float = 0.95
    noise: float = 0.02
    agree: float = 0.25
    fit: float = 0.6
    common: float = 0.0
    seed: int = 7

    def __post_init__(self) -> None:
        if min(*self.users, self.queries - 1) < 0 or not 1 <= self.history[0] <= self.history[1]:
            raise UserError(f"Users, queries or history lengths are out of range in {self}.")
        for name in ("strength", "noise", "agree", "fit", "common"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"The world's {name} is {getattr(self, name)}; give 0 to 1.")


@dataclass(frozen=True)
class Truth:
    """The planted truth of one user: taste, the insight naming it, and both answers per query."""

    taste: Taste
    insight: str
    personal: tuple[str, ...]
    generic: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """All users of one task by split, and the truth of each user by id."""

    task: str
    settings: WorldSettings
    users: dict[Split, list[User]]
    truth: dict[str, Truth] = field(repr=False)


def common_taste(task: str, settings: WorldSettings) -> Taste:
    """The one taste that ``settings.common`` of the users share; it depends on the seed alone."""
    return draw_taste(task, random.Random(f"{settings.seed}/{task}/common"))


def noisy_answer(
    task: str, scene: Scene, taste: Taste, settings: WorldSettings, rng: random.Random
) -> str:
    """The user's recorded answer: taste with probability ``strength`` (per writing habit)."""
    if task != "LaMP_7":
        if rng.random() < settings.strength:
            return personal_answer(task, scene, taste)
        return generic_answer(task, scene)

    def keep() -> bool:
        return rng.random() < settings.strength

    followed = Taste(
        opener=taste.opener if keep() else "",
        closer=taste.closer if keep() else "",
        slang=keep() and taste.slang,
        short=keep() and taste.short,
    )
    return style_tweet(scene, followed)


def _other_tags(taste: Taste, rng: random.Random) -> list[str]:
    """Two or three tags that are not the user's favourite."""
    others = [tag for tag in lx.CUES if tag != taste.tag]
    return rng.sample(others, 3 if rng.random() < 0.4 else 2)


def draw_history_scene(
    task: str, taste: Taste, settings: WorldSettings, rng: random.Random, split: Split
) -> Scene:
    """One history sentence of a user."""
    if task == "LaMP_2":

        def movie() -> Scene:
            tags = _other_tags(taste, rng)
            if rng.random() < settings.fit:
                tags[rng.randrange(1, len(tags))] = taste.tag
            return draw_movie(rng, tuple(tags))

        return owned(split, movie)
    if task == "LaMP_3":
        return owned(split, lambda: draw_review(rng, rng.randint(1, 5)))
    return owned(split, lambda: draw_tweet(rng))


def draw_query_scene(
    task: str, taste: Taste, settings: WorldSettings, rng: random.Random, split: Split
) -> Scene:
    """One query sentence; with probability ``agree`` user and generic answer agree on it."""
    agree = rng.random() < settings.agree
    if task == "LaMP_2":

        def movie() -> Scene:
            tags = _other_tags(taste, rng)
            if not agree:
                tags[rng.randrange(1, len(tags))] = taste.tag
            elif rng.random() < 0.5:
                tags[0] = taste.tag
            return draw_movie(rng, tuple(tags))

        return owned(split, movie)
    if task == "LaMP_3":
        same = [s for s in range(1, 6) if min(5, max(1, s + taste.shift)) == s]
        levels = same if agree else [s for s in range(1, 6) if s not in same]
        return owned(split, lambda: draw_review(rng, rng.choice(levels)))
    return owned(split, lambda: draw_tweet(rng))


def draw_items(
    task: str,
    taste: Taste,
    settings: WorldSettings,
    rng: random.Random,
    split: Split,
    n: int,
    prefix: str = "",
) -> tuple[HistoryItem, ...]:
    """``n`` history items of one user."""
    items = []
    for index in range(n):
        scene = draw_history_scene(task, taste, settings, rng, split)
        answer = noisy_answer(task, scene, taste, settings, rng)
        if task != "LaMP_7" and rng.random() < settings.noise:
            answer = rng.choice(list(lx.CUES) if task == "LaMP_2" else list("12345"))
        text, label = (answer, None) if task == "LaMP_7" else (scene.text, answer)
        items.append(HistoryItem(id=f"{prefix}{index}", text=text, label=label))
    return tuple(items)


def build_world(task: str, settings: WorldSettings | None = None) -> World:
    """All users of one task.

    Args:
        task: ``"LaMP_2"``, ``"LaMP_3"`` or ``"LaMP_7"``.
        settings: Knobs; the same settings give the same world on every machine.

    Raises:
        UserError: The world has no such task.
    """
    if task not in PAPER_TASKS:
        raise UserError(
            f"The embedded world has no task {task!r}: use one of {', '.join(PAPER_TASKS)}."
        )
    settings = settings or WorldSettings()
    users: dict[Split, list[User]] = {split: [] for split in SPLITS}
    truth: dict[str, Truth] = {}
    for split_index, split in enumerate(SPLITS):
        sample = 0
        for index in range(settings.users[split_index]):
            rng = random.Random(f"{settings.seed}/{task}/{split}/{index}")
            taste = draw_taste(task, rng)
            # A stream of its own: who keeps a taste of their own is the same user at any `common`.
            joins = random.Random(f"{settings.seed}/{task}/{split}/{index}/common")
            if joins.random() < settings.common:
                taste = common_taste(task, settings)
            # Official ids: task number - 1, split digit, running index.
            stem = f"{get_task(task).official.first_digit}{split_index}"
            user_id = f"{stem}{sample}"
            length = rng.randint(*settings.history)
            items = draw_items(task, taste, settings, rng, split, length, prefix=user_id)
            queries, personal, generic = [], [], []
            for _ in range(settings.queries):
                scene = draw_query_scene(task, taste, settings, rng, split)
                personal.append(personal_answer(task, scene, taste))
                generic.append(generic_answer(task, scene))
                queries.append(
                    Query(
                        id=f"{stem}{sample}",
                        text=scene.text,
                        input=official_input(task, scene.text),
                        gold=noisy_answer(task, scene, taste, settings, rng),
                    )
                )
                sample += 1
            users[split].append(User(user_id, task, items, tuple(queries)))
            insight = insight_text(task, taste)
            truth[user_id] = Truth(taste, insight, tuple(personal), tuple(generic))
    return World(task, settings, users, truth)
