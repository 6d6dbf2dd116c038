"""What every part of the benchmark needs in a test."""

from __future__ import annotations

import pytest

from chameleon_lib.errors import UserError
from workshop.bench import models


@pytest.fixture
def no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(family: str, seed: int) -> None:
        raise UserError(f"{family}-{seed} is not here.")

    monkeypatch.setattr(models, "checkpoint", absent)
