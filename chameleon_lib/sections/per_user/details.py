"""What stands behind Table 1: floors without a model, pairs, directions, edit sizes, trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import (
    Estimate,
    bootstrap_metric,
    confusion_by_user,
    sums_by_user,
)
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.lamp.baselines import baselines_for
from chameleon_lib.lamp.metrics import per_sample_scores
from chameleon_lib.lamp.records import User
from chameleon_lib.lamp.tasks import get_task, is_valid_answer
from chameleon_lib.sections.edit_size import PARTS
from chameleon_lib.sections.estimates import STATISTICS, group_sums
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.per_user.cell import SIZED
from chameleon_lib.sections.results import FAMILY_TITLES, Run
from chameleon_lib.sections.seen import Log, change_on_seen, has_learned, quarters


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
    """Per backbone, draw and layer: pairs, CCS loss with its floor and control, geometry, sizes.

    The ratios are those of :func:`edit_sizes`; empty where an edit does not act.
    """
    rows = []
    for cell in (c for c in run.cells if c.task == task):
        for index, log in enumerate(cell.draws):
            sizes = _ratios_by_layer(log["sizes"])
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
                        **{k: found.get(int(layer["layer"])) for k, found in sizes.items()},
                        "n": log["users"],
                        "seeds": 1,
                    }
                )
    return pd.DataFrame(rows)


def _ratios_by_layer(sizes: Mapping[str, Log]) -> dict[str, dict[int, float]]:
    """Column → layer → mean ratio over queries: the paper's edit with its parts, and ours."""
    shown = {f"{part} ratio": ("chameleon", part) for part in PARTS}
    shown["fitted edit ratio"] = ("fitted", "edit")
    return {
        column: dict(
            zip(sizes[name]["layers"], np.mean(sizes[name][part], axis=0).tolist(), strict=True)
        )
        for column, (name, part) in shown.items()
    }


def edit_sizes(run: Run) -> pd.DataFrame:
    """Per task, family and edit: the length of the change over that of what it changes.

    Means over edited layers, edited tokens, groups and training seeds, each of which counts the
    same; boost and removal are the two parts of the edit. The intervals are over the few test users
    whose answers were watched. The tables per layer hold every training seed by itself.
    """
    titles = {method.id: method.title for method in METHODS}
    rows = []
    for task, family in product(run.data, run.families):
        cells = run.of(task, family)
        weights = np.concatenate([[1 / len(cell.draws)] * len(cell.draws) for cell in cells])
        for edit in SIZED:
            logs = [log["sizes"][edit] for cell in cells for log in cell.draws]
            layers = np.average([len(log["layers"]) for log in logs], weights=weights)
            row: dict[str, Any] = {
                "task": get_task(task).name.replace("_", "-"),
                "family": FAMILY_TITLES[family],
                "edit": titles[edit.split("/")[0]],
                "edited layers": float(layers),
            }
            for part in PARTS:
                per_query = [(np.mean(log[part], axis=1), log["users"]) for log in logs]
                sums = np.stack([sums_by_user(means, users) for means, users in per_query])
                found = bootstrap_metric("mean", sums, seed_weights=(weights, None))
                row |= estimate_columns(found, f"{part} ratio")
            rows.append(row | {name: row.pop(name) for name in ("n", "seeds")})
    return pd.DataFrame(rows)


def pair_counts(run: Run) -> pd.DataFrame:
    """Per backbone and task: pairs before and after the filter, and how many are right.

    The intervals are over the train users of all groups, who are counted beside them.
    """
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
        for role in ("personal", "neutral") if "right" in logs[0] else ():
            right = group_sums([(log["right"]["users"], log["right"][role]) for log in logs])
            row |= part_columns(bootstrap_metric("mean", right), f"{role} right")
        row |= {
            "edited layers": " | ".join(",".join(map(str, log["layers"])) for log in logs),
            "left out: no history": cell.counts["no_history"],
            "left out: too long": cell.counts["too_long"],
            "left out: empty insight": cell.counts["empty_insight"],
            "history items dropped": cell.counts["dropped_items"],
            "n": logs[0]["users"],
            "seeds": len(logs),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def trainings(run: Run) -> pd.DataFrame:
    """What ALOE and DPO were trained on and whether they learned: means over groups.

    The loss is the mean of the first and of the last quarter of the steps, per token for ALOE and
    per pair for DPO. What a rival gained on the users it was trained on is counted against
    Instruct; *learned* says that every loss fell and that the gain is beyond chance.
    """
    titles = {method.id: method.title for method in METHODS}
    rows = []
    for cell in run.cells:
        for name in ("aloe", "dpo"):
            logs = [log[name] for log in cell.draws if name in log]
            if not logs:
                continue
            first = logs[0]
            row: dict[str, Any] = {
                "backbone": cell.backbone,
                "task": get_task(cell.task).name.replace("_", "-"),
                "method": titles[name],
                "gold answers seen": first["queries"] if first["uses_gold"] else 0,
                "weights": first["params"],
                "trainable weights": first["trainable_params"],
                "dialogues mixed in": f"{first['mix_rows']} ({first['mix']})",
                "steps": first["steps"],
            }
            for key in ("rows", "ties"):
                row[key] = float(np.mean([log[key] for log in logs]))
            ends = np.mean([quarters(log["loss"]) for log in logs], axis=0)
            row |= {"loss, first quarter": float(ends[0]), "loss, last quarter": float(ends[1])}
            gain = change_on_seen(logs)
            row |= {"metric": get_task(cell.task).metrics[0]}
            row |= estimate_columns(gain, "change on seen users")
            row |= {
                "learned": "yes" if has_learned(cell.task, logs, gain) else "no",
                "departures from the paper": ", ".join(first["departures"]),
            }
            # A table ends with how many training users, and trainings, its numbers are from.
            row |= {name: row.pop(name) for name in ("n", "seeds")}
            rows.append(row)
    return pd.DataFrame(rows)
