"""Dialogues mixed into ALOE's fine-tuning: a local copy of CodeActInstruct, or our stand-in.

The stand-in is a small set of generic multi-turn dialogues written for this kit. It keeps the code
path and the proportions alive; it does not imitate CodeAct, and rows that use it are flagged.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.baselines.settings import AloeSettings
from chameleon_lib.errors import UserError

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
