"""Section 4.5 by the wall clock: every method is really stopped when its seconds are spent.

The clock of a method starts with nothing but users and their selected history. A method that needs
synthetic pairs writes them for one user after another, in random order, until half of its budget is
gone; then it learns from what it has. Trainings and fits are asked after every step whether time is
up, with the schedule of the full run; at least one step is made. CCS cannot be stopped: how far it
went beyond is in the table. Outside the clock: loading model and libraries, asking the test users.
A training that is stopped in its warm-up has hardly moved: that is what its budget buys.

What comes out depends on the machine, hence no verdict and no compared table is made of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lib.core.contrasts import contrasts_from_pairs
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import PreparedUser, keep_different
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.answering import Answers, Exam
from chameleon_lib.sections.arms import draw_group
from chameleon_lib.sections.data import without_gold
from chameleon_lib.sections.fits import stored_directions, timed_fit
from chameleon_lib.sections.grid import Plan, run_grid, studied
from chameleon_lib.sections.per_user.cell import with_gold
from chameleon_lib.sections.results import Cell, Run
from chameleon_lib.sections.scoring import reference_answers, score_cell
from chameleon_lib.sections.seconds import Deadline, write_pairs
from chameleon_lib.sections.study import Study
from chameleon_lib.sections.time_budget.arms import kind_of
from chameleon_lib.sections.time_budget.seconds import save_measured, wall_clock
from chameleon_lib.sections.time_budget.study import OURS, RIVALS, TASK, base_of
from chameleon_lib.sections.tunings import (
    TunedStudy,
    aloe_settings,
    dpo_settings,
    stored_aloe,
    stored_dpo,
)

MODES = ("fractions", "wall_clock")

Clock = Callable[[], float]


def parse_budgets(text: str, profile: RunProfile) -> tuple[float, ...]:
    """Seconds from "2,4,8"; empty means the profile's: the paper's minutes, or what suits the demo.

    Raises:
        UserError: Anything but positive numbers divided by commas.
    """
    small = all(name.startswith("demo:") for name in profile.studied)
    words = text or ("2,4,8" if small else "600,1200,1800,2400")
    try:
        found = tuple(float(word) for word in words.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < seconds < float("inf") for seconds in found):
        raise UserError(f"budgets is {text!r}; give seconds divided by commas, such as 2,4,8.")
    return tuple(sorted(found))


def measure(
    mode: str, budgets: str, profile: RunProfile, settings: EditSettings, **options: Any
) -> str:
    """The wall-clock mode of the notebook; a sentence on what was done.

    Raises:
        UserError: An unknown mode, or malformed budgets.
    """
    if mode not in MODES:
        raise UserError(f"mode is {mode!r}; choose one of {', '.join(MODES)}.")
    seconds = parse_budgets(budgets, profile)
    if mode == "fractions":
        return "Not run: set mode to wall_clock to stop every method at equal seconds."
    frame = wall_clock(run(profile, settings, seconds, **options))
    where = save_measured(frame, "04_wall_clock", profile.name, "budget", "budget, seconds (log)")
    return f"Every method was stopped at {', '.join(f'{s:g}' for s in seconds)} s: see {where}."


def run(
    profile: RunProfile, settings: EditSettings, budgets: Sequence[float], **options: Any
) -> Run:
    """Every method at every budget; ``options`` are those of ``grid.run_grid``."""
    work = partial(_compute, budgets=tuple(budgets))
    # One process: two trainings at a time would share what the clock counts.
    return run_grid(work, studied(profile), settings, tasks=(TASK,), **{**options, "workers": 1})


def _compute(plan: Plan, backbone: str, budgets: tuple[float, ...]) -> list[Cell]:
    desk = plan.open(backbone)
    study = desk.study
    train, _ = study.prepare(without_gold(desk.data.train))
    exam = Exam(study, desk.test, reference_answers(study, desk.data, desk.test))
    plain = exam.answer({"instruct": ("instruct", None)})
    size, cells = base_of(plan.profile, plan.settings), []
    for budget in budgets:
        results = {"instruct": [plain["instruct"]]}
        logs = []
        for index in plan.draws:
            group = with_gold(draw_group(train, size, index), desk.data.train)
            log: dict[str, Any] = {"users": len(group), "budget": budget}
            for method in (*OURS, *RIVALS):
                answers, log[method] = _kept(exam, group, method, budget, index)
                results.setdefault(method, []).append(answers)
            logs.append(log)
        cells.append(score_cell(desk, results, logs, f"{budget:g} s"))
    return cells


def _kept(
    exam: Exam, group: Sequence[PreparedUser], method: str, budget: float, index: int
) -> tuple[Answers, dict[str, Any]]:
    """:func:`within`, kept in the store: an interrupted run goes on where it stopped."""
    study = exam.study

    def compute() -> dict[str, Any]:
        tell(f"{study.backbone_id} {study.task}: {method} within {budget:g} s, draw {index}")
        answers, log = within(exam, group, method, budget, index)
        return {"json": {"texts": answers.texts, "log": log}, "tensors": {"margin": answers.margin}}

    inputs = [
        study.fingerprint, study.settings.canonical(), method, budget, index,
        [user.user.id for user in group],
        [query.text for user in exam.users for query in user.user.queries],
    ]  # fmt: skip
    record = study.store.get_or_compute(
        "wall_clock",
        inputs,
        compute,
        modules=(__name__,),
        about=[user.user.id for user in (*group, *exam.users)],
    )
    kept = record["json"]
    return Answers(kept["texts"], np.asarray(record["tensors"]["margin"])), kept["log"]


def within(
    exam: Exam,
    group: Sequence[PreparedUser],
    method: str,
    budget: float,
    index: int,
    clock: Clock = time.perf_counter,
) -> tuple[Answers, dict[str, Any]]:
    """One method within its seconds, from users to the answers of the test users.

    Args:
        exam: Of the untouched backbone.
        group: Train users with gold answers, which ALOE alone reads.
        method: ``chameleon``, ``fitted``, ``dpo`` or ``aloe``.
        budget: Seconds.
        index: Seeds the order of users and the training.
        clock: Gives seconds.

    Returns:
        Answers, and what fitted into the budget.
    """
    study = exam.study
    log: dict[str, Any] = {"queries": 0, "pairs": 0}
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
        # A store of its own: nothing of what is timed may be there already.
        fresh = Study(
            study.profile, study.backbone_id, study.task, study.settings,
            ArtifactStore(Path(folder)),
        )  # fmt: skip
        # Loading models and libraries is no part of any method.
        _ = fresh.backbone, fresh.fingerprint
        if method in RIVALS:
            import_module("chameleon_lib.baselines.trainers")
        deadline = Deadline(budget, clock)
        if method == "aloe":
            tuned = stored_aloe(fresh, group, aloe_settings(fresh), index, stop=deadline.passed)
            log |= {"queries": tuned.log.queries, "steps": tuned.log.steps}
        else:
            pairs = write_pairs(fresh, group, index, deadline)
            kept, identical = keep_different(pairs, study.settings)
            log |= {"queries": len(pairs), "pairs": len(kept), "written": deadline.spent()}
            contrasts = contrasts_from_pairs(study.task, kept, identical, study.settings)
            if method == "chameleon":
                h_p, h_n = fresh.activations(kept)
                found = stored_directions(fresh, "paper", h_p, h_n, index)
                edit, log["steps"] = found.to_edit(study.settings), study.settings.ccs_epochs
            elif method == "fitted":
                prompts = PlainPrompts(fresh.backbone, [c.prompt for c in contrasts])
                edit, record, _ = timed_fit(
                    fresh, contrasts, prompts, index, "fitted", stop=deadline.passed
                )
                log["steps"] = len(record["loss"])
            else:
                tuned = stored_dpo(
                    fresh, contrasts, dpo_settings(fresh), index, stop=deadline.passed
                )
                log["steps"] = tuned.log.steps
        log["seconds"] = deadline.spent()
    if method in OURS:
        return exam.answer({method: ("instruct", edit)})[method], log
    after = exam.of(TunedStudy(study, tuned))
    return after.answer({method: (kind_of(study, method), None)})[method], log
