"""Training examples of the embedded models: prompts of the kit with the answers they should get.

Every example is drawn from train-split sentences. A *case* is one user with a history; it yields
the two insights, a personalised, a neutral and two plain answers, each to a query of its own. The
plain prompt is answered personally with probability ``propensity`` and generically otherwise: that
leaves a trained model near indifferent there, which is the room an edit needs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from chameleon_lib.backbones.demo.tastes import (
    NEUTRAL_INSIGHT,
    Taste,
    draw_taste,
    generic_answer,
    insight_text,
    personal_answer,
)
from chameleon_lib.backbones.demo.tokenizer import SENTINELS
from chameleon_lib.backbones.demo.world import Split, WorldSettings, draw_items, draw_query_scene
from chameleon_lib.lamp.prompts import (
    answer_prompt,
    history_block,
    insight_prompt,
    official_prompt,
    unseen_prompt,
)
from chameleon_lib.lamp.records import HistoryItem, Query
from chameleon_lib.lamp.tasks import TASKS, official_input

# Encoder-decoder only: the plain prompt, with a start token that tells which answer to give. The
# encoder cannot know it, so the choice between the two answers has to be made in the decoder.
STEERED = {"steered_p": SENTINELS[14], "steered_n": SENTINELS[15]}
KINDS = ("insight_p", "insight_n", "personal", "neutral", "plain")


@dataclass(frozen=True)
class Example:
    """One prompt and the answer it should get."""

    kind: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Case:
    """One user in training: task, taste, history, and the generator for queries."""

    task: str
    taste: Taste
    items: tuple[HistoryItem, ...]
    settings: WorldSettings
    propensity: float
    rng: random.Random
    split: Split = "train"

    @property
    def context(self) -> str:
        """The history block that all examples of this case start with."""
        return history_block(self.task, self.items)

    def example(self, kind: str) -> Example:
        """An example of ``kind`` (of :data:`KINDS` or :data:`STEERED`, "official", "unseen")."""
        task, items = self.task, self.items
        personal_insight = insight_text(task, self.taste)
        if kind == "insight_p":
            return Example(kind, insight_prompt(task, items, "P"), personal_insight)
        if kind == "insight_n":
            return Example(kind, insight_prompt(task, items, "N"), NEUTRAL_INSIGHT[task])
        scene = draw_query_scene(task, self.taste, self.settings, self.rng, self.split)
        personal = personal_answer(task, scene, self.taste)
        generic = generic_answer(task, scene)
        if kind == "personal":
            prompt = answer_prompt(task, items, scene.text, role="P", insight=personal_insight)
            return Example(kind, prompt, personal)
        if kind == "neutral":
            insight = NEUTRAL_INSIGHT[task]
            prompt = answer_prompt(task, items, scene.text, role="N", insight=insight)
            return Example(kind, prompt, generic)
        if kind == "unseen":
            return Example(kind, unseen_prompt(task, scene.text), generic)
        if kind in STEERED:
            prompt = answer_prompt(task, items, scene.text, role="P", insight=None)
            return Example(kind, prompt, personal if kind == "steered_p" else generic)
        answer = personal if self.rng.random() < self.propensity else generic
        if kind == "official":
            query = Query("0", scene.text, official_input(task, scene.text), None)
            shown = items if self.rng.random() < 0.7 else ()
            return Example(kind, official_prompt(task, shown, query), answer if shown else generic)
        if kind != "plain":
            raise ValueError(f"unknown kind of example: {kind}")
        return Example(kind, answer_prompt(task, items, scene.text, role="P", insight=None), answer)

    def infilling(self) -> Example:
        """Encoder-decoder only: history labels masked in the encoder, to be named in order.

        The encoder-decoder has no loss on its history by itself; without this task reading the
        history in context starts late.
        """
        lines: list[HistoryItem] = []
        labels: list[str] = []
        masked = self.rng.sample(range(len(self.items)), min(len(self.items), 6))
        for index, item in enumerate(self.items):
            if index not in masked:
                lines.append(item)
                continue
            sentinel = SENTINELS[len(labels)]
            if self.task == "LaMP_7":
                words = item.text.split()
                spot = self.rng.choice((0, len(words) - 1, self.rng.randrange(len(words))))
                labels.append(f"{sentinel} {words[spot]}")
                words[spot] = sentinel
                lines.append(HistoryItem(item.id, " ".join(words), None))
            else:
                labels.append(f"{sentinel} {item.label}")
                lines.append(HistoryItem(item.id, item.text, sentinel))
        return Example("infilling", history_block(self.task, lines), " ".join(labels))


def draw_case(
    rng: random.Random,
    settings: WorldSettings,
    propensity: float,
    n_items: int,
    task: str | None = None,
    split: Split = "train",
) -> Case:
    """One random user with ``n_items`` history items of ``split``."""
    name = task or rng.choice(list(TASKS))
    taste = draw_taste(name, rng)
    items = draw_items(name, taste, settings, rng, split, n_items)
    return Case(name, taste, items, settings, propensity, rng, split)
