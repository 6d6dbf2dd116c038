"""Texts to token rows, by the one convention that the kit generates and scores with.

The ids of a prompt and of an answer come from the backbone's codec, so a trained row is exactly
what `score` reads: no seam between prompt and answer, one BOS if the tokenizer has one, one EOS.

Dialogues mixed into ALOE's fine-tuning are a local copy of CodeActInstruct, or our stand-in: a
small set of generic multi-turn dialogues written for this kit. It keeps the code path and the
proportions alive; it does not imitate CodeAct, and rows that use it are flagged.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import answer_prompt, unseen_prompt
from chameleon_lib.errors import UserError
from chameleon_lib.rivals.settings import AloeSettings

IGNORED = -100  # label of a position that is no answer token, as in the libraries
STANDIN = Path(__file__).with_name("standin_mix.json")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation up to its last answer.

    Attributes:
        id: Its name in the file.
        turns: ``(role, text)``; the last one is the assistant's and is what gets answered.
    """

    id: str
    turns: tuple[tuple[str, str], ...]


def load_mix(settings: AloeSettings) -> list[Dialogue]:
    """All dialogues of the chosen mix; empty for ``none``.

    Raises:
        UserError: The file is missing or does not hold conversations.
    """
    if settings.mix == "none":
        return []
    path = STANDIN if settings.mix == "standin" else Path(settings.mix_path)
    found = [_dialogue(path, number, row) for number, row in enumerate(_rows(path))]
    kept = [dialogue for dialogue in found if len(dialogue.turns) > 1]
    if not kept:
        raise UserError(f"{path} holds no conversation with an answer of the assistant.")
    return kept


def choose_mix(
    dialogues: Sequence[Dialogue], settings: AloeSettings, examples: int, seed: int
) -> list[Dialogue]:
    """The dialogues of one run, drawn by the seed.

    Args:
        dialogues: All dialogues.
        settings: ``mix_ratio`` and ``share``.
        examples: Training examples they are mixed with.
        seed: Seeds the draw.

    Returns:
        ``share`` of the dialogues, or as many as there are examples (all, if there are fewer).
    """
    if not dialogues:
        return []
    wanted = examples
    if settings.mix_ratio == "fraction":
        wanted = max(1, round(settings.share * len(dialogues)))
    order = range(len(dialogues))
    chosen = random.Random(f"mix/{seed}").sample(order, min(wanted, len(dialogues)))
    return [dialogues[at] for at in sorted(chosen)]


def _rows(path: Path) -> list[Any]:
    if not path.is_file():
        raise UserError(f"There is no file {path}; give the local copy of CodeActInstruct.")
    try:
        if path.suffix == ".parquet":
            import pandas as pd

            return list(pd.read_parquet(path).to_dict("records"))
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as {path.suffix or 'JSON'}: {error}") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of conversations.")
    return rows


def _dialogue(path: Path, number: int, row: Any) -> Dialogue:
    try:
        turns = [(str(turn["role"]), str(turn["content"])) for turn in row["conversations"]]
        name = str(row["id"])
    except (TypeError, KeyError, IndexError) as error:
        raise UserError(
            f"Record {number} of {path} needs an id and conversations of role and content."
        ) from error
    for role, _ in turns:
        if role not in _ROLES:
            raise UserError(f"Record {name} of {path} has role {role!r}; use {', '.join(_ROLES)}.")
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    return Dialogue(name, tuple(turns))


_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class GoldExample:
    """One supervised example of a train user."""

    prompt: str
    answer: str
    user_id: str


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """Token ids of a prompt and of its answer, the answer with its EOS."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class PairRow:
    """Token ids of a prompt and of both answers, each with its EOS."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def gold_examples(
    users: Sequence[PreparedUser], settings: EditSettings, history: str = "a3"
) -> list[GoldExample]:
    """What ALOE trains on: the plain prompt of every query, and its gold answer.

    Args:
        users: Train users that carry gold answers.
        settings: ``prompts_baseline``, as the evaluated prompt has it.
        history: ``a3`` (selected history, no insight) or ``none`` (`unseen_prompt`).

    Raises:
        UserError: A query has no gold answer, or an unknown ``history``.
    """
    if history not in ("a3", "none"):
        raise UserError(f"history is {history!r}; choose a3 or none.")
    baseline: Any = settings.prompts_baseline
    examples = []
    for prepared in users:
        task = prepared.user.task
        for query in prepared.user.queries:
            if query.gold is None:
                raise UserError(
                    f"Query {query.id} of user {prepared.user.id} has no gold answer; ALOE needs "
                    "the gold of its train users."
                )
            prompt = unseen_prompt(task, query.text, baseline=baseline)
            if history == "a3":
                prompt = answer_prompt(
                    task, prepared.items, query.text, role="P", insight=None, baseline=baseline
                )
            examples.append(GoldExample(prompt, query.gold, prepared.user.id))
    return examples


def answer_rows(backbone: HFBackbone, examples: Sequence[GoldExample]) -> list[AnswerRow]:
    """Rows of supervised examples.

    Raises:
        UserError: One does not fit the model's context.
    """
    codec = backbone.codec
    prompts = codec.prompts([example.prompt for example in examples])
    answers = codec.answers([example.answer for example in examples])
    rows = []
    for prompt, answer, example in zip(prompts, answers, examples, strict=True):
        backbone.check_length(len(prompt), len(answer) + 1, f"A prompt of {example.user_id}")
        rows.append(AnswerRow(prompt, [*answer, codec.eos_id]))
    return rows


def pair_rows(backbone: HFBackbone, pairs: Sequence[Contrast]) -> list[PairRow]:
    """Rows of contrasts with two answers.

    Raises:
        UserError: One does not fit the model's context.
    """
    codec = backbone.codec
    prompts = codec.prompts([pair.prompt for pair in pairs])
    chosen = codec.answers([pair.chosen for pair in pairs])
    rejected = codec.answers([str(pair.rejected) for pair in pairs])
    rows = []
    for prompt, good, bad, pair in zip(prompts, chosen, rejected, pairs, strict=True):
        longest = max(len(good), len(bad)) + 1
        backbone.check_length(len(prompt), longest, f"A prompt of {pair.user_id}")
        rows.append(PairRow(prompt, [*good, codec.eos_id], [*bad, codec.eos_id]))
    return rows


def dialogue_rows(codec: TextCodec, dialogues: Sequence[Dialogue]) -> list[AnswerRow]:
    """Rows of dialogues: everything before the last answer, and that answer.

    A model with a chat template reads its own format, any other model named turns.

    Raises:
        UserError: The chat template refuses a dialogue.
    """
    contexts = [_context(codec, dialogue) for dialogue in dialogues]
    answers = codec.answers([dialogue.turns[-1][1] for dialogue in dialogues])
    return [
        AnswerRow(context, [*answer, codec.eos_id])
        for context, answer in zip(contexts, answers, strict=True)
    ]


def _context(codec: TextCodec, dialogue: Dialogue) -> list[int]:
    before = dialogue.turns[:-1]
    if not codec.chat:
        lines = [f"{_NAMES[role]}: {text}" for role, text in before]
        # The answer continues after a colon, as it does after "Your answer:".
        return codec.prompts(["\n".join([*lines, f"{_NAMES['assistant']}:"])])[0]
    try:
        return codec.dialogue(before)
    except TemplateError as error:
        raise UserError(
            f"The model's chat template refuses dialogue {dialogue.id}: {error}"
        ) from error


def answer_logp(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed log-probabilities of answers.

    Args:
        logits: ``(B, T, V)``; position t predicts ``labels[:, t]``.
        labels: ``(B, T)`` int64, ``IGNORED`` where nothing is predicted.

    Returns:
        ``(B,)`` float32, nats.
    """
    real = labels != IGNORED
    logp = logits.float().log_softmax(dim=-1)  # (B, T, V)
    picked = logp.gather(-1, labels.clamp_min(0)[..., None])[..., 0]  # (B, T)
    return (picked * real).sum(dim=1)
