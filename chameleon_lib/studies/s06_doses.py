"""Dose and response: the effect of the edits in worlds of weaker and stronger planted tastes.

Only an embedded world can show it. The strength of a world decides how often a user's taste wins
where it could, in histories and gold answers alike: at 0.25 three of four such labels are generic.
All else is the same at every dose, users, sentences and the chance that decides each label, so that
doses are compared user by user. Since the golds follow the dose, an edit of constant push would
gain accuracy with it; the margin between the user's and the generic answer does not know the golds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreparedUser, fit_context
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import NOT_RUN, Estimate
from chameleon_lib.kit.tables import span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies.arms import exam_of, groups_of, score_cell
from chameleon_lib.studies.data import TaskData, without_gold
from chameleon_lib.studies.frame import (
    NOT_IN_PAPER,
    Claim,
    Row,
    Term,
    better,
    contrast,
    curve,
    difference,
    drawn,
    judge,
    pick,
    places,
    tabulate,
    where_defined,
)
from chameleon_lib.studies.methods import FITTED, PAPER, method_of
from chameleon_lib.studies.run import Arm, Cell, Desk, Plan, Run, in_all, run_grid, studied
from chameleon_lib.studies.s06_ledger import line_names
from chameleon_lib.studies.study import Study

DOSES = (0.25, 0.5, 0.95)
# Train and test; histories and insights of every world are made anew. Three of ten test users
# have no margin, which is judged: enough others must be left for a verdict.
USERS = (80, 145)
GROUP = 50


def run(
    profile: RunProfile,
    settings: EditSettings,
    *,
    doses: Sequence[float] = DOSES,
    users: tuple[int, int] = USERS,
    group: int = GROUP,
    **options: Any,
) -> Run | None:
    """Compute the doses; None where tastes cannot be planted.

    The selection is not that of ``settings``: histories of exchangeable items need no embedder,
    whose cost would be that of all answers.

    Args:
        profile: Its studied backbones are used.
        settings: Every other choice of the method.
        doses: Strengths of the world.
        users: Train users, at most, and test users; a smaller ``max_users`` caps both.
        group: Users per group, at most.
        options: Those of :func:`chameleon_lib.studies.run.run_grid`.
    """
    if profile.data != "demo" or options.get("data_dir"):
        return None
    sized = replace(
        studied(profile),
        n_train=min(profile.n_train, users[0]),
        n_test=users[1],
    )
    light = settings.with_(
        selection_rule="recent",
        group_size=min(settings.group_size, group),
        pairs_on_too_few="warn",  # a weak taste leaves few pairs: that is a finding (A20)
    )
    return run_grid(partial(_compute, doses=tuple(doses)), sized, light, **options)


def doses_of(done: Run) -> dict[str, float]:
    """Condition → strength of its world."""
    return {cell.condition: float(cell.draws[0]["strength"]) for cell in done.cells}


def _compute(plan: Plan, backbone: str, *, doses: Sequence[float]) -> list[Cell]:
    plans = [replace(plan, world=(*plan.world, ("strength", dose))) for dose in doses]
    worlds = [each.data() for each in plans]
    tested = in_all(
        _asked(each.study(name), data.test)
        for name in sorted(plan.profile.backbones, key=lambda name: name == backbone)
        for each, data in zip(plans, worlds, strict=True)
    )
    return [
        _cell(each.study(backbone), data, plan.draws, dose, tested)
        for each, data, dose in zip(plans, worlds, doses, strict=True)
    ]


def _asked(study: Study, users: Sequence[User]) -> list[PreparedUser]:
    """Test users with the items that fit; Instruct shows no insight, so none is written."""
    blind = without_gold(users)
    found = []
    for user, indices in zip(blind, study.select(blind), strict=True):
        items = [user.history[index] for index in indices]
        fitting = fit_context(study.backbone, user, items, study.settings)
        if fitting:
            found.append(PreparedUser(user, fitting, "", "", len(items) - len(fitting)))
    return found


def _cell(
    study: Study, data: TaskData, draws: Sequence[int], dose: float, tested: Collection[str]
) -> Cell:
    """All arms of one backbone at one dose: paper's, fitted and random edit of every group."""
    tell(f"{study.backbone_id} {study.task}: taste of strength {dose:g}, {len(tested)} test users")
    test = [user for user in _asked(study, data.test) if user.user.id in tested]
    counts = {"users": len(data.test), "too_long": len(data.test) - len(test)}
    desk = Desk(study, data, test, counts)
    arms: dict[Arm, tuple[str, Edit | None]] = {Arm("instruct"): ("instruct", None)}
    logs = []
    for group in groups_of(study, desk.train, draws):
        case, index = study.case(group.pairs, group.index), group.index
        edits = {
            PAPER: case.edit("paper"),
            "random": case.edit("random", 1000 + index),
            FITTED: study.preference_fit(case.contrasts, seed=index).edit,
        }
        arms |= {Arm(name, index): ("instruct", edit) for name, edit in edits.items()}
        logs.append({**group.log(case), "strength": dose})
    return score_cell(desk, exam_of(desk).answer(arms), logs, f"strength {dose:g}")


# ---- What came out

TITLES = {
    PAPER: method_of(PAPER).title,
    FITTED: method_of(FITTED).title,
    "random": "random directions",
}


def responses(done: Run) -> pd.DataFrame:
    """Every edit against Instruct at every dose: primary metric and margin."""

    def rows(part: pd.DataFrame) -> Iterator[Row]:
        task, model = (part[name].iloc[0] for name in ("task", "model"))
        for method, title in TITLES.items():
            for condition, strength in doses_of(done).items():
                logs = [log for cell in done.at(task, model, condition) for log in cell.draws]
                kept = float(np.mean([log["kept"] for log in logs]))
                shown = {"edit": title, "strength": strength, "pairs kept": kept}
                at = pick(part, condition=condition)
                yield shown, partial(difference, at, method, "instruct")

    table = tabulate(done.frame, rows)
    return table.assign(**{"pairs kept": table.pop("pairs kept")})


def slope(part: pd.DataFrame, doses: dict[str, float], method: str, against: str, metric: str
          ) -> Estimate:  # fmt: skip
    """Least-squares slope of ``method`` minus ``against`` over the strength, per unit of it.

    The slope is a weighted sum of the differences at the doses, so it is resampled over users like
    any other contrast. ``part`` holds the rows of one task and model, ``doses`` maps a condition to
    its strength, and the metric is a mean.
    """
    values = np.array(list(doses.values()))
    centred = values - values.mean()
    weights = centred / (centred**2).sum()
    terms: list[Term] = []
    for weight, condition in zip(weights, doses, strict=True):
        at = pick(part, condition=condition)
        terms.append((float(weight), pick(at, method=method)))
        terms.append((-float(weight), pick(at, method=against)))
    return contrast(terms, metric)


def slopes(done: Run) -> pd.DataFrame:
    """Slopes of the differences to Instruct, per unit of strength."""

    def rows(part: pd.DataFrame) -> Iterator[Row]:
        for method, title in TITLES.items():
            yield {"edit": title}, partial(slope, part, doses_of(done), method, "instruct")

    return tabulate(done.frame, rows, "{metric} slope").drop(columns="metric")


def verdicts(done: Run | None, profile: RunProfile, notebook: str) -> list[Verdict]:
    """Does the effect follow the dose? One verdict per model and edit, against random directions.

    Judged by the margin: accuracy follows the dose by itself, since the golds do.
    """
    words = "the effect grows with the planted preference strength"
    split, csv = "test users of the embedded world", "tables/controls_g_slopes.csv"
    measure = "margin slope, nats per unit of strength"
    scorer = "margin of the user's over the generic answer, nats per unit of strength"
    if done is None:
        note = f"Only the embedded world plants tastes; the {profile.name} profile reads real users"
        return [
            Verdict(
                words=words, section="4.2", notebook=notebook, paper=NOT_IN_PAPER, ours=None,
                status=NOT_RUN, n=0, seeds=0, scorer=scorer, csv=csv, note=note, split=split,
                own=True, metric="margin", measure=measure,
            )
        ]  # fmt: skip
    claims = []
    for (task, model), part in places(done.frame, "task", "model"):
        for method in (PAPER, FITTED):
            effect, beyond = (
                where_defined(slope, part, doses_of(done), method, other, "margin")
                for other in ("instruct", "random")
            )
            claims.append(
                Claim(
                    task,
                    model,
                    f"{TITLES[method]}: {words}",
                    effect,
                    {"random": beyond} if beyond else {},
                    split=split,
                    note="must also beat: the slope of random directions",
                    measure=measure,
                    metric="margin",
                    scorer=scorer,
                    upwards=True,
                )
            )
    return judge(claims, section="4.2", notebook=notebook, csv=csv)


def figure(table: pd.DataFrame, task: str, metric: str, publish: Publisher) -> FigureOutput:
    """The change against Instruct over the strength, a line per edit and model."""
    title = task.replace("_", "-")
    part = table[table["task"] == title]
    data = drawn(part.assign(line=line_names(part)), f"{metric} change", "line", "strength")
    return curve(
        publish,
        data,
        f"06_dose_{metric}_{task}",
        made_by=figure,
        title=f"{title}: {metric} change by dose",
        caption=(
            f"Change of {metric} against Instruct in worlds of weaker and stronger tastes, 95 % "
            f"intervals over the same {span(data['n'])} test users"
        ),
        x="strength",
        xlabel="planted strength of the taste",
        ylabel=f"{metric} change" + (", nats" if metric == "margin" else ""),
        group="line",
        reference=0.0,
        reference_label="Instruct",
        better=better(metric),
    )
