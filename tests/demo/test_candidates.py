"""What the demo's rates and steps were chosen from: who is asked, what is in use, what is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core.backbone import Family
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.rivals.settings import AloeSettings, DpoSettings
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.study import settings_for
from tests.studies.small import small_profile, study_in, use_small_models
from workshop import candidates
from workshop.candidates import CANDIDATES, compare

FAMILIES: tuple[Family, ...] = ("decoder", "encoder-decoder")
FEW: dict[str, tuple[dict[str, Any], ...]] = {
    "aloe": ({"epochs": 3, "lr": 1e-3}, {"epochs": 1, "lr": 2e-3}),
    "dpo": ({"epochs": 2, "lr": 1e-3},),
    "fitted": ({"fit_steps": 2, "fit_lr": 0.1}, {"fit_steps": 3, "fit_lr": 0.1}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_demo_uses_is_one_of_the_candidates(family: Family) -> None:
    present = {
        "aloe": AloeSettings.demo(family).canonical(),
        "dpo": DpoSettings.demo().canonical(),
        "fitted": settings_for(get_profile("demo")).canonical(),
    }
    for method, tried in CANDIDATES.items():
        used = [all(present[method][k] == v for k, v in one.items()) for one in tried]
        assert used.count(True) == 1, method


@pytest.mark.parametrize("method", sorted(CANDIDATES))
def test_candidates_are_read_on_train_and_dev_users_alone(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(candidates, "CANDIDATES", FEW)
    study = study_in(tmp_path)
    data = load_task_data(small_profile(), "LaMP_3")
    asked: list[str] = []
    said = candidates.said

    def watched(study: Any, users: Sequence[Any], *rest: Any) -> dict[str, str]:
        asked.extend(user.user.id for user in users)
        return said(study, users, *rest)

    monkeypatch.setattr(candidates, "said", watched)
    found = list(compare(study, data, method, draws=2))
    assert [candidate.settings for candidate in found] == list(FEW[method])
    assert set(asked) <= {user.id for user in [*data.train, *data.dev]}
    assert not set(asked) & {user.id for user in data.test}
    for candidate in found:
        assert (candidate.dev.n, candidate.dev.seeds) == (len(data.dev), 2)
        assert candidate.seen.n <= len(data.train) and candidate.seconds > 0
