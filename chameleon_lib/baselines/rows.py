"""Texts to token rows, by the one convention that the kit generates and scores with.

The ids of a prompt and of an answer come from the backbone's codec, so a trained row is exactly
what `score` reads: no seam between prompt and answer, one BOS if the tokenizer has one, one EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.baselines.mix import Dialogue
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import answer_prompt, unseen_prompt

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
