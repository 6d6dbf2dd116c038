"""The tables and verdicts of section 4.2, counted from a finished run. Nothing is computed here
but estimates: every number carries n users, seeds and a 95 % interval over users.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import mcnemar, seed_sd
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.claims import NOT_IN_PAPER, judged_claim
from chameleon_lib.sections.estimates import (
    STATISTICS,
    difference_on,
    estimate,
    having,
    methods_in,
    metrics_of,
    paper_value,
    where_defined,
)
from chameleon_lib.sections.results import (
    FAMILY_TITLES,
    Run,
    agreeing,
)

# Controls a gain must beat before it may be called personal (method reference, section 11).
CLAIM_CONTROLS = ("random", "from_neutral", "shuffled_pairs")
FITTED_CONTROLS = ("random", "fitted_shuffled")
# Claim → (method, what it is compared with, its name in the paper, what it must beat as well).
CLAIMS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "CHAMELEON's edit beats Instruct": ("chameleon", "instruct", "Instruct", CLAIM_CONTROLS),
    # An ALOE that lost is no rival: the edit must gain by itself, and by its own directions.
    "CHAMELEON's edit beats ALOE": (
        "chameleon",
        "aloe",
        "ALOE",
        ("instruct", "llm_rec", *CLAIM_CONTROLS),
    ),
    "beyond the paper, the fitted edit beats Instruct": ("fitted", "instruct", "", FITTED_CONTROLS),
}


def results(run: Run, task: str) -> pd.DataFrame:
    """Table 1 of one task: one row per family and method, the paper's numbers beside ours."""
    rows = []
    for family in run.families:
        cells = run.of(task, family)
        for method in methods_in(cells):
            row: dict[str, Any] = {
                "family": FAMILY_TITLES[family],
                "method": method.title,
                "kind": method.kind,
                "gold labels": method.labels,
            }
            for metric in metrics_of(run, task):
                if metric == "margin":
                    found = where_defined(estimate, run, cells, method.id, metric)
                    row |= part_columns(found, metric)
                else:
                    row |= estimate_columns(estimate(run, cells, method.id, metric), metric)
            row = {k: v for k, v in row.items() if k not in ("n", "seeds")} | {
                "n": row["n"],
                "seeds": row["seeds"],
            }
            for metric in get_task(task).metrics:
                value = paper_value(task, metric, family, method.paper) if method.paper else None
                row[f"paper {metric}"] = value
            rows.append(row)
    return pd.DataFrame(rows)


def by_model(run: Run, task: str) -> pd.DataFrame:
    """The primary metric and the margin per training seed: one model proves nothing.

    The intervals cover the choice of test users. Beside them stand the standard deviation of the
    primary metric over the random groups, and the range of the random directions, of which a group
    has several.
    """
    rows = []
    primary = get_task(task).metrics[0]
    for cell in (c for c in run.cells if c.task == task):
        for method in methods_in([cell]):
            if method.kind == "control" and method.id not in CLAIM_CONTROLS + FITTED_CONTROLS:
                continue
            row: dict[str, Any] = {"backbone": cell.backbone, "method": method.title}
            row |= estimate_columns(estimate(run, [cell], method.id, primary), primary)
            draws = cell.scores[method.id][STATISTICS[primary][0]]  # (seeds, queries)
            random = method.id == "random"
            levels = draws.mean(axis=1) if random else np.array([np.nan])
            row |= {
                f"{primary} sd over groups": np.nan if random else seed_sd(draws),
                f"{primary} lowest draw": levels.min(),
                f"{primary} highest draw": levels.max(),
            }
            margin = where_defined(estimate, run, [cell], method.id, "margin")
            row |= part_columns(margin, "margin")
            rows.append(row)
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]


def effects(run: Run, task: str) -> pd.DataFrame:
    """Every method against Instruct: paired differences, McNemar, and damage where users agree.

    McNemar's test is made on the first seed of the family alone.

    ``damage`` is the change of the primary metric on queries whose personal and generic answers
    are the same text; it exists in the embedded world only.
    """
    rows = []
    primary = get_task(task).metrics[0]
    score = STATISTICS[primary][0]
    same = agreeing(run, task)
    for family in run.families:
        cells = run.of(task, family)
        for method in methods_in(cells):
            if method.id in ("instruct", "official", "official_history"):
                continue
            row: dict[str, Any] = {
                "family": FAMILY_TITLES[family],
                "method": method.title,
                "kind": method.kind,
            }
            change = estimate(run, cells, method.id, primary, "instruct")
            row |= estimate_columns(change, f"{primary} change")
            margin = where_defined(estimate, run, cells, method.id, "margin", "instruct")
            row |= part_columns(margin, "margin change")
            if same.any():
                damage = difference_on(run, cells, method.id, primary, same)
                row |= part_columns(damage, f"{primary} change where users agree")
            if task == "LaMP_2":
                # One seed: pooled over seeds a user would count several times.
                first = having(cells, method.id)[0].scores
                test = mcnemar(first[method.id][score][0], first["instruct"][score][0])
                row |= {"McNemar b": test.b, "McNemar c": test.c, "McNemar p": test.p}
            rows.append(row)
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]


def verdicts(run: Run, notebook: str) -> list[Verdict]:
    """One verdict per task, family and claim of :data:`CLAIMS`, where its methods were run."""
    return [
        _verdict(run, task, family, claim, notebook)
        for task in run.data
        for family in run.families
        for claim, (method, base, _, others) in CLAIMS.items()
        if having(run.of(task, family), method, base, *others)
    ]


def _verdict(run: Run, task: str, family: str, claim: str, notebook: str) -> Verdict:
    method, base, printed, others = CLAIMS[claim]
    metric = get_task(task).metrics[0]
    cells = having(run.of(task, family), method, base, *others)
    return judged_claim(
        run,
        task,
        family,
        claim,
        estimate(run, cells, method, metric, base),
        {name: estimate(run, cells, method, metric, name) for name in others},
        section="4.2",
        notebook=notebook,
        csv=f"tables/table1_{task}_effects.csv",
        paper=_paper_change(task, metric, family, printed),
        own=not printed,
    )


def _paper_change(task: str, metric: str, family: str, base: str) -> str:
    """The paper's gain of CHAMELEON over ``base``, in words."""
    before = paper_value(task, metric, family, base) if base else None
    after = paper_value(task, metric, family, "CHAMELEON")
    if before is None or after is None:
        return NOT_IN_PAPER
    return f"{after - before:+.3f} ({before:.3f} → {after:.3f})"
