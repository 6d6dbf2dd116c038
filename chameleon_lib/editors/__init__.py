"""Editors of weights: a preference as a fact (subject, question, answer) that a model then knows.

Written from the description of "Towards Effective Model Editing for LLM Personalization" (arXiv
2512.13676) and of the editors it compares; ``ROME``, ``FTL`` and ``FTM`` are ours, ``LoRA`` is
peft's. Each is one class: ``edit(request, ...)`` changes the model and returns an ``Undo`` that
brings every bit back.
"""

from __future__ import annotations

from collections.abc import Callable

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.editors.changes import Change, WeightEdit
from chameleon_lib.editors.editor import Editor
from chameleon_lib.editors.lora import LoRA
from chameleon_lib.editors.request import Request, requests_of
from chameleon_lib.editors.rome import ROME
from chameleon_lib.editors.tuning import FTL, FTM
from chameleon_lib.editors.undo import Trace, Undo

EDITORS: dict[str, Callable[[HFBackbone], Editor]] = {
    "ROME": ROME,
    "FT-L": FTL,
    "FT-M": FTM,
    "LoRA": LoRA,
}

__all__ = [
    "EDITORS", "FTL", "FTM", "ROME", "Change", "Editor", "LoRA", "Request", "Trace", "Undo",
    "WeightEdit", "requests_of",
]  # fmt: skip
