"""Model cards of the embedded models, written from what stands in their folders.

A card (``card.md.j2``) holds no number that was typed: the architecture comes from ``config.json``,
the recipe from ``training.json`` and the code that trains, the skills from ``acceptance.csv``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from chameleon_lib.demo import FAMILIES
from chameleon_lib.demo.world import WorldSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import display, package_dir, replace_text
from workshop.examples import (
    DECODER_KINDS,
    ENCDEC_FIRST,
    ENCDEC_LESSONS,
    ENCDEC_MIX,
    LABEL_WEIGHT,
    LESSON_FIT,
    STEERED,
    TEXT_WEIGHT,
)

HERE = package_dir() / "demo"
COLUMNS = ["model", "task", "skill", "value", "ci_low", "ci_high", "n", "seeds", "goal", "passed"]
_KEYS = ("family", "seed", "steps", "batch", "lr", "propensity", "warmup", "curriculum")


def card_text(folder: Path, rows: Sequence[Mapping[str, str]]) -> str:
    """The model card (Markdown with a YAML header) of one embedded model.

    Args:
        folder: Checkpoint with ``config.json`` and ``training.json``; weights are not read.
        rows: The rows of ``acceptance.csv`` for this model, in table order; may be empty.

    Raises:
        UserError: A file is missing, unreadable or lacks a key.
    """
    run = _json(folder / "training.json")
    missing = sorted(set(_KEYS) - run.keys())
    if missing or run["family"] not in FAMILIES:
        what = f"lacks {', '.join(missing)}" if missing else "names no known family"
        raise UserError(f"{display(folder / 'training.json')} {what}; train the model again.")
    judged = [row for row in rows if row["passed"]]
    mixes = (ENCDEC_FIRST, ENCDEC_MIX, ENCDEC_LESSONS)
    source = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    template = jinja2.Template(source, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return template.render(
        run={"task_shares": None, "lesson_steps": 0, "note": "", **run},
        decoder=run["family"] == "decoder",
        config=_json(folder / "config.json"),
        parameters=_parameters(folder),
        world=WorldSettings(),
        prompts=len(DECODER_KINDS),
        label_weight=LABEL_WEIGHT,
        text_weight=TEXT_WEIGHT,
        lesson_fit=min(LESSON_FIT),
        infilling=[mix["infilling"] for mix in mixes[:2]],
        steered=[sum(mix[kind] for kind in STEERED) for mix in mixes],
        start_tokens=list(STEERED.values()),
        rows=rows,
        judged=len(judged),
        met=sum(row["passed"] == "True" for row in judged),
        percent=lambda share: f"{100 * share:.0f} %",
        three=lambda text: f"{float(text):.3f}".replace("-", "−"),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{display(path)} cannot be read; train the model again.") from error


def _parameters(folder: Path) -> int:
    """Number of parameters, tied ones once; built without memory for a single weight."""
    config = AutoConfig.from_pretrained(folder)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return int(auto.from_config(config).num_parameters())


def read_rows(path: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of an acceptance table by model id, such as ``decoder:0``.

    Raises:
        UserError: The table is missing or lacks a column.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise UserError(
            f"{display(path)} is not here; run 'python -m workshop.acceptance --save'."
        ) from error
    if lacking := sorted(set(COLUMNS) - set(table.columns)):
        raise UserError(f"{display(path)} lacks the columns {', '.join(lacking)}; measure again.")
    return {str(model): rows.to_dict("records") for model, rows in table.groupby("model")}


def write_cards(base: Path = HERE) -> list[Path]:
    """Write ``README.md`` into every embedded model's folder.

    Args:
        base: Folder of ``acceptance.csv`` and of the checkpoints ``<family>-<seed>``.

    Returns:
        The cards, by name of folder.
    """
    rows = read_rows(base / "acceptance.csv")
    cards = []
    for folder in sorted(path.parent for path in base.glob("*/config.json")):
        family, _, seed = folder.name.rpartition("-")
        if family not in FAMILIES:
            continue
        card = folder / "README.md"
        replace_text(card, card_text(folder, rows.get(f"{family}:{seed}", [])))
        cards.append(card)
    return cards
