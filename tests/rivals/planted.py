"""Examples with one planted answer that a tiny random model can learn, and its token rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.rivals.rows import GoldExample
from chameleon_lib.rivals.settings import AloeSettings, DpoSettings
from tests.backbones.tiny import LINES

FAMILIES = ("mistral", "t5")


def prompt(user: int) -> str:
    return f"{LINES[1 + user % 3]} {user}\nYour answer:"


def examples(users: int = 8) -> list[GoldExample]:
    return [GoldExample(prompt(u), "comedy", f"user{u:02}") for u in range(users)]


def contrasts(users: int = 8, ties: int = 0) -> list[Contrast]:
    """Every user prefers "comedy"; ``ties`` further queries have one answer only."""
    return [
        Contrast(prompt(u), "comedy", "action" if u < users else None, f"user{u:02}")
        for u in range(users + ties)
    ]


def aloe(**changes: Any) -> AloeSettings:
    """Small and quick; no dialogues, unpacked."""
    quick: dict[str, Any] = {
        "mix": "none",
        "packing": "off",
        "precision": "fp32",
        "batch": 4,
        "accumulation": 1,
        "lr": 5e-3,
        "epochs": 2,
        "lora_r": 4,
        "lora_alpha": 4.0,
    }
    return AloeSettings(**{**quick, **changes})


def dpo(**changes: Any) -> DpoSettings:
    """Small and quick."""
    quick: dict[str, Any] = {
        "precision": "fp32",
        "batch": 4,
        "lr": 1e-2,
        "epochs": 2,
        "lora_r": 4,
        "lora_alpha": 4.0,
    }
    return DpoSettings(**{**quick, **changes})


def margin(backbone: HFBackbone, pairs: list[Contrast]) -> Tensor:
    """log p(chosen) − log p(rejected) per pair, nats."""
    with torch.no_grad():
        prepared = backbone.prepare([pair.prompt for pair in pairs])
        chosen = backbone.score(prepared, [pair.chosen for pair in pairs])
        return chosen - backbone.score(prepared, [str(pair.rejected) for pair in pairs])
