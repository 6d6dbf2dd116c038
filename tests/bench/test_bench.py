"""The command: what it refuses, and where its table goes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from chameleon_lib import bench
from chameleon_lib.bench import ccs, main
from chameleon_lib.bench.rows import Row
from chameleon_lib.bench.timing import Clock, Ratio
from chameleon_lib.kit import cli


@pytest.mark.parametrize("only", ["ccs,gpu", "", "ccs,"])
def test_an_unknown_part_is_refused_with_the_names_there_are(
    only: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--only", only]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "choose from ccs, generation, edit" in error


def test_an_output_folder_that_is_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench"
    path.write_text("kept", encoding="utf-8")
    assert cli.main(["bench", "--out", str(path)]) == 2
    assert "is a file; name a folder." in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5"])
def test_threads_must_be_a_positive_whole_number(
    threads: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--threads", threads]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "is not a whole number of 1 or more" in error


@pytest.mark.parametrize(("words", "layers"), [([], 32), (["--quick"], 4)])
def test_one_part_is_measured_printed_and_written(
    words: list[str],
    layers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[tuple[ccs.CCSWork, int]] = []

    def measure(work: ccs.CCSWork, _clock: Clock) -> list[Row]:
        seen.append((work, torch.get_num_threads()))
        return [Row("CCS", "tiny", "loop", Ratio(2.0, 1.0, 3.0, 3), None, True, "equal")]

    monkeypatch.setattr(ccs, "measure", measure)
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    before = torch.get_num_threads()
    assert main(["--only", "ccs", "--threads", "2", *words]) == 0
    assert seen == [(ccs.CCSWork(layers=layers), 2)] and torch.get_num_threads() == before
    out = capsys.readouterr().out
    assert "| CCS | tiny | loop | 2.00 [1.00, 3.00] | – | yes: equal |" in out
    assert "Ratios of wall clock over paired rounds in alternating order, 2 threads." in out
    table = pd.read_csv(tmp_path / "demo" / "measured" / "bench.csv")
    assert table["ratio"].tolist() == [2.0] and table["threads"].tolist() == [2]


def test_the_command_line_loads_without_torch() -> None:
    source = Path(bench.__file__).read_text(encoding="utf-8")
    assert "\nimport torch" not in source and "\nfrom chameleon_lib.bench" not in source
