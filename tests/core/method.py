"""A small model and a few users for the whole method."""

from __future__ import annotations

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User
from chameleon_lib.demo.world import WorldSettings, build_world

SETTINGS = EditSettings(
    selection_k=4,
    decode_insight_tokens=6,
    decode_max_new_tokens=5,
    ccs_epochs=20,
    ccs_tries=2,
    pairs_k_min=2,
    fit_steps=2,
    fit_batch=4,
    fit_rule="plain",
    fit_loss="preference",
    pairs_source="self",
    check_edit="off",  # a random model has nothing to be checked; tests/core/test_checks.py does
)


def train_users(task: str = "LaMP_3", n: int = 6) -> list[User]:
    """Users of the embedded world with two queries each."""
    settings = WorldSettings(users=(n, 0, 0), queries=2, history=(5, 7))
    return build_world(task, settings).users["train"]
