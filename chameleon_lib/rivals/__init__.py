"""The rows of the paper's tables that are not CHAMELEON: LLM-REC prompts, ALOE and DPO train.

Each is one file that registers itself, in the order of the tables. TRL and PEFT are imported
inside the functions that train; importing this package is cheap.
"""

from __future__ import annotations

from chameleon_lib.rivals import llm_rec  # isort: skip
from chameleon_lib.rivals import aloe, dpo  # isort: skip

__all__ = ["aloe", "dpo", "llm_rec"]
