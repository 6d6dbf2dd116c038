"""How much an edit changes: the ratio is that of the algebra, kept, and asked of few users."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit, EditHook
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.errors import UserError
from chameleon_lib.studies import arms as module
from chameleon_lib.studies.arms import PARTS, edit_size
from chameleon_lib.studies.data import load_task_data, without_gold
from chameleon_lib.studies.study import Study
from tests.studies.small import small_profile, study_in, use_small_models


@pytest.fixture(params=["decoder", "encdec"])
def asked(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Study, list[PreparedUser]]:
    use_small_models(monkeypatch)
    study = study_in(tmp_path, family=request.param)
    users, _ = study.prepare(without_gold(load_task_data(small_profile(), "LaMP_3").test))
    return study, users


def _edit(study: Study) -> Edit:
    generator = torch.Generator().manual_seed(0)
    theta_p, theta_n = torch.randn(2, 1, study.backbone.d, generator=generator)
    return Edit(layers=(0,), theta_p=theta_p, theta_n=theta_n)


def test_the_boost_is_the_cosine_to_its_direction_and_grows_with_its_strength(
    asked: tuple[Study, list[PreparedUser]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, users = asked
    monkeypatch.setattr(module, "ASKED", 3)
    backbone = study.backbone
    edit = _edit(study)
    found = edit_size(study, users, edit)
    assert found["users"] == [u.user.id for u in users[:3] for _ in u.user.queries]
    assert found["layers"] == [0]
    sizes = {name: torch.tensor(found[name]) for name in PARTS}
    assert all(size.shape == (len(found["users"]), 1) for size in sizes.values())
    # A projection is never longer than what is projected; a small one leaves the answer as it is.
    assert bool((sizes["boost"] > 0).all()) and bool((sizes["boost"] <= 1).all())
    small, smaller = (
        edit_size(study, users, replace(edit, alpha_p=alpha, alpha_n=0.0)) for alpha in (2e-4, 1e-4)
    )
    ratio = torch.tensor(small["boost"]) / torch.tensor(smaller["boost"])
    assert torch.allclose(ratio, torch.tensor(2.0), rtol=1e-2)
    assert torch.allclose(torch.tensor(small["edit"]), torch.tensor(small["boost"]))
    assert not torch.tensor(small["removal"]).any()
    assert isinstance(backbone, HFBackbone) and not backbone.diagnostics


def test_it_is_kept_and_another_edit_is_measured_anew(
    asked: tuple[Study, list[PreparedUser]],
) -> None:
    study, users = asked
    edit = _edit(study)
    first = edit_size(study, users, edit)
    before = study.store.stats.misses
    assert edit_size(study, users, edit) == first and study.store.stats.misses == before
    assert edit_size(study, users, replace(edit, alpha_p=2.0)) != first


def test_an_edit_that_changes_nothing_is_an_error(
    asked: tuple[Study, list[PreparedUser]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, users = asked
    edit = _edit(study)
    monkeypatch.setattr(EditHook, "_changed", lambda _self, x, _plan, _layer: x)
    with pytest.raises(UserError, match="edit ratio is 0 at every layer"):
        edit_size(study, users, edit)
    assert not study.backbone.diagnostics  # type: ignore[attr-defined]
