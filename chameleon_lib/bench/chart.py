"""The benchmark's figure: decode time of every form against no edit.

Dots are medians over paired rounds, whiskers the smallest and the largest round.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from chameleon_lib.bench.rows import Row
from chameleon_lib.kit import paths
from chameleon_lib.kit.figures import dot_ci

_PREFIX, _SUFFIX = "Decode under an edit, ", ": time"


def form_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The measured forms, one line each: median ratio between the smallest and the largest."""
    return pd.DataFrame(
        {
            "form": row.what.removeprefix(_PREFIX).removesuffix(_SUFFIX),
            "model": row.setting.split(";")[0],
            "value": row.ratio.median,
            "ci_low": row.ratio.low,
            "ci_high": row.ratio.high,
            "n": row.ratio.rounds,
            "seeds": 1,
        }
        for row in rows
        if row.what.startswith(_PREFIX) and row.ratio is not None
    )


def write_chart(rows: Sequence[Row], folder: Path, profile: str) -> Path | None:
    """Writes ``bench.png``, or nothing where no form was measured."""
    frame = form_frame(rows)
    if frame.empty:
        return None
    figure = dot_ci(
        frame,
        title="Time of a decode under an edit",
        profile=profile,
        xlabel="time, no edit = 1",
        row="form",
        panel="model",
        reference=1.0,
        reference_label="no edit",
        better="lower",
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=200)
    target = folder / "bench.png"
    paths.replace_bytes(target, picture.getvalue())
    return target
