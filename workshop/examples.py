"""Training examples of the embedded models: prompts of the kit with the answers they should get.

Every example is drawn from train-split sentences. A *case* is one user with a history; it yields
the two insights, a personalised, a neutral and two plain answers, each to a query of its own. The
plain prompt is answered personally with probability ``propensity`` and generically otherwise: that
leaves a trained model near indifferent there, which is the room an edit needs.

Batches align targets with the logits (position t predicts ``targets[t]``). The weight of a token is
1 in an answer, 0.5 on a history word that carries the taste, 0.05 elsewhere in a decoder's text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from chameleon_lib.core.task import (
    PAPER_TASKS,
    HistoryItem,
    Query,
    answer_prompt,
    history_block,
    insight_prompt,
    official_input,
    official_prompt,
    unseen_prompt,
)
from chameleon_lib.demo import lexicon as lx
from chameleon_lib.demo.world import (
    NEUTRAL_INSIGHT,
    Split,
    Taste,
    WorldSettings,
    draw_items,
    draw_query_scene,
    draw_taste,
    generic_answer,
    insight_text,
    personal_answer,
)
from workshop.models import SENTINELS

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
    name = task or rng.choice(list(PAPER_TASKS))
    taste = draw_taste(name, rng)
    items = draw_items(name, taste, settings, rng, split, n_items)
    return Case(name, taste, items, settings, propensity, rng, split)


LABEL_WEIGHT, TEXT_WEIGHT = 0.5, 0.05
DECODER_KINDS = ("insight_p", "insight_n", "personal", "neutral", "plain", "plain")
ENCDEC_MIX = {
    "insight_p": 0.13,
    "insight_n": 0.02,
    "personal": 0.2,
    "neutral": 0.14,
    "plain": 0.2,
    "official": 0.03,
    "unseen": 0.04,
    "infilling": 0.08,
    "steered_p": 0.08,
    "steered_n": 0.08,
}
# The encoder-decoder starts with histories of one or two items: only there does it find out cheaply
# which sentence of a prompt is the query.
ENCDEC_FIRST = {
    "unseen": 0.12,
    "neutral": 0.23,
    "personal": 0.22,
    "infilling": 0.08,
    "insight_p": 0.13,
    "plain": 0.1,
    "steered_p": 0.06,
    "steered_n": 0.06,
}
# In the lessons the model knows the prompts; what it has to learn is what the edit asks for.
ENCDEC_LESSONS = {
    "insight_p": 0.12,
    "insight_n": 0.02,
    "personal": 0.16,
    "neutral": 0.1,
    "plain": 0.16,
    "official": 0.02,
    "unseen": 0.02,
    "steered_p": 0.2,
    "steered_n": 0.2,
}
GAINS = {"steered_p": 1.0, "steered_n": -1.0}  # boost once more, or remove; others stay as they are
# Half of the lessons' users show their taste in fewer movies than the world's 60 %: counting tags
# does not find such a taste, only reading which tags a movie would have had does.
LESSON_FIT = (0.35, 0.6)


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run."""

    family: str
    seed: int = 0
    steps: int = 6000
    batch: int = 32
    lr: float = 2e-3
    propensity: float = 0.5
    warmup: int = 200
    curriculum: float = 0.15
    task_shares: dict[str, float] | None = None  # after the curriculum; None: the same for each
    lesson_steps: int = 0
    lesson_lr: float = 1e-3

    @property
    def total(self) -> int:
        """Steps of both stages."""
        return self.steps + self.lesson_steps


@dataclass(frozen=True)
class Batch:
    """Model inputs with targets (B, T), weights (B, T) and, per position, its answer's number.

    In the second stage of an encoder-decoder ``gains`` (B,) says which rows run with an edit.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    weights: Tensor
    answer_of: Tensor
    kinds: list[str]
    gains: Tensor | None = None


@cache
def _label_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Ids of the words in a history that carry a taste: tags, sentiment words, writing habits."""
    words = [*lx.CUES, *(w for level in lx.SENTIMENT.values() for w in level)]
    words += [*lx.SLANG.values(), *lx.OPENERS, *(o.capitalize() for o in lx.OPENERS), *lx.CLOSERS]
    ids: set[int] = set()
    for word in words:
        for form in (word, f" {word}"):
            pieces = tokenizer(form).input_ids
            if len(pieces) == 1:
                ids.add(pieces[0])
    return frozenset(ids)


def _pad(rows: Sequence[Sequence[float]], fill: float, length: int) -> Tensor:
    return torch.tensor([[*row, *([fill] * (length - len(row)))] for row in rows])


def _n_items(rng: random.Random, progress: float) -> int:
    """History items of a decoder batch: short histories first, up to the paper's ten."""
    return rng.randint(2, 6 if progress < 0.1 else 10)


def _n_items_encdec(rng: random.Random, progress: float) -> int:
    """The same for the encoder-decoder, which needs to grow into long histories."""
    for end, most in ((0.12, 2), (0.24, 4), (0.4, 7)):
        if progress < end:
            return rng.randint(1, most)
    return rng.randint(2, 10) if rng.random() < 0.5 else 10


def decoder_batch(
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    step: int,
    run: TrainSettings,
) -> Batch:
    """Sequences of one history followed by several prompts about it, each blind to the others."""
    world = WorldSettings()
    n_items = _n_items(rng, step / run.steps)
    only_history = step < run.curriculum * run.steps and step % 2 == 0
    loose = step % 12 == 11  # official and unseen prompts share no prefix with the others
    rows: list[tuple[list[int], list[int], list[int], list[float], list[int]]] = []
    kinds: list[str] = []
    for _ in range(run.batch * (2 if only_history else 1)):
        case = draw_case(rng, world, run.propensity, n_items)
        rows.append(_decoder_row(tokenizer, case, len(kinds), only_history, loose))
        kinds += [] if only_history else (["official", "unseen"] if loose else DECODER_KINDS)
    ids, positions, segments, weights, answer_of = zip(*rows, strict=True)
    length = (max(map(len, ids)) + 7) // 8 * 8
    seg = _pad(segments, -1, length)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = (seg[:, :, None] == seg[:, None, :]) | (seg[:, None, :] == 0)
    mask = (causal & same)[:, None]
    mask = mask | torch.eye(length, dtype=torch.bool)  # padding sees itself: no empty softmax
    return Batch(
        inputs={
            "input_ids": _pad(ids, 0, length),
            "position_ids": _pad(positions, 0, length),
            "attention_mask": mask,
            "use_cache": False,  # type: ignore[dict-item]
        },
        # The next token of the row; the last one of a segment has weight 0.
        targets=torch.cat([_pad(ids, 0, length)[:, 1:], torch.zeros(len(ids), 1).long()], dim=1),
        weights=_pad(weights, 0.0, length),
        answer_of=_pad(answer_of, -1, length),
        kinds=kinds,
    )


def _decoder_row(
    tokenizer: PreTrainedTokenizerFast,
    case: Case,
    first_answer: int,
    only_history: bool,
    loose: bool,
) -> tuple[list[int], list[int], list[int], list[float], list[int]]:
    """Ids, positions, segments, target weights and answer numbers of one sequence."""
    label_ids = _label_ids(tokenizer)
    kinds = ("official", "unseen") if loose else DECODER_KINDS
    context = "" if loose else case.context
    examples = [] if only_history else [case.example(kind) for kind in kinds]
    texts = [context] if context else []
    for example in examples:
        texts += [example.prompt[len(context) :], f" {example.answer}"]
    encoded = tokenizer(texts).input_ids
    ids: list[int] = encoded[0] if context else []
    start = len(ids)
    positions, segments, answer_of = list(range(start)), [0] * start, [-1] * start
    weights = [LABEL_WEIGHT if i in label_ids else TEXT_WEIGHT for i in ids[1:]] + [0.0] * bool(ids)
    parts = encoded[1:] if context else encoded
    for number, (prompt, answer) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        target = [*answer, tokenizer.eos_token_id]
        ids = ids + prompt + target
        length = len(prompt) + len(target)
        positions += range(start, start + length)
        segments += [number + 1] * length
        # Position t predicts t + 1: the answer's weights start at the prompt's last token.
        weights += [0.0] * (len(prompt) - 1) + [1.0] * len(target) + [0.0]
        number_of = [first_answer + number] * len(target)
        answer_of += [-1] * (len(prompt) - 1) + number_of + [-1]
    return ids, positions, segments, weights, answer_of


def _start_id(tokenizer: PreTrainedTokenizerFast, kind: str) -> int:
    """The decoder's first input: the padding token, but for the steered examples."""
    return tokenizer.get_vocab()[STEERED[kind]] if kind in STEERED else 0


def encdec_batch(
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    step: int,
    run: TrainSettings,
) -> Batch:
    """One prompt per row in the encoder, its answer in the decoder."""
    progress = step / run.steps
    early, lessons = progress < run.curriculum, step >= run.steps
    mix = ENCDEC_FIRST if early else ENCDEC_LESSONS if lessons else ENCDEC_MIX
    shares = None if early else run.task_shares
    n_items = _n_items_encdec(rng, progress)
    kinds = rng.choices(list(mix), weights=list(mix.values()), k=run.batch)
    examples: list[Example] = []
    for kind in kinds:
        task = rng.choices(list(shares), weights=list(shares.values()))[0] if shares else None
        world = WorldSettings(fit=rng.choice(LESSON_FIT)) if lessons else WorldSettings()
        case = draw_case(rng, world, run.propensity, n_items, task)
        examples.append(case.infilling() if kind == "infilling" else case.example(kind))
    prompts = tokenizer([example.prompt for example in examples]).input_ids
    answers = tokenizer([example.answer for example in examples]).input_ids
    source = (max(map(len, prompts)) + 7) // 8 * 8
    target = max(map(len, answers)) + 1
    rows = [[*answer, tokenizer.eos_token_id] for answer in answers]
    targets = _pad(rows, 0, target)
    # In the lessons an edit tells which answer is right, and no longer the first token.
    starts = torch.tensor([[0 if lessons else _start_id(tokenizer, kind)] for kind in kinds])
    shifted = torch.cat([starts, targets[:, :-1]], dim=1)
    input_ids = _pad(prompts, 0, source)
    return Batch(
        inputs={
            "input_ids": input_ids,
            "attention_mask": (input_ids != 0).long(),
            "decoder_input_ids": shifted,
        },
        targets=targets,
        weights=_pad([[1.0] * len(row) for row in rows], 0.0, target),
        answer_of=_pad([[i] * len(row) for i, row in enumerate(rows)], -1, target),
        kinds=kinds,
        gains=torch.tensor([GAINS.get(kind, 0.0) for kind in kinds]) if lessons else None,
    )
