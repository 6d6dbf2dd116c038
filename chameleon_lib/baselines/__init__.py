"""The rows of the paper's tables that are not CHAMELEON: prompting and tuning baselines.

The tuning baselines import TRL and PEFT inside the functions that train; importing this package is
cheap.
"""

from __future__ import annotations

from chameleon_lib.baselines.aloe import train_aloe
from chameleon_lib.baselines.dpo import train_dpo
from chameleon_lib.baselines.mix import Dialogue, load_mix
from chameleon_lib.baselines.rows import GoldExample, gold_examples
from chameleon_lib.baselines.settings import AloeSettings, DpoSettings
from chameleon_lib.baselines.tuning import TrainLog, Tuned, tuned_backbone, tuned_fingerprint

__all__ = [
    "AloeSettings",
    "Dialogue",
    "DpoSettings",
    "GoldExample",
    "TrainLog",
    "Tuned",
    "gold_examples",
    "load_mix",
    "train_aloe",
    "train_dpo",
    "tuned_backbone",
    "tuned_fingerprint",
]
