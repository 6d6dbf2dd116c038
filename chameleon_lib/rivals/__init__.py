"""The rows of the paper's tables that are not CHAMELEON: LLM-REC prompts, ALOE and DPO train.

Each is one file that registers itself, in the order of the tables; those in ``more`` come after
them. TRL and PEFT are imported inside the functions that train; importing this package is cheap.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from chameleon_lib.rivals import llm_rec, more  # isort: skip
from chameleon_lib.rivals import aloe, dpo  # isort: skip

__all__ = ["aloe", "dpo", "llm_rec", "load"]


def load() -> None:
    """Imports every file of ``more``."""
    for module in pkgutil.iter_modules(more.__path__):
        import_module(f"{more.__name__}.{module.name}")


load()
