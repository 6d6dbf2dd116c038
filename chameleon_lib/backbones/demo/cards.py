"""Model cards of the embedded models, written from what stands in their folders.

A card holds no number that was typed: the architecture comes from ``config.json``, the recipe from
``training.json`` and the code that trains, the skills from the rows of ``acceptance.csv``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from chameleon_lib.backbones.demo import FAMILIES, card_sections
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import display, replace_text

__all__ = ["card_text", "read_rows", "write_cards"]

HERE = Path(__file__).parent
TITLES = {"decoder": "decoder", "encdec": "encoder-decoder"}
CLASSES = {"decoder": "Mistral-class decoder", "encdec": "T5-class gated encoder-decoder"}
PIPELINES = {"decoder": "text-generation", "encdec": "text2text-generation"}


def card_text(folder: Path, rows: Sequence[Mapping[str, str]]) -> str:
    """The model card (Markdown with a YAML header) of one embedded model.

    Args:
        folder: Checkpoint with ``config.json`` and ``training.json``; weights are not read.
        rows: The rows of ``acceptance.csv`` for this model, in table order; may be empty.

    Raises:
        UserError: A file is missing, unreadable or lacks a key.
    """
    run = _json(folder / "training.json")
    missing = {"family", "seed", "steps", "batch", "lr", "propensity", "warmup", "curriculum"}
    missing -= run.keys()
    if missing or run["family"] not in FAMILIES:
        what = f"lacks {', '.join(sorted(missing))}" if missing else "names no known family"
        raise UserError(f"{display(folder / 'training.json')} {what}; train the model again.")
    family = str(run["family"])
    config = _json(folder / "config.json")
    return "\n".join(
        [
            _header(family),
            f"# Embedded demo {TITLES[family]}, seed {run['seed']}",
            "",
            f"A small {CLASSES[family]} ({_parameters(folder):,} parameters, fp16 safetensors), "
            "trained from scratch on the embedded world of the CHAMELEON kit. It lets the whole "
            "method run offline on a CPU through the code that also loads public models.",
            "",
            "**Demonstrates the method on a planted world; says nothing about Mistral-7B or "
            "Flan-T5-XXL.**",
            "",
            "## Architecture",
            "",
            *card_sections.architecture(family, config),
            "",
            "## Data",
            "",
            *card_sections.data(),
            "",
            "## Training",
            "",
            *card_sections.training(family, run),
            "",
            "## Regenerate",
            "",
            "```bash",
            f"python -m chameleon_lib train --family {family} --seed {run['seed']}",
            "python -m chameleon_lib acceptance --save",
            "```",
            "",
            "The second command measures every embedded model and writes this card again.",
            "",
            "## Skills measured",
            "",
            *_skills(rows),
            "",
            "## Limits",
            "",
            *card_sections.limits(family),
            "",
        ]
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{display(path)} cannot be read; train the model again.") from error
    if not isinstance(record, dict):
        raise UserError(f"{display(path)} holds no record; train the model again.")
    return record


def _header(family: str) -> str:
    tags = ("chameleon", "personalization", "representation-editing", "lamp", "synthetic-data")
    return "\n".join(
        [
            "---",
            "license: mit",
            "language: en",
            "library_name: transformers",
            f"pipeline_tag: {PIPELINES[family]}",
            "tags:",
            *(f"- {tag}" for tag in tags),
            "---",
            "",
        ]
    )


def _parameters(folder: Path) -> int:
    """Number of parameters, tied ones once; built without memory for a single weight."""
    config = AutoConfig.from_pretrained(folder)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return int(auto.from_config(config).num_parameters())


def _skills(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return ["Not measured yet: `python -m chameleon_lib acceptance --save` does it."]
    judged = [row for row in rows if row["passed"]]
    met = sum(row["passed"] == "True" for row in judged)
    lines = [
        f"Test users of the embedded world, 95 % intervals over users; {met} of {len(judged)} "
        "goals met. A model is chosen by these rows alone, never by how well CHAMELEON's own "
        "directions do. The positive control is an edit of the same form fitted on gold "
        "pairs of train users.",
        "",
        "| task | skill | value [95 % CI] | n | seeds | goal | passed |",
        "|---|---|---|--:|--:|---|---|",
    ]
    words = {"True": "yes", "False": "**no**", "": "–"}
    for row in rows:
        value, low, high = (
            f"{float(row[key]):.3f}".replace("-", "−") for key in ("value", "ci_low", "ci_high")
        )
        lines.append(
            f"| {row['task']} | {row['skill']} | {value} [{low}, {high}] | {row['n']} "
            f"| {row['seeds']} | {row['goal'] or '–'} | {words[row['passed']]} |"
        )
    return lines


def read_rows(path: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of an acceptance table by model id, such as ``decoder:0``.

    Raises:
        UserError: The table is missing or lacks a column.
    """
    columns = {"model", "task", "skill", "value", "ci_low", "ci_high", "n", "seeds", "goal",
               "passed"}  # fmt: skip
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{display(path)} is not here; run 'python -m chameleon_lib acceptance --save'."
        ) from error
    reader = csv.DictReader(text.splitlines())
    if lacking := sorted(columns - set(reader.fieldnames or ())):
        raise UserError(f"{display(path)} lacks the columns {', '.join(lacking)}; measure again.")
    found: dict[str, list[dict[str, str]]] = {}
    for row in reader:
        found.setdefault(row["model"], []).append(row)
    return found


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
