"""The tables and verdicts of section 4.2, counted from a finished run. Nothing is computed here
but estimates: every number carries n users, seeds and a 95 % interval over users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import (
    Estimate,
    bootstrap_metric,
    confusion_by_user,
    mcnemar,
    own_claim,
    sums_by_user,
    verdict,
)
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.baselines import baselines_for
from chameleon_lib.lamp.metrics import higher_is_better, per_sample_scores
from chameleon_lib.lamp.records import User
from chameleon_lib.lamp.tasks import get_task, is_valid_answer
from chameleon_lib.sections.estimates import (
    STATISTICS,
    difference_on,
    estimate,
    methods_in,
    metrics_of,
    paper_value,
)
from chameleon_lib.sections.per_user import (
    FAMILY_TITLES,
    Run,
    agreeing,
)

# Controls a gain must beat before it may be called personal (method reference, section 11).
CLAIM_CONTROLS = ("random", "from_neutral", "shuffled_pairs")
FITTED_CONTROLS = ("random", "fitted_shuffled")


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
                found = estimate_columns(estimate(run, cells, method.id, metric), metric)
                row |= found
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
    """The primary metric and the margin per training seed: one model proves nothing."""
    rows = []
    for cell in (c for c in run.cells if c.task == task):
        for method in methods_in([cell]):
            if method.kind == "control" and method.id not in CLAIM_CONTROLS + FITTED_CONTROLS:
                continue
            primary = get_task(task).metrics[0]
            row: dict[str, Any] = {"backbone": cell.backbone, "method": method.title}
            for metric in (primary, "margin"):
                row |= estimate_columns(estimate(run, [cell], method.id, metric), metric)
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
        base = np.concatenate([cell.scores["instruct"][score] for cell in cells])
        for method in methods_in(cells):
            if method.id in ("instruct", "official", "official_history"):
                continue
            row: dict[str, Any] = {
                "family": FAMILY_TITLES[family],
                "method": method.title,
                "kind": method.kind,
            }
            for metric in (primary, "margin"):
                row |= estimate_columns(
                    estimate(run, cells, method.id, metric, "instruct"), f"{metric} change"
                )
            where_agree = f"{primary} change where users agree"
            if same.any():
                row |= estimate_columns(
                    difference_on(run, cells, method.id, primary, same),
                    where_agree,
                )
            if task == "LaMP_2":
                # One seed: pooled over seeds a user would count several times.
                test = mcnemar(cells[0].scores[method.id][score][0], base[0])
                row |= {"McNemar b": test.b, "McNemar c": test.c, "McNemar p": test.p}
            rows.append(row)
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]


def floors(run: Run, task: str) -> pd.DataFrame:
    """Baselines that need no model, on the test users and on all labelled users."""
    rows = []
    data = run.data[task]
    chosen = set(run.test_users[task])
    parts = [("test users", [user for user in data.test if user.id in chosen])]
    parts.append(("all users", list(data.everyone)))
    for name, baseline in baselines_for(task).items():
        for part, users in parts:
            row: dict[str, Any] = {"baseline": name.replace("_", " "), "users": part}
            answers = baseline(users, data.train)
            for metric in get_task(task).metrics:
                found = _floor(task, users, answers, metric)
                row |= estimate_columns(found, metric)
            row["valid rate"] = float(np.mean([is_valid_answer(task, a) for a in answers]))
            rows.append(row)
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]


def _floor(task: str, users: Sequence[User], answers: list[str], metric: str) -> Estimate:
    gold = [str(query.gold) for user in users for query in user.queries]
    owner = [user.id for user in users for _ in user.queries]
    score, statistic = STATISTICS[metric]
    if statistic == "macro_f1":
        return bootstrap_metric(
            statistic, confusion_by_user(gold, answers, get_task(task).labels, owner)
        )
    values = per_sample_scores(task, gold, answers)[score]
    return bootstrap_metric(statistic, sums_by_user(values, owner))


def directions(run: Run, task: str) -> pd.DataFrame:
    """Per backbone, draw and layer: pairs, CCS loss with its floor and control, geometry."""
    rows = []
    for cell in (c for c in run.cells if c.task == task):
        for index, log in enumerate(cell.draws):
            for layer in log["rows"]:
                rows.append(
                    {
                        "backbone": cell.backbone,
                        "draw": index,
                        "layer": int(layer["layer"]),
                        "edited": int(layer["layer"]) in log["layers"],
                        "pairs kept": log["kept"],
                        "pairs identical": log["identical"],
                        **{k: v for k, v in layer.items() if k != "layer"},
                        "n": log["users"],
                        "seeds": 1,
                    }
                )
    return pd.DataFrame(rows)


def pair_counts(run: Run) -> pd.DataFrame:
    """Per backbone and task: pairs before and after the filter, and how many are right."""
    rows = []
    for cell in run.cells:
        logs = cell.draws
        row: dict[str, Any] = {
            "backbone": cell.backbone,
            "task": get_task(cell.task).name.replace("_", "-"),
            "pairs asked": float(np.mean([log["pairs"] for log in logs])),
            "pairs kept": float(np.mean([log["kept"] for log in logs])),
            "drop rate": float(np.mean([log["identical"] / log["pairs"] for log in logs])),
        }
        if "personal_right" in logs[0]:
            row["personal right"] = float(np.mean([log["personal_right"] for log in logs]))
            row["neutral right"] = float(np.mean([log["neutral_right"] for log in logs]))
        row |= {
            "edited layers": " | ".join(",".join(map(str, log["layers"])) for log in logs),
            "left out: too long": cell.counts["too_long"],
            "left out: empty insight": cell.counts["empty_insight"],
            "history items dropped": cell.counts["dropped_items"],
            "n": logs[0]["users"],
            "seeds": len(logs),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def verdicts(run: Run, notebook: str) -> list[Verdict]:
    """One verdict per task and family for the paper's edit, and one for the fitted edit."""
    found = []
    for task in run.data:
        metric = get_task(task).metrics[0]
        for family in run.families:
            cells = run.of(task, family)
            for method, controls, claim in (
                ("chameleon", CLAIM_CONTROLS, "CHAMELEON's edit beats Instruct"),
                ("fitted", FITTED_CONTROLS, "beyond the paper, the fitted edit beats Instruct"),
            ):
                effect = estimate(run, cells, method, metric, "instruct")
                margins = [estimate(run, cells, method, metric, name) for name in controls]
                status = verdict(effect, margins, higher_is_better(metric))
                status = status if method == "chameleon" else own_claim(status)
                before = paper_value(task, metric, family, "Instruct")
                after = paper_value(task, metric, family, "CHAMELEON")
                paper = "not in the paper"
                if method == "chameleon" and before is not None and after is not None:
                    paper = f"{after - before:+.3f} ({before:.3f} → {after:.3f})"
                found.append(
                    Verdict(
                        claim=f"{task.replace('_', '-')}, {FAMILY_TITLES[family]}: {claim} "
                        f"({metric} change)",
                        section="4.2",
                        notebook=notebook,
                        paper=paper,
                        ours=effect,
                        status=status,
                        n=effect.n,
                        seeds=effect.seeds,
                        scorer=f"{metric}, LaMP evaluator's definition",
                        csv=f"tables/table1_{task}_effects.csv",
                        note="must also beat: " + ", ".join(controls).replace("_", " "),
                        split="test users of the embedded world"
                        if run.data[task].truth is not None
                        else "official dev users",
                    )
                )
    return found
