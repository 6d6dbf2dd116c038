"""The figure holds the measured forms and nothing else."""

from __future__ import annotations

from pathlib import Path

from chameleon_lib.bench.chart import form_frame, write_chart
from chameleon_lib.bench.rows import Row
from chameleon_lib.bench.timing import Ratio
from chameleon_lib.kit.figures import png_size

ROWS = [
    Row("CCS: speed-up", "4 layers", "loop", Ratio(30.0, 20.0, 40.0, 3), None, True, ""),
    *(
        Row(f"Decode under an edit, {name}: time", f"{model}; 64 rows", "no edit",
            Ratio(1.1, 1.0, 1.3, 3), None, True, "")
        for model in ("decoder, embedded model", "encdec, embedded model")
        for name in ("PEFT adapter", "merged weights")
    ),
    Row("Decode under an edit, repeng: time", "decoder", "no edit", None, None, None, "no"),
]  # fmt: skip


def test_only_measured_forms_are_drawn(tmp_path: Path) -> None:
    frame = form_frame(ROWS)
    assert frame["form"].tolist() == ["PEFT adapter", "merged weights"] * 2
    assert set(frame["model"]) == {"decoder, embedded model", "encdec, embedded model"}
    target = write_chart(ROWS, tmp_path / "new", "demo")
    assert target is not None and min(png_size(target.read_bytes())) > 300


def test_without_forms_there_is_no_figure(tmp_path: Path) -> None:
    assert write_chart(ROWS[:1], tmp_path, "demo") is None and not list(tmp_path.iterdir())
