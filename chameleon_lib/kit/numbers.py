"""Which file really holds the number of a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from chameleon_lib.kit import paths
from chameleon_lib.kit.csvtext import to_csv
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.verdicts import Verdict

_DIGITS = 1e-5  # CSV files keep six significant digits


def save_verdict_csv(verdicts: Sequence[Verdict], profile: str) -> list[Path]:
    """Write outputs/<profile>/verdicts/<notebook>.csv: the verdicts of each notebook as a table."""
    written = []
    for stem in dict.fromkeys(verdict.notebook for verdict in verdicts):
        rows = [
            {
                "profile": profile,
                "claim of": "us" if v.own else "the paper",
                "section": v.section,
                "setting": v.setting,
                "claim": v.words,
                "measure": v.measure,
                "paper": v.paper,
                "ours": v.ours.value if v.ours else None,
                "ci_low": v.ours.low if v.ours else None,
                "ci_high": v.ours.high if v.ours else None,
                "n": v.n,
                "seeds": v.seeds,
                "verdict": v.status,
                "table": v.csv,
            }
            for v in verdicts
            if v.notebook == stem
        ]
        path = paths.verdicts_dir(profile) / f"{stem}.csv"
        paths.replace_text(path, to_csv(pd.DataFrame(rows)))
        written.append(path)
    return written


def holds(csv: Path, ours: Estimate) -> bool:
    """Whether some row of a table has an effect and both ends of its interval."""
    cells = _numbers(csv)  # (rows, columns)
    if not cells.size:
        return False
    found = [
        np.isclose(cells, number, rtol=_DIGITS, atol=1e-9).any(axis=1)
        for number in (ours.value, ours.low, ours.high)
    ]
    return bool(np.logical_and.reduce(found).any())


@cache
def _read(csv: Path, _stamp: tuple[int, int]) -> np.ndarray:
    return pd.read_csv(csv).select_dtypes("number").to_numpy(dtype=np.float64)


def _numbers(csv: Path) -> np.ndarray:
    status = csv.stat()
    return _read(csv, (status.st_mtime_ns, status.st_size))
