"""How much of a gain with history is left without it: the claim behind section 4.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import Estimate, bootstrap_metric
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.estimates import estimate, having, paper_value
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.paired import Term, contrast, user_sums
from chameleon_lib.sections.results import FAMILY_TITLES, Cell, Run
from chameleon_lib.sections.unseen_users.study import NO_HISTORY, WITH_HISTORY

# Whose gain is followed from one reading to the other.
FOLLOWED = ("aloe", "dpo", "chameleon", "fitted", "fitted_gold")


def retention(main: Run) -> pd.DataFrame:
    """How much of a method's gain with history is kept without it, per task, family and method.

    Gains are changes of the primary metric turned so that better is positive. The share is given
    where the gain with history is above zero with its whole interval: of nothing, nothing can be
    kept. The paper has no Instruct row for users without history; its own share, and ours the same
    way beside it, take both gains over Instruct with history.
    """
    rows: list[dict[str, Any]] = []
    for task in main.data:
        metric = get_task(task).metrics[0]
        for family in main.families:
            without, having_it = (main.of(task, family, c) for c in (NO_HISTORY, WITH_HISTORY))
            for method in METHODS:
                if method.id not in FOLLOWED or not having(without, method.id):
                    continue
                seen = _gain(main, having_it, method.id, metric)
                row: dict[str, Any] = {
                    "task": task.replace("_", "-"),
                    "family": FAMILY_TITLES[family],
                    "method": method.title,
                    "metric": metric,
                }
                row |= estimate_columns(seen, "gain with history")
                row |= estimate_columns(
                    _gain(main, without, method.id, metric), "gain without history"
                )
                row |= estimate_columns(
                    _lost(main, having_it, without, method.id, metric), "gain lost"
                )
                for title, base in (
                    ("share kept", without),
                    ("share kept, as the paper has it", having_it),
                ):
                    row[title] = "no gain to keep"
                    if seen.low > 0:
                        found = _share(main, having_it, without, base, method.id, metric)
                        row[title] = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
                row["paper's share"] = _paper_share(task, metric, family, method.paper)
                rows.append({**{k: v for k, v in row.items() if k not in ("n", "seeds")},
                             "n": seen.n, "seeds": seen.seeds})  # fmt: skip
    return pd.DataFrame(rows)


def _gain(run: Run, cells: Sequence[Cell], method: str, metric: str) -> Estimate:
    found = estimate(run, cells, method, metric, "instruct")
    return found if higher_is_better(metric) else -found


def _lost(
    run: Run, seen: Sequence[Cell], unseen: Sequence[Cell], method: str, metric: str
) -> Estimate:
    """Gain with history minus gain without, better is positive; both on the same users."""
    sign = 1 if higher_is_better(metric) else -1
    return contrast(
        run,
        [
            Term(sign, having(seen, method), method),
            Term(-sign, having(seen, method), "instruct"),
            Term(-sign, having(unseen, method), method),
            Term(sign, having(unseen, method), "instruct"),
        ],
        metric,
    )


def _share(
    run: Run,
    seen: Sequence[Cell],
    unseen: Sequence[Cell],
    base: Sequence[Cell],
    method: str,
    metric: str,
) -> Estimate:
    """Gain without history, over Instruct of ``base``, as a share of the gain with history."""
    arms = [(unseen, method), (base, "instruct"), (seen, method), (seen, "instruct")]
    parts = [user_sums(run, having(cells, method), name, metric) for cells, name in arms]

    def share(totals: np.ndarray) -> np.ndarray:
        a, b, c, d = np.moveaxis(totals[..., 0::2] / totals[..., 1::2], -1, 0)
        # A resample without any gain lies beyond the interval on either side.
        return np.divide(a - b, c - d, out=np.full_like(a, np.inf), where=c != d)

    return bootstrap_metric(share, np.concatenate(parts, axis=-1))


def _paper_share(task: str, metric: str, family: str, method: str) -> float | None:
    before = paper_value(task, metric, family, "Instruct")
    after = paper_value(task, metric, family, method)
    unseen = paper_value(task, metric, family, method, "table2")
    if before is None or after is None or unseen is None or after == before:
        return None
    return (unseen - before) / (after - before)
