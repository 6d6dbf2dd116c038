"""Section 4.5, Figure 4: what CHAMELEON, DPO and ALOE gain from the same budget, on LaMP-2.

The paper gives each method the samples that fit into 10, 20, 30 and 40 minutes. Appendix A.5 turns
these into shares of "the LaMP-2 partition": 40/60/80/100 % for DPO and 7/23/39/55 % for ALOE. Here
every method is trained at its four shares, in the order of the paper's labels; edits take DPO's
shares, of the very same pairs. What a point costs is counted, not timed (see ``costs``), so that
the figure comes out the same on every machine; seconds are kept apart (``time_budget_seconds``).

"100 %" is the group of Table 1 in the demo: 100 % DPO and the edits at 100 % are then the very
trainings of notebook 01. The other profiles take all of their train users. To stay within minutes
the demo leaves out the third of the four labels (:func:`points_of`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.sections.answering import Answers, Exam
from chameleon_lib.sections.arms import draw_group
from chameleon_lib.sections.data import without_gold
from chameleon_lib.sections.grid import Plan, run_grid, studied
from chameleon_lib.sections.per_user.cell import with_gold
from chameleon_lib.sections.results import Cell, Run
from chameleon_lib.sections.scoring import reference_answers, score_cell
from chameleon_lib.sections.seconds import measured_rates
from chameleon_lib.sections.seen import said
from chameleon_lib.sections.time_budget.arms import Log, Lot, edit_lot, seen_by, tune_lot
from chameleon_lib.sections.time_budget.costs import weights_of

TASK = "LaMP_2"
OURS, RIVALS = ("chameleon", "fitted"), ("dpo", "aloe")

@dataclass(frozen=True)
class Point:
    """One of the paper's four labels: its minutes, and the shares that A.5 gives for them."""

    minutes: int
    pairs: float
    gold: float

    @property
    def name(self) -> str:
        """As in ``Cell.condition``."""
        return f"paper's {self.minutes} min"

    def share(self, method: str) -> float:
        """Share of the training queries that a method gets."""
        return self.gold if method == "aloe" else self.pairs


POINTS = (
    Point(10, 0.40, 0.07),
    Point(20, 0.60, 0.23),
    Point(30, 0.80, 0.39),
    Point(40, 1.00, 0.55),
)


def points_of(profile: RunProfile) -> tuple[Point, ...]:
    """The labels that a profile can afford."""
    return (*POINTS[:2], POINTS[-1]) if _embedded(profile) else POINTS


def base_of(profile: RunProfile, settings: EditSettings) -> int:
    """Train users that count as 100 %."""
    return settings.group_size if _embedded(profile) else profile.n_train


def _embedded(profile: RunProfile) -> bool:
    return all(name.startswith("demo:") for name in profile.studied)


def run(profile: RunProfile, settings: EditSettings, **options: Any) -> Run:
    """Compute the study; ``options`` are those of :func:`chameleon_lib.sections.grid.run_grid`."""
    return run_grid(_compute, studied(profile), settings, tasks=(TASK,), **options)


def what_is_run(profile: RunProfile, settings: EditSettings) -> str:
    """The labels and the base of the shares, in a sentence."""
    points = points_of(profile)
    labels = ", ".join(
        f"{p.name} ({p.pairs:.0%} of the pairs, {p.gold:.0%} of the gold answers)" for p in points
    )
    left_out = len(POINTS) - len(points)
    return (
        f"Run here: {labels}; {left_out} of the paper's labels left out. 100 % are at most "
        f"{base_of(profile, settings)} train users."
    )


def _compute(plan: Plan, backbone: str) -> list[Cell]:
    desk = plan.open(backbone)
    study, points = desk.study, points_of(plan.profile)
    tell(f"{backbone} {study.task}: {len(points)} budgets, {len(plan.draws)} groups")
    train, _ = study.prepare(without_gold(desk.data.train))
    pairs = study.pairs(train)
    exam = Exam(study, desk.test, reference_answers(study, desk.data, desk.test))
    plain = exam.answer({"instruct": ("instruct", None)})
    results: dict[str, dict[str, list[Answers]]] = {
        point.name: {"instruct": [plain["instruct"]]} for point in points
    }
    logs: dict[str, list[Log]] = {point.name: [] for point in points}
    before = said(study, train, "instruct")
    weights, size = weights_of(study.backbone), base_of(plan.profile, plan.settings)
    rates = measured_rates(study, train)
    for index in plan.draws:
        group = with_gold(draw_group(train, size, index), desk.data.train)
        lot = Lot.of(study, group, pairs, index)
        edits: dict[str, tuple[str, Edit | None]] = {}
        for point in points:
            log, ready = edit_lot(lot, point.pairs, weights, rates)
            edits |= {f"{name}@{point.name}": ("instruct", edit) for name, edit in ready.items()}
            for name in RIVALS:
                answers, log[name], tuned = tune_lot(
                    exam, lot, name, point.share(name), weights, rates
                )
                results[point.name].setdefault(name, []).append(answers)
                if point is points[-1]:
                    share = point.share(name)
                    log[name]["seen"] = seen_by(lot, name, share, tuned, before)
            logs[point.name].append({"users": len(group), **log})
        for key, answers in exam.answer(edits).items():
            name, condition = key.split("@")
            results[condition].setdefault(name, []).append(answers)
    return [score_cell(desk, results[p.name], logs[p.name], p.name) for p in points]
