"""The tables and verdicts of section 4.3: unseen users under every condition.

A condition is a run of Table 1's shape, so its frames are Table 1's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.claims import NOT_IN_PAPER, judged_claim
from chameleon_lib.sections.data import TaskData
from chameleon_lib.sections.estimates import estimate, having, paper_value
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.per_user import details as table1_details
from chameleon_lib.sections.per_user import tables as table1
from chameleon_lib.sections.results import FAMILY_TITLES, Run
from chameleon_lib.sections.unseen_users.common import COMMON_TASTE, FITTED_BARE
from chameleon_lib.sections.unseen_users.study import NO_HISTORY, WITH_HISTORY

READINGS = {
    NO_HISTORY: "new users without history",
    WITH_HISTORY: "new users whose history is in the prompt and in no fit",
    COMMON_TASTE: "new users without history who mostly share a taste",
    FITTED_BARE: "new users without history who mostly share a taste, fitted without history",
}
# Conditions that the paper's numbers may speak of.
_OF_PAPER = (NO_HISTORY, WITH_HISTORY)
# Claim → (method, what it is compared with, what it must beat as well).
CLAIMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "CHAMELEON's edit beats Instruct": ("chameleon", "instruct", table1.CLAIM_CONTROLS),
    "CHAMELEON's edit beats ALOE": ("chameleon", "aloe", ("instruct", *table1.CLAIM_CONTROLS)),
    "beyond the paper, the fitted edit beats Instruct": (
        "fitted",
        "instruct",
        table1.FITTED_CONTROLS,
    ),
}


def tasks_of(runs: Sequence[Run]) -> list[str]:
    """Tasks in order."""
    return list(dict.fromkeys(task for run in runs for task in run.data))


def conditions(runs: Sequence[Run], task: str) -> Iterator[tuple[str, Run]]:
    """Every condition of a task with its part of a run, as a run of Table 1's shape."""
    for run in runs:
        if task in run.data:
            for name in run.conditions:
                cells = [replace(c, condition="") for c in run.cells if c.condition == name]
                yield name, replace(run, cells=cells)


def named_data(runs: Sequence[Run]) -> dict[str, TaskData]:
    """All users that were read, by name."""
    found: dict[str, TaskData] = {}
    for run in runs:
        for task, data in run.data.items():
            found[f"{task}, common taste" if task in found else task] = data
    return found


def results(runs: Sequence[Run], task: str) -> pd.DataFrame:
    """Table 2 of one task: one row per condition, family and method.

    The paper has one number per method for its unseen users and does not say in which reading, so
    it stands beside both.
    """
    frames = []
    names = {method.title: method.paper for method in METHODS}
    families = {title: family for family, title in FAMILY_TITLES.items()}
    for condition, run in conditions(runs, task):
        frame = table1.results(run, task)
        rows = list(zip(frame["family"], frame["method"], strict=True))
        for metric in get_task(task).metrics:
            printed = [
                paper_value(task, metric, families[family], names[method], "table2")
                for family, method in rows
            ]
            known = printed if condition in _OF_PAPER else [None] * len(rows)
            frame[f"paper {metric}"] = pd.Series(known, dtype=float)
        frames.append(_named(frame, condition))
    return pd.concat(frames, ignore_index=True)


def effects(runs: Sequence[Run], task: str) -> pd.DataFrame:
    """Every method against Instruct on the same prompt, per condition: differences and damage."""
    frames = []
    for name, run in conditions(runs, task):
        frame = table1.effects(run, task)
        frames.append(_named(frame, name))
    return pd.concat(frames, ignore_index=True)


def floors(runs: Sequence[Run], task: str) -> pd.DataFrame:
    """Answers that need neither a model nor a history, on the test users of every condition."""
    frames = []
    for condition, run in conditions(runs, task):
        if condition == WITH_HISTORY:  # the same users as without
            continue
        frame = table1_details.floors(run, task)
        known = frame["baseline"].str.startswith(("user ", "last "))
        frames.append(_named(frame[~known & (frame["users"] == "test users")], condition))
    return pd.concat(frames, ignore_index=True).drop(columns="users")


def _named(frame: pd.DataFrame, condition: str) -> pd.DataFrame:
    frame = frame.copy()
    frame.insert(0, "condition", condition)
    return frame


def verdicts(runs: Sequence[Run], notebook: str) -> list[Verdict]:
    """Per task, condition and family one verdict per claim of :data:`CLAIMS`.

    A condition in which a method or one of its controls was not run is not judged, and ALOE, which
    the paper compares with in Table 2, is compared with in its reading alone. In an embedded world
    the reading without history is judged only where users share a taste, which is a condition of
    its own: elsewhere nothing can be known of such a user, so the world would decide the verdict,
    and its rows are a control.
    """
    return [
        _verdict(run, task, condition, family, claim, notebook)
        for task in tasks_of(runs)
        for condition, run in conditions(runs, task)
        if condition != NO_HISTORY or run.data[task].truth is None
        for family in run.families
        for claim, (method, base, others) in CLAIMS.items()
        if having(run.of(task, family), method, base, *others)
        and (base != "aloe" or condition == NO_HISTORY)
    ]


def _verdict(
    run: Run, task: str, condition: str, family: str, claim: str, notebook: str
) -> Verdict:
    method, base, others = CLAIMS[claim]
    metric = get_task(task).metrics[0]
    cells = having(run.of(task, family), method, base, *others)
    printed = method == "chameleon" and condition in _OF_PAPER
    return judged_claim(
        run,
        task,
        family,
        f"{READINGS[condition]}, {claim}",
        estimate(run, cells, method, metric, base),
        {name: estimate(run, cells, method, metric, name) for name in others},
        section="4.3",
        notebook=notebook,
        csv=f"tables/table2_{task}_effects.csv",
        paper=_paper_change(task, metric, family, base) if printed else NOT_IN_PAPER,
        own=not printed,
        remark=f"reading: {condition}",
    )


def _paper_change(task: str, metric: str, family: str, base: str) -> str:
    """The paper's gain of CHAMELEON for new users; it has no Instruct for them but Table 1's."""
    before = (
        paper_value(task, metric, family, "ALOE", "table2")
        if base == "aloe"
        else paper_value(task, metric, family, "Instruct")
    )
    words = "" if base == "aloe" else ", over Instruct with history"
    after = paper_value(task, metric, family, "CHAMELEON", "table2")
    if before is None or after is None:
        return "not in the paper"
    return f"{after - before:+.3f} ({before:.3f} → {after:.3f}){words}"
