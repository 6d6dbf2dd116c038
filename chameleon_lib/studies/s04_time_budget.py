"""Section 4.5, Figure 4: what CHAMELEON, DPO and ALOE gain from the same budget, on LaMP-2.

The paper gives each method the samples that fit into 10, 20, 30 and 40 minutes. Appendix A.5 turns
these into shares of "the LaMP-2 partition": 40/60/80/100 % for DPO and 7/23/39/55 % for ALOE. Here
every method is trained at its four shares, in the order of the paper's labels; edits take DPO's
shares, of the very same pairs. What a point costs is counted, not timed, so that the figure comes
out the same on every machine.

"100 %" is the group of Table 1 in a reduced profile: 100 % DPO and the edits at 100 % are then the
very trainings of notebook 01. The others take all of their train users. To stay within its time a
reduced profile leaves out the third of the four labels (:func:`points_of`).

**The rule.** A budget is what one of our edits costs at its largest share, the writing of the
synthetic pairs included. A rival stands there with the largest of its shares that costs no more
(DPO pays for the pairs as well, ALOE reads gold answers instead); a rival whose smallest share
costs more is taken at that share, which is in its favour.

Figure 4 shows one backbone, and its baseline is that of Mistral in Table 1; for the
encoder-decoder the same question is the kit's own. So are all claims about the fitted edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.figures import FigureOutput, line_ci
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import DIRECTION_ONLY, DOES_NOT_HOLD, HOLDS
from chameleon_lib.kit.tables import estimate_columns, span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.rivals.registry import TrainedRival
from chameleon_lib.studies.arms import exam_of, groups_of, score_cell
from chameleon_lib.studies.frame import (
    NOT_IN_PAPER,
    Claim,
    Rows,
    between,
    columns_of,
    drawn,
    estimate,
    judge,
    tabled,
)
from chameleon_lib.studies.methods import FITTED, PAPER, is_papers_decoder, method_of
from chameleon_lib.studies.rivals import change_on_seen, has_learned, quarters, said
from chameleon_lib.studies.run import Arm, Cell, Plan, Run, run_grid, split_of, studied
from chameleon_lib.studies.s04_training import OURS, Log, Lot, rivals
from chameleon_lib.studies.sweeps import Place, Results, ask, places_of

TASK = "LaMP_2"
TOLERANCE = 0.02  # accuracy; a method this close below another has its quality
PARAMETERS_GOAL, COMPUTE_GOAL = 1 / 10, 1 / 3
# Read from the plot by eye at the last label (about ±0.005); the paper prints no number.
_PLOTTED = {"dpo": "-0.02", "aloe": "+0.03"}


# --- the study -----------------------------------------------------------------------------------


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

    def share(self, rival: TrainedRival) -> float:
        """Share of the training queries that a rival gets."""
        return self.gold if rival.uses_gold else self.pairs


POINTS = (
    Point(10, 0.40, 0.07),
    Point(20, 0.60, 0.23),
    Point(30, 0.80, 0.39),
    Point(40, 1.00, 0.55),
)


def points_of(profile: RunProfile) -> tuple[Point, ...]:
    """The labels that a profile can afford."""
    return (*POINTS[:2], POINTS[-1]) if profile.reduced else POINTS


def base_of(profile: RunProfile, settings: EditSettings) -> int:
    """Train users that count as 100 %."""
    return settings.group_size if profile.reduced else profile.n_train


def run(profile: RunProfile, settings: EditSettings, **options: Any) -> Run:
    """Compute the study; ``options`` are those of :func:`chameleon_lib.studies.run.run_grid`."""
    return run_grid(_compute, studied(profile), settings, tasks=(TASK,), **options)


def _compute(plan: Plan, backbone: str) -> list[Cell]:
    desk = plan.open(backbone)
    study, points = desk.study, points_of(plan.profile)
    tell(f"{backbone} {study.task}: {len(points)} budgets, {len(plan.draws)} groups")
    exam = exam_of(desk)
    plain = exam.answer({"instruct": ("instruct", None)})["instruct"]
    before = said(study, desk.train, "instruct")
    results: Results = {point.name: {Arm("instruct"): plain} for point in points}
    logs: dict[str, list[Log]] = {point.name: [] for point in points}
    size = base_of(plan.profile, plan.settings)
    for group in groups_of(study, desk.train, plan.draws, golds=desk.data.train, size=size):
        index, lot = group.index, Lot(study, group)
        arms: dict[tuple[str, Arm], tuple[str, Edit | None]] = {}
        for point in points:
            edits, log = lot.edits(point.pairs)
            for name, edit in edits.items():
                arms[point.name, Arm(name, index)] = ("instruct", edit)
            for rival in rivals():
                share = point.share(rival)
                answers, log[rival.id], tuned = lot.tuned(exam, rival, share)
                results[point.name][Arm(rival.id, index)] = answers
                if point is points[-1]:
                    log[rival.id]["seen"] = lot.seen_by(rival, share, tuned, before)
            logs[point.name].append({"draw": index, "users": len(group.users), **log})
        ask(exam, arms, results)
    return [score_cell(desk, results[p.name], logs[p.name], p.name) for p in points]


# --- what was counted ----------------------------------------------------------------------------

_COUNTS = {
    "share": "share",
    "queries": "queries",
    "gold labels": "gold",
    "rows": "rows",
    "steps": "steps",
    "trained parameters": "trainable",
    "tokens forward": "forward",
    "tokens backward": "backward",
    "FLOPs": "flops",
    "FLOPs of the pairs": "generation",
}


def _rivals() -> list[str]:
    return [rival.id for rival in rivals()]


def counted(place: Place, method: str, key: str) -> float:
    """Mean of a count over the draws of all backbones."""
    return float(np.mean([log[method][key] for log in place.logs]))


def flops(place: Place, method: str) -> float:
    """Mean FLOPs of a method, the writing of its pairs included."""
    return counted(place, method, "flops") + counted(place, method, "generation")


def rival_within(budgets: Sequence[Place], ours: str, rival: str) -> tuple[Place, bool]:
    """Where a rival stands under the budget of one of our edits, and whether its cost is within.

    ``budgets`` are all of one model, ascending.
    """
    inside = [place for place in budgets if flops(place, rival) <= flops(budgets[-1], ours)]
    return (inside[-1], True) if inside else (budgets[0], False)


def ratios(fitted: Place, dpo: Place) -> tuple[float, float]:
    """Trained parameters and training FLOPs of the fitted edit over those of DPO."""
    parameters, compute = (
        counted(fitted, FITTED, key) / counted(dpo, "dpo", key) for key in ("trainable", "flops")
    )
    return parameters, compute


# --- tables --------------------------------------------------------------------------------------


@tabled
def points(run: Run) -> Rows:
    """One row per model, label and method: quality against Instruct, and what it cost."""
    for place in places_of(run, TASK):
        for method in (*OURS, *_rivals()):
            level = partial(estimate, place.rows, method)
            row: dict[str, Any] = {"model": place.title, "budget": place.condition}
            row["method"] = method_of(method).title
            row |= columns_of(
                {metric: f"{metric} change" for metric in ("accuracy", "f1")},
                partial(level, against="instruct"),
            )
            row |= columns_of({metric: metric for metric in ("accuracy", "valid")}, level)
            row |= {title: counted(place, method, key) for title, key in _COUNTS.items()}
            yield row | {"FLOPs with pairs": flops(place, method)}


@tabled
def learned(run: Run) -> Rows:
    """Did the rivals learn: their loss, and their answers to the very queries they were trained on.

    Without both the comparison would be void.
    """
    for full in (places_of(run, TASK, model)[-1] for model in run.models):
        for method in _rivals():
            logs = [log[method] for log in full.logs]
            ends = np.array([quarters(log["loss"]) for log in logs])  # (trainings, 2)
            gain = change_on_seen(logs)
            fell = int((ends[:, 1] < ends[:, 0]).sum())
            yield {
                "model": full.title,
                "method": method_of(method).title,
                "share": logs[0]["share"],
                "gold labels": float(np.mean([log["gold"] for log in logs])),
                "loss, first quarter": float(ends[:, 0].mean()),
                "loss, last quarter": float(ends[:, 1].mean()),
                "trainings whose loss fell": f"{fell} of {len(logs)}",
                **estimate_columns(gain, "accuracy change on seen users"),
                "learned": "yes" if has_learned(TASK, logs, gain) else "no",
            }


@tabled
def same_compute(run: Run) -> Rows:
    """Our edits at their largest share against every rival within the same compute."""
    for budgets in (places_of(run, TASK, model) for model in run.models):
        full = budgets[-1]
        for ours, rival in product(OURS, _rivals()):
            place, inside = rival_within(budgets, ours, rival)
            row: dict[str, Any] = {
                "model": full.title,
                "ours": method_of(ours).title,
                "against": method_of(rival).title,
                "share of the rival": counted(place, rival, "share"),
                "within the budget": "yes" if inside else "no, its smallest costs more",
                "FLOPs, ours": flops(full, ours),
                "FLOPs, rival": flops(place, rival),
            }
            shown = {metric: f"{metric}, ours minus rival" for metric in ("accuracy", "f1")}
            yield row | columns_of(shown, between, full.of(ours), place.of(rival))


@tabled
def same_quality(run: Run) -> Rows:
    """The fitted edit against DPO at its largest share: what does equal quality cost.

    Both learn from the same pairs, so the pairs are left out of the costs. A share has DPO's
    quality where the whole interval of the difference lies above minus :data:`TOLERANCE`.
    """
    for place in places_of(run, TASK):
        best = places_of(run, TASK, place.model)[-1]
        found = between(place.of(FITTED), best.of("dpo"), "accuracy")
        parameters, compute = ratios(place, best)
        yield {
            "model": place.title,
            "share of the fitted edit": counted(place, FITTED, "share"),
            "share of DPO": counted(best, "dpo", "share"),
            **estimate_columns(found, "accuracy, fitted minus DPO"),
            "has DPO's quality": "yes" if found.low > -TOLERANCE else "not shown",
            "trained parameters, fitted": counted(place, FITTED, "trainable"),
            "trained parameters, DPO": counted(best, "dpo", "trainable"),
            "ratio of parameters": parameters,
            "FLOPs, fitted": counted(place, FITTED, "flops"),
            "FLOPs, DPO": counted(best, "dpo", "flops"),
            "ratio of FLOPs": compute,
        }


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A table for reading: large counts in powers of ten, shares in per cent."""
    shown = frame.copy()
    for column in shown.columns:
        if "FLOPs" in column and not column.startswith("ratio"):
            shown[column] = [f"{value:.2e}" for value in shown[column]]
        elif "share" in column:
            shown[column] = [f"{value:.0%}" for value in shown[column]]
        elif column.startswith(("tokens", "trained", "queries", "gold", "rows", "steps")):
            shown[column] = [f"{value:,.0f}" for value in shown[column]]
    return shown


# --- the figure ----------------------------------------------------------------------------------

_CHANGE, _COST = "accuracy change", "FLOPs with pairs"


def compute_figure(frame: pd.DataFrame, publish: Publisher) -> FigureOutput:
    """Figure 4 of the paper with compute in place of minutes, from the table of :func:`points`."""
    data = drawn(frame, _CHANGE, "model", "method", _COST)
    figure = line_ci(
        data,
        title="LaMP-2: what a budget buys",
        profile=publish.profile,
        x=_COST,
        xlabel="FLOPs, writing of the pairs included (log)",
        ylabel="accuracy change against Instruct",
        group="method",
        panel="model",
        reference=0.0,
        reference_label="Instruct",
        decades=True,
    )
    return publish.figure(
        figure,
        "04_compute",
        alt=f"Accuracy change over compute, a line per method; {frame[_CHANGE].min():+.3f} to "
        f"{frame[_CHANGE].max():+.3f}, at {frame[_COST].min():.1e} to {frame[_COST].max():.1e} "
        "FLOPs.",
        caption=(
            f"Change of LaMP-2 accuracy against Instruct on the same {span(frame['n'])} test "
            f"users, over what the training costs by one formula; 95 % intervals over users, "
            f"{span(frame['seeds'])} groups per point. Points of a line are shares of the "
            f"training queries ({publish.profile} profile)."
        ),
        data=frame,
        made_by=points,
    )


# --- verdicts ------------------------------------------------------------------------------------


def verdicts(run: Run, notebook: str) -> list[Verdict]:
    """Every edit against every rival within the same compute; the fitted edit at DPO's quality.

    An edit that costs more does not hold the claim of equal quality, however good it is.
    """

    def judged(claim: Claim, table: str) -> Verdict:
        csv = f"tables/{table}.csv"
        told = replace(claim, split=split_of(run, TASK))
        [found] = judge([told], section="4.5", notebook=notebook, csv=csv)
        return found

    every = []
    for budgets in (places_of(run, TASK, model) for model in run.models):
        within = [_within(budgets, ours, rival) for ours in OURS for rival in _rivals()]
        every += [judged(claim, "fig4_c_same_compute") for claim in within]
        equal = judged(_quality(budgets[-1]), "fig4_d_same_quality")
        parameters, compute = ratios(budgets[-1], budgets[-1])
        cheap = parameters <= PARAMETERS_GOAL and compute <= COMPUTE_GOAL
        if equal.status in (HOLDS, DIRECTION_ONLY) and not cheap:
            equal = replace(equal, status=DOES_NOT_HOLD)
        every.append(equal)
    return every


def _within(budgets: Sequence[Place], ours: str, rival: str) -> Claim:
    full = budgets[-1]
    place, inside = rival_within(budgets, ours, rival)
    beyond = ours != PAPER or rival not in _PLOTTED or not is_papers_decoder(full.model)
    words = f"within the same compute, {method_of(ours).title} beats {method_of(rival).title}"
    plot = f"no number is printed; the plot reads about +0.14 against {_PLOTTED.get(rival)}"
    return Claim(
        TASK,
        full.model,
        f"beyond the paper, {words}" if beyond else words,
        between(full.of(ours), place.of(rival), "accuracy"),
        # To beat a rival that has become worse than nothing is no gain.
        {"instruct": estimate(full.rows, ours, "accuracy", "instruct")},
        own=beyond,
        paper=NOT_IN_PAPER if beyond else plot,
        note="must also beat instruct; the rival stands at "
        f"{counted(place, rival, 'share'):.0%} of the queries"
        + ("" if inside else ", its smallest share, which costs more"),
    )


def _quality(full: Place) -> Claim:
    """The fitted edit and DPO, both at the largest share.

    No other share is judged: the best of several, chosen on the test users, would say too much.
    They stand in the table.
    """
    effect = between(full.of(FITTED), full.of("dpo"), "accuracy")
    value, low, high = (end + TOLERANCE for end in (effect.value, effect.low, effect.high))
    parameters, compute = ratios(full, full)
    return Claim(
        TASK,
        full.model,
        "beyond the paper, on the same pairs, all of them, the fitted edit has the quality of DPO "
        f"(is less than {TOLERANCE} below it) for at most 1/10 of its trained parameters and 1/3 "
        "of its training FLOPs",
        replace(effect, value=value, low=low, high=high),
        {"instruct": estimate(full.rows, FITTED, "accuracy", "instruct")},
        note=f"difference plus {TOLERANCE}; must also beat instruct; parameters "
        f"1/{1 / parameters:.0f}, FLOPs 1/{1 / compute:.1f} of DPO's, at "
        f"{counted(full, FITTED, 'share'):.0%} of the pairs",
        measure=f"accuracy change plus {TOLERANCE}",
    )
