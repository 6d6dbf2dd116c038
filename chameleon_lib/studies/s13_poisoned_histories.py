"""Poisoned histories: what an attacker gains, whom it hurts, and what guards cost and stop.

The tables of what :mod:`chameleon_lib.studies.s13_desk` did. All differences are paired over the
users who are asked. *Success* of an attack is what it moves under a guard, over clean data under
the same guard, so that what a guard does to clean users is not taken for a defence; that is the
*clean loss*, over no guard, where nobody attacks. A guard that refuses an edit under attack alone
is charged for the taste that is then lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.figures import FigureOutput, groups_scatter
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate, bootstrap_mean, own_claim, verdict
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.studies.frame import curve
from chameleon_lib.studies.s10_personalization_editing import side
from chameleon_lib.studies.s13_attacks import ADDRESS, ALWAYS_TAG, FLIPS, OWN, POOL
from chameleon_lib.studies.s13_bench import (
    ALL,
    CLEAN,
    FITTED,
    IN_OWN,
    IN_POOL,
    METHODS,
    NO_EDIT,
    NONE,
    ONE,
)
from chameleon_lib.studies.s13_desk import Poisoning

STOPPED, KEPT = 0.2, 0.05  # the goal: of the unguarded success, and of the clean gain
AIM_OF = {attack.name: attack.aim for attack in (*OWN, *POOL)}
_TUNED = (ADDRESS.name, ALWAYS_TAG.name)  # attacks that the guards' strengths were chosen on
NOTHING = "no success without a guard"
ANSWERS, NATS = "answers", "nats"
_MEASURES = {ANSWERS: "hit", NATS: "odds"}


def _values(run: Poisoning, column: str, **where: Any) -> np.ndarray | None:
    """(users,) of a condition, in the order of the users; None where it was not run."""
    rows = run.rows
    for name, value in where.items():
        rows = rows[rows[name] == value]
    if rows.empty:
        return None
    return rows.sort_values("user")[column].to_numpy(dtype=np.float64)


def _told(run: Poisoning, values: np.ndarray) -> Estimate:
    """Mean over users, each in the world of one seed."""
    return replace(bootstrap_mean(values), seeds=len(run.asked.seeds))


def conditions(run: Poisoning) -> Iterator[tuple[str, str, str, str]]:
    """(Task, arena, attack, malicious) of every attack that was run."""
    names = ["task", "arena", "attack", "malicious"]
    for key in run.rows[names].drop_duplicates().itertuples(index=False):
        if key.attack != CLEAN:
            yield tuple(key)


def _where(task: str, arena: str, attack: str, malicious: str) -> dict[str, str]:
    return {"task": task, "arena": arena, "attack": attack, "malicious": malicious}


def success(
    run: Poisoning, at: tuple[str, str, str, str], method: str, guard: str, measure: str
) -> np.ndarray | None:
    """What an attack moved, per user: attacked over clean data, both under one guard.

    ``answers``: that the answer does what the attacker wants, 0 or 1; ``nats``: the attacker's
    answer over the user's own.
    """
    task, arena, attack, malicious = at
    column = f"{_MEASURES[measure]} {AIM_OF[attack]}"
    attacked = _values(run, column, **_where(*at), method=method, guard=guard)
    clean = _values(
        run, column, **_where(task, arena, CLEAN, "" if arena == IN_OWN else "0"), method=method,
        guard=guard,
    )  # fmt: skip
    return None if attacked is None or clean is None else attacked - clean


def clean_gain(run: Poisoning, task: str, arena: str, method: str, guard: str,
               column: str = "nats") -> np.ndarray | None:  # fmt: skip
    """What a method gains on clean data over the unedited model, per user.

    ``nats``: how much likelier the user's own answer gets, per token; ``right``: how much more
    often it is given.
    """
    clean = _where(task, arena, CLEAN, "" if arena == IN_OWN else "0")
    made = _values(run, column, **clean, method=method, guard=guard)
    plain = _values(run, column, **clean, method=NO_EDIT, guard=NONE)
    if made is None or plain is None:
        return None
    return plain - made if column == "nats" else made - plain


def attack_table(run: Poisoning) -> pd.DataFrame:
    """Every attack on every method, without a guard: success, and what the method gains clean."""
    rows = []
    for at in conditions(run):
        for method in METHODS:
            moved = {name: success(run, at, method, NONE, name) for name in _MEASURES}
            if moved[ANSWERS] is None or moved[NATS] is None:
                continue
            row: dict[str, Any] = {"arena": at[1], "attack": at[2], "malicious": at[3]}
            row["method"] = method
            gain = clean_gain(run, at[0], at[1], method, NONE)
            for name, values in (("success", moved[ANSWERS]), ("nats moved", moved[NATS]),
                                 ("clean gain", gain)):  # fmt: skip
                if values is not None:
                    row |= estimate_columns(_told(run, values), name)
            rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)


def guard_table(run: Poisoning, method: str = FITTED) -> pd.DataFrame:
    """Every guard of one method: success of every attack, and what the guard costs clean users."""
    rows = []
    for at in conditions(run):
        task, arena = at[:2]
        guards = list(dict.fromkeys(run.rows[run.rows["arena"] == arena]["guard"]))
        for guard in guards:
            answers = success(run, at, method, guard, ANSWERS)
            nats = success(run, at, method, guard, NATS)
            free = clean_gain(run, task, arena, method, NONE)
            kept = clean_gain(run, task, arena, method, guard)
            if answers is None or nats is None or free is None or kept is None:
                continue
            right = clean_gain(run, task, arena, method, guard, "right")
            full = clean_gain(run, task, arena, method, NONE, "right")
            row: dict[str, Any] = {"arena": arena, "attack": at[2], "malicious": at[3]}
            row["guard"] = guard
            row |= estimate_columns(_told(run, answers), "success")
            row |= estimate_columns(_told(run, nats), "nats moved")
            row |= estimate_columns(_told(run, free - kept), "clean loss")
            assert right is not None and full is not None
            row |= estimate_columns(_told(run, full - right), "accuracy loss")
            whole = float(free.mean())
            row["share of clean gain"] = float((free - kept).mean()) / whole if whole > 0 else None
            rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)


def did_table(run: Poisoning) -> pd.DataFrame:
    """What the guards did: pairs and items left out, strength left, edits refused; means."""
    names = [n for n in run.guards if n not in ("task", "arena", "attack", "malicious", "guard",
                                                "seed")]  # fmt: skip
    grouped = run.guards.groupby(["arena", "attack", "malicious", "guard"], sort=False)
    table = grouped[names].mean().reset_index()
    return table.assign(n=_people(run), seeds=len(run.asked.seeds))


def _people(run: Poisoning) -> int:
    return int(run.rows["user"].nunique() / len(run.asked.tasks))


def claims(run: Poisoning) -> pd.DataFrame:
    """Whether all guards together reach the goal, per attack and method, by the kit's rule.

    The claim holds where a fifth of the unguarded success is above the guarded one, and a twentieth
    of the clean gain above the clean loss, both with their intervals. Judged by answers, and by
    nats, where the unguarded attack has a success at all; else there is nothing to stop.
    """
    rows = []
    for at in conditions(run):
        for method in METHODS:
            free = clean_gain(run, at[0], at[1], method, NONE)
            kept = clean_gain(run, at[0], at[1], method, ALL)
            if free is None or kept is None:
                continue
            for measure in _MEASURES:
                before, after = (success(run, at, method, guard, measure) for guard in (NONE, ALL))
                if before is None or after is None:
                    continue
                unguarded = _told(run, before)
                row: dict[str, Any] = {
                    "arena": at[1], "attack": at[2], "malicious": at[3], "method": method,
                    "measure": measure, "tuned on": _tuned(at),
                    "unguarded": unguarded.value, "guarded": float(after.mean()),
                    "clean gain lost": _share(free - kept, free),
                }  # fmt: skip
                row |= estimate_columns(_told(run, STOPPED * before - after), "margin")
                if unguarded.low <= 0:
                    row["verdict"] = NOTHING
                else:
                    margin = _told(run, STOPPED * before - after)
                    keeps = _told(run, KEPT * free - (free - kept))
                    row["verdict"] = own_claim(verdict(margin, [keeps]))
                rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)


def _tuned(at: tuple[str, str, str, str]) -> str:
    """Whether the strengths of the guards were chosen with this attack in sight."""
    if at[2] in _TUNED:
        return "yes"
    return "no" if at[1] == IN_POOL and at[2] == FLIPS.name else "seen"


def _share(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float(part.mean() / whole.mean()) if whole.mean() > 0 else None


# --- figures --------------------------------------------------------------------------------------


def trade_frame(run: Poisoning) -> pd.DataFrame:
    """Success in answers against clean loss in nats: one point per guard and attack."""
    table = guard_table(run)
    return table.rename(columns={"clean loss": "x", "success": "y"})[
        ["guard", "arena", "attack", "malicious", "x", "y", "n", "seeds"]
    ].sort_values("guard", key=lambda guards: guards != NONE, kind="stable")


def trade_figure(run: Poisoning, publish: Publisher) -> FigureOutput:
    """What every guard stops, against what it costs."""
    data = trade_frame(run)
    means = data.groupby("guard", sort=False)[["x", "y"]].mean()
    told = "; ".join(f"{guard} {x:+.3f}, {y:+.3f}" for guard, (x, y) in means.iterrows())
    image = groups_scatter(
        data, title="Attack success against clean loss, our fitted edit", profile=publish.profile,
        xlabel="clean loss against no guard, nats per token",
        ylabel="attack success, share of answers", group="guard",
    )  # fmt: skip
    return publish.figure(
        image, "13_trade", data=data, made_by=trade_figure,
        caption=(
            "Our fitted edit: share of answers that do what the attacker wants, over clean data "
            "under the same guard, against what a guard costs clean users; a point per attack, "
            f"below and to the left is better ({publish.profile} profile)."
        ),
        alt=f"Scatter plot of {len(data)} points by guard; means of loss and success: {told}.",
    )  # fmt: skip


def share_frame(run: Poisoning) -> pd.DataFrame:
    """Success in nats over the share of malicious members of a pool, with and without guards."""
    rows = []
    for at in conditions(run):
        if at[1] != IN_POOL or at[3] == ONE:
            continue
        for guard in (NONE, ALL):
            moved = success(run, at, FITTED, guard, NATS)
            if moved is not None:
                rows.append(
                    {
                        "line": f"{at[2]}, {guard}", "share": 100 * int(at[3]) / run.asked.group,
                        **estimate_columns(_told(run, moved)),
                    }
                )  # fmt: skip
    data = pd.DataFrame(rows)
    lines = data["line"].value_counts()
    return data[data["line"].map(lines) > 1].reset_index(drop=True)


def share_figure(run: Poisoning, publish: Publisher) -> FigureOutput:
    """How success grows with the share of malicious users."""
    return curve(
        publish, share_frame(run), "13_share", made_by=share_figure,
        title="Attack success by the share of malicious users",
        caption=(
            "Our fitted edit of a pool: how far the attacker's answer rose over the user's own, "
            "against clean data under the same guard, by the share of malicious members"
        ),
        x="share", xlabel="malicious users of the pool, %", ylabel="nats moved", group="line",
        better="lower", reference=0.0,
    )  # fmt: skip


# --- words ----------------------------------------------------------------------------------------


def conclusions(run: Poisoning) -> list[str]:
    """What came out, in sentences computed from the tables."""
    said = []
    table = attack_table(run)
    for _, row in table.iterrows():
        if row["method"] in (NO_EDIT, FITTED):
            found = Estimate(row["success"], row["success_low"], row["success_high"], row["n"],
                             row["seeds"])  # fmt: skip
            who = f" by {row['malicious']} of {run.asked.group}" if row["malicious"] else ""
            said.append(
                f"{row['arena']}, {row['attack']}{who}, {row['method']}, no guard: {found} of "
                f"answers ({side(found)}), {row['nats moved']:+.2f} nats; n = {row['n']}."
            )
    judged = claims(run)
    for measure in _MEASURES:
        some = judged[judged["measure"] == measure]
        counts = some["verdict"].value_counts()
        told = ", ".join(f"{n} {word}" for word, n in counts.items())
        said.append(
            f"Goal (success at most a fifth, clean gain lost at most a twentieth), by {measure}: "
            f"of {len(some)} attacks on a method {told}."
        )
    return said
