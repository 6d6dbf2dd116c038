from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lib.kit import paths
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import check_table
from chameleon_lib.sections.controls import agreement
from chameleon_lib.sections.controls.agreement import AGREEMENTS, PAPER
from tests.sections.finished import Finished, units
from tests.sections.small import use_small_models


@pytest.fixture(scope="module")
def frame(finished: Finished) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        return agreement.agreements(finished.run, ArtifactStore(finished.folder))


def test_every_cell_of_table_1_has_its_agreements_and_effects(
    frame: pd.DataFrame, finished: Finished
) -> None:
    assert len(check_table(frame, "agreement", "demo")) == len(finished.run.cells)
    pairs = frame[AGREEMENTS["pairs"]]
    assert pairs.is_monotonic_decreasing and pairs.between(-1, 1).all()
    for name in agreement.HALVES:
        assert frame[AGREEMENTS[name]].between(0, 1).all()
    assert frame[agreement.CHANCE].between(0.01, 0.3).all()
    cell = finished.run.cells[0]
    row = frame[(frame["backbone"] == cell.backbone) & (frame["task"] == "LaMP-3")].iloc[0]
    [log] = cell.draws
    expected = [r["pair_cosine"] for r in log["rows"] if r["layer"] in log["layers"]]
    assert row["n"] == len(finished.run.test_users["LaMP_3"]) and row["seeds"] == 1
    assert row[f"{PAPER} n"] == np.isfinite(cell.scores["chameleon"]["margin"][0]).sum()
    assert row[AGREEMENTS["pairs"]] == pytest.approx(sum(expected) / len(expected))


def test_halves_of_one_direction_agree_and_are_stored(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)

    def same(*_: object) -> dict[str, torch.Tensor]:
        layers = len(finished.run.cells[0].draws[0]["rows"])
        return {name: torch.ones(layers, 4) for name in agreement.HALVES}

    monkeypatch.setattr(agreement, "_directions", same)
    run = replace(finished.run, cells=finished.run.cells[:1])
    run = replace(run, settings=run.settings.with_(ccs_tries=3))  # not what the store has
    before = units(finished.folder)
    found = agreement.agreements(run, ArtifactStore(finished.folder)).iloc[0]
    assert [found[AGREEMENTS[name]] for name in agreement.HALVES] == pytest.approx([1, 1, 1])
    assert len(units(finished.folder)) == len(before) + 1


def planted(changes: list[float]) -> pd.DataFrame:
    rows = [
        {
            "task": "LaMP-2",
            "backbone": f"demo:decoder:{place}",
            **dict.fromkeys(AGREEMENTS.values(), 0.9 - 0.1 * place),
            agreement.CHANCE: 0.07,
            **{f"{title}, margin change{end}": value + shift
               for title in ("paper's edit", "fitted edit")
               for end, shift in (("", 0), ("_low", -0.1), ("_high", 0.1))},
            **{f"{title}, margin change n": 85 for title in ("paper's edit", "fitted edit")},
            "n": 120,
            "seeds": 3,
        }
        for place, value in enumerate(changes)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "correlation"), [([3, 2, 1], 1), ([1, 2, 3], -1), ([2, 1, 2], 0)]
)
def test_the_sentence_tells_rank_correlation_and_number_of_cells(
    changes: list[float], correlation: float
) -> None:
    frame = planted(changes)
    found = agreement.rank_correlation(frame, AGREEMENTS["pairs"], PAPER)
    assert found == pytest.approx(correlation, abs=1e-9)
    said = agreement.sentence(frame)
    assert said.startswith("Over 3 cells") and f"cosine between pairs {found:+.2f}" in said
    assert "θN at 0.80 (lowest 0.70); two random directions have 0.07." in said


def test_the_figure_orders_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    shown = agreement.figure(planted([3, 2, 1]), "demo")
    assert "from +0.90 to +0.70" in shown.metadata["alt"] and "n = 3" in shown.metadata["caption"]
    assert "over 85 test users" in shown.metadata["caption"]
    assert (paths.figures_dir("demo") / "06_agreement.png").is_file()


def test_a_cell_without_a_margin_is_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    shown = agreement.figure(planted([3, 2, float("nan")]), "demo")
    assert "+3.00 at the top and undefined at the bottom" in shown.metadata["alt"]
    shown = agreement.figure(planted([float("nan")]), "demo")
    assert "undefined at the top" in shown.metadata["alt"]
