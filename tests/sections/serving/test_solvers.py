"""The two solvers side by side on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chameleon_lib.core.directions import Directions
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.serving import solvers
from chameleon_lib.sections.serving.solvers import EDITED, EQUAL, ORDERS, compare_solvers
from tests.sections.serving.conftest import PROFILE
from tests.sections.small import SETTINGS, use_small_models

ONE = PROFILE.__class__(**{
    **{name: getattr(PROFILE, name) for name in PROFILE.__slots__}, "tasks": ("LaMP_3",)
})  # fmt: skip


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


@pytest.mark.usefixtures("_small")
def test_layers_and_answers_of_both_solvers_are_compared(tmp_path: Path) -> None:
    found = compare_solvers(ONE, SETTINGS, store=ArtifactStore(tmp_path))
    assert found["backbone"].tolist() == list(PROFILE.studied) and set(found["n"]) == {8}
    assert (found["mean loss, span"] <= found["mean loss, reference"]).all()
    assert found["θN alike (mean |cos|)"].between(0, 1).all()
    assert found[EQUAL].between(0, 1).all()
    for row in found.to_dict("records"):
        one, other = row["layers by loss, reference"], row["layers by loss, span"]
        assert row[ORDERS] == (one == other)
        assert sorted(one.strip("[]").split()) == ["0", "1", "2"]
        assert row[EDITED] == (row["edited, reference"] == row["edited, span"])
        if row["answers that an edit changes"] == 0:
            assert row["equal among these"] == 1


@pytest.mark.usefixtures("_small")
def test_one_solver_beside_itself_agrees_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = solvers.stored_directions

    def reference(study: object, *rest: object) -> Directions:
        study.settings = SETTINGS  # type: ignore[attr-defined]
        return stored(study, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(solvers, "stored_directions", reference)
    found = compare_solvers(ONE, SETTINGS, store=ArtifactStore(tmp_path))
    assert found[ORDERS].all() and found[EDITED].all()
    assert found[EQUAL].tolist() == [1, 1]
    assert found["θN alike (mean |cos|)"].tolist() == pytest.approx([1, 1])


def test_equal_losses_keep_the_order_of_the_layers() -> None:
    like = Directions.__new__(Directions)
    object.__setattr__(like, "ccs_loss", torch.tensor([0.2, 0.1, 0.1]))
    assert solvers._order(like) == "[1 2 0]"
