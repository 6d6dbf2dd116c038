"""Measured seconds of section 4.5; they go to ``outputs/<profile>/measured`` and nowhere else."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd

from chameleon_lib.kit import paths
from chameleon_lib.kit.csvtext import to_csv
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.sections.estimates import estimate
from chameleon_lib.sections.results import FAMILY_TITLES, Run
from chameleon_lib.sections.time_budget.study import OURS, RIVALS, TASK
from chameleon_lib.sections.time_budget.tables import TITLES, counted
from chameleon_lib.sections.time_budget.views import cost_figure


def seconds(run: Run) -> pd.DataFrame:
    """Seconds of every training and fit, mean over groups, with the change against Instruct.

    They were taken when the training ran, which may be another day and a busier machine. The
    writing of the pairs and the reading of activations are projected from 20 users that were timed.
    ``against DPO`` is the fraction of the seconds that DPO took for the same share.
    """
    rows = []
    for family in run.families:
        for condition in run.conditions:
            cells = run.of(TASK, family, condition)
            logs = [log for cell in cells for log in cell.draws]
            taken = {
                method: [log[method]["measured"] for log in logs] for method in (*OURS, *RIVALS)
            }
            dpo = _mean(taken["dpo"], "seconds")
            for method, measured in taken.items():
                own = _mean(measured, "seconds")
                change: Estimate = estimate(run, cells, method, "accuracy", "instruct")
                row: dict[str, Any] = {
                    "family": FAMILY_TITLES[family],
                    "budget": condition,
                    "method": TITLES[method],
                    "share": counted(cells, method, "share"),
                    "seconds": own,
                    "seconds for the pairs": _mean(measured, "pairs"),
                    "seconds with pairs": own + _mean(measured, "pairs"),
                    "against DPO": own / dpo,
                }
                rows.append(row | estimate_columns(change, "accuracy change"))
    return pd.DataFrame(rows)


def _mean(measured: list[dict[str, float]], key: str) -> float:
    return sum(one[key] for one in measured) / len(measured)


def wall_clock(run: Run) -> pd.DataFrame:
    """The wall-clock mode: per family, budget and method the seconds it really took."""
    rows = []
    for family in run.families:
        for condition in run.conditions:
            cells = run.of(TASK, family, condition)
            for method in (*OURS, *RIVALS):
                change = estimate(run, cells, method, "accuracy", "instruct")
                rows.append(
                    {
                        "family": FAMILY_TITLES[family],
                        "budget": float(cells[0].draws[0]["budget"]),
                        "method": TITLES[method],
                        **{
                            name: counted(cells, method, name)
                            for name in ("seconds", "queries", "pairs", "steps")
                        },
                        **estimate_columns(change, "accuracy change"),
                    }
                )
    return pd.DataFrame(rows)


def save_measured(frame: pd.DataFrame, name: str, profile: str, x: str, xlabel: str) -> str:
    """Write a measured table and its figure beside the compared outputs.

    Args:
        frame: The table, one row per point.
        name: File stem.
        profile: Run profile.
        x: Column of the abscissa.
        xlabel: Its name with its unit.

    Returns:
        Where they lie, without a machine's path.
    """
    folder = paths.measured_dir(profile)
    paths.replace_text(folder / f"{name}.csv", to_csv(frame))
    picture = io.BytesIO()
    cost_figure(frame, profile, x, xlabel).savefig(picture, format="png", dpi=200)
    paths.replace_bytes(folder / f"{name}.png", picture.getvalue())
    return f"measured/{name}.csv and .png of the {profile} outputs"
