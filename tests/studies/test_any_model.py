"""Studies on models of the reader's own: two GGUF files at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies import s01_per_user as table1
from chameleon_lib.studies import study as study_module
from chameleon_lib.studies.frame import Arm
from chameleon_lib.studies.run import run_grid
from tests.backbones.gguf_files import write_model
from tests.demo.small import HashEmbedder
from tests.studies.small import SETTINGS


def test_rows_are_titled_by_their_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(study_module, "open_embedder", lambda *_: HashEmbedder())
    for seed, name in enumerate(("one", "two")):
        write_model(tmp_path / f"{name}.Q4_1.gguf", seed=seed)
    chosen = get_profile("demo", [str(tmp_path / f"{name}.Q4_1.gguf") for name in ("one", "two")])
    sizes = {"n_train": 8, "n_dev": 2, "n_test": 4, "draws": 1, "workers": 1}
    profile = replace(chosen, **sizes, trains=False)  # type: ignore[arg-type]
    run = run_grid(
        table1._compute, profile, SETTINGS, tasks=["LaMP_3"],
        store=ArtifactStore(tmp_path / "units"),
    )  # fmt: skip
    shown = table1.results(run.frame, "LaMP_3")
    assert list(dict.fromkeys(shown.iloc[:, 0])) == ["one.Q4_1", "two.Q4_1"]
    one, two = run.cells
    assert one.backbone != two.backbone and one.model == one.backbone
    answers = [cell.answers[Arm("instruct")] for cell in run.cells]
    assert answers[0].texts != answers[1].texts
    assert {"fitted", "chameleon", "llm_rec"} <= {arm.method for arm in one.answers}
    assert not {"aloe", "dpo"} & {arm.method for arm in one.answers}
    assert len(table1.effects(run.frame, "LaMP_3")) and table1.verdicts(run, "01_per_user")
