"""Section 4.4, Figure 3: how many users the directions come from.

A condition is a group size. Groups are nested: every draw puts the train users in one random order,
and a group of s is its first s users, so that the curve of a draw is not broken by other users. The
order is the sample that Table 1 draws its group from; the largest group is Table 1's where
``group_size`` is the largest size, and its stored fits are then used again.

Size 1 has two readings, both measured (A20): the user's own pairs ("own user"), and the pairs of
one random other user ("1 other user", control C15: the users of the draw's smallest group lend
theirs to the test users, each to about as many). No preference fit is made from one user: none
would be left to stop on, and fitting to the pair of the very query that is asked would only copy
the personalised answer into the edit.

A reduced profile leaves one thing out, to stay within its time: the fitted edit between the
smallest and the largest group. All else is the full design.

Intervals are over test users. How much the choice of the random set of train users moves a number
stands beside it, as the standard deviation over the sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.directions import to_beat
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import get_task
from chameleon_lib.kit.digits import rounded
from chameleon_lib.kit.figures import FigureOutput, line_ci
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate, seed_sd
from chameleon_lib.kit.tables import estimate_columns, span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies.arms import exam_of, random_per_draw, score_cell
from chameleon_lib.studies.forms import measures_of
from chameleon_lib.studies.frame import (
    NOT_IN_PAPER,
    STATISTICS,
    Claim,
    Rows,
    better,
    columns_of,
    contrast,
    curve,
    drawn,
    estimate,
    judge,
    matrix,
    methods_in,
    pick,
    places,
    tabled,
)
from chameleon_lib.studies.methods import FITTED, PAPER, file_part, method_of, short_of, title_of
from chameleon_lib.studies.run import Arm, Cell, Plan, Run, run_grid, split_of, studied
from chameleon_lib.studies.s03_ladder import OTHER, OWN, SINGLES, Ladder, agreement_logs, chance
from chameleon_lib.studies.sweeps import (
    Place,
    Results,
    ask,
    effects_of,
    numbers_of,
    places_of,
    plot_reading,
)

SIZES = (1, 20, 40, 60, 80, 100)
TASKS = ("LaMP_2", "LaMP_3")

# Read off the paper's plot (± 0.002), which has the decoder only; shown, never compared with.
PLOT: Mapping[str, Mapping[int, float]] = {
    "LaMP_2": {0: 0.198, 1: 0.355, 20: 0.377, 40: 0.386, 60: 0.386, 80: 0.387, 100: 0.396},
    "LaMP_3": {0: 0.497, 1: 0.447, 20: 0.431, 40: 0.424, 60: 0.419, 80: 0.411, 100: 0.407},
}
_THETAS = {
    (PAPER, "theta_p"): "θP (paper)",
    (PAPER, "theta_n"): "θN (paper)",
    (FITTED, "theta_p"): "θP (fitted)",
    (FITTED, "theta_n"): "θN (fitted)",
}
_WHOSE = {OWN: "the user's own", OTHER: "one other user's"}
# Lines of the figure; short, or the legend would not fit below the picture.
_LINES = {PAPER: "paper", FITTED: "fitted (ours)", "random": "random directions"}


# --- the study -----------------------------------------------------------------------------------


def run(profile: RunProfile, settings: EditSettings, *, sizes: str = "", **options: Any) -> Run:
    """Compute Figure 3.

    Few pairs are counted and never refused here (A20). ``sizes`` are group sizes with commas
    between, the paper's if empty; one above the number of train users becomes that number. More
    options are those of :func:`chameleon_lib.studies.run.run_grid`.
    """
    wanted = tuple(numbers_of("sizes", sizes, "1,20,100", least=2)) if sizes else SIZES
    compute = partial(_compute, sizes=wanted, fit_between=not profile.reduced)
    small = settings.with_(pairs_on_too_few="warn")
    done = run_grid(compute, studied(profile), small, **{"tasks": TASKS, **options})
    for task, data in done.data.items():
        if len(data.train) < wanted[-1]:
            done.notes.append(
                f"{task}: {len(data.train)} train users are all there are; no group is larger, and "
                "the groups of all of them do not differ from draw to draw."
            )
    return done


def _compute(plan: Plan, backbone: str, *, sizes: Sequence[int], fit_between: bool) -> list[Cell]:
    desk = plan.open(backbone)
    study = desk.study
    train = desk.train  # without golds: no method of this study needs one
    held = sorted({min(size, len(train)) for size in sizes})
    tell(f"{backbone} {plan.task}: groups of {', '.join(map(str, held))} users")
    exam = exam_of(desk)
    plain = exam.answer({"instruct": ("instruct", None)})["instruct"]
    n_random = random_per_draw(study.settings, plan.draws)
    ladder = Ladder(study, train, study.pairs(train), desk.test, sizes, n_random, fit_between)
    draws = [ladder.rungs(index, first=place == 0) for place, index in enumerate(plan.draws)]
    agreed = agreement_logs([[rung.found for rung in rungs] for rungs in draws])
    results: Results = {rung.condition: {Arm("instruct"): plain} for rung in draws[0]}
    for index, rungs in zip(plan.draws, draws, strict=True):
        arms = {
            (rung.condition, Arm(method, index)): ("instruct", edit)
            for rung in rungs
            for method, edit in rung.edits.items()
        }
        ask(exam, arms, results)
    cells = []
    for at, rung in enumerate(draws[0]):
        logs = [rungs[at].log | own[at] for rungs, own in zip(draws, agreed, strict=True)]
        cells.append(score_cell(desk, results[rung.condition], logs, rung.condition))
    return cells


# --- tables --------------------------------------------------------------------------------------


def size_of(place: Place) -> int:
    """Users behind one set of directions."""
    return int(place.logs[0]["size"])


def by_size(run: Run, task: str, model: str) -> list[Place]:
    """The conditions of a model by size; single users first."""
    return sorted(places_of(run, task, model), key=size_of)


def _all_by_size(run: Run, task: str) -> list[Place]:
    """The same of every model."""
    return [place for model in run.models for place in by_size(run, task, model)]


@tabled
def levels(run: Run, task: str) -> Rows:
    """Every method at every size: its level, and its change against Instruct.

    The form of free text stands at the end, as means; changes are of the task's own metrics.
    A method that does not depend on the size (Instruct) has one row, at 0 users.
    """
    first, *_ = metrics = get_task(task).metrics
    changes = {metric: f"{metric} change" for metric in (*metrics, "margin")}
    shown: set[str] = set()  # models whose Instruct has its row
    for place in _all_by_size(run, task):
        for method in methods_in(place.rows):
            plain = method.id == "instruct"
            if plain and place.model in shown:
                continue
            shown |= {place.model} if plain else set()
            row: dict[str, Any] = {
                "model": place.title,
                "users": 0 if plain else size_of(place),
                "directions": "none" if plain else _WHOSE.get(place.condition, "the group's"),
                "method": method.title,
                "kind": method.kind,
            }
            row |= estimate_columns(estimate(place.rows, method.id, first), first)
            change = partial(estimate, place.rows, method.id, against="instruct")
            row |= columns_of(changes, change)
            own = place.of(method.id)
            # Over the sets of train users, mean over backbones; NaN for one set.
            score = STATISTICS[first][0]
            spread = [seed_sd(matrix(part, score)[0]) for _, part in places(own, "backbone")]
            row[f"{first} sd over sets"] = float(np.mean(spread))
            shares = {f"{name} rate": name for name in ("changed", "valid")}
            shares |= {name: name for name in measures_of(task)}
            for title, name in shares.items():
                row[title] = float(pick(own, metric=STATISTICS[name][0])["value"].mean())
            yield row


@tabled
def pairs(run: Run, task: str) -> Rows:
    """Per model and condition: pairs behind one set of directions, and the layers they edit.

    For single users ``users`` counts those who have directions, and ``layers`` says how many of
    them edit each layer.
    """
    for place in _all_by_size(run, task):
        # A test user's own pairs are the same in every draw.
        own = slice(0, 1) if place.condition == OWN else slice(None)
        logs = [log for cell in place.cells for log in cell.draws[own]]
        single = place.condition in SINGLES
        kept = [log["kept"] / (log["users"] if single else 1) for log in logs]
        yield {
            "model": place.title,
            "condition": place.condition,
            "users": float(np.mean([log["users"] for log in logs])),
            "pairs per direction": float(np.mean(kept)),
            "drop rate": float(np.mean([log["identical"] / log["pairs"] for log in logs])),
            "fewer pairs than pairs_k_min": min(kept) < run.settings.pairs_k_min,
            "edited layers": " | ".join(_layers(log["layers"]) for log in logs),
            "n": min(log["users"] for log in logs),
            "seeds": len(logs),
        }


def _layers(layers: Sequence[int] | dict[int, int]) -> str:
    if isinstance(layers, dict):
        return ",".join(f"{layer}:{count}" for layer, count in layers.items())
    return ",".join(map(str, layers))


@tabled
def agreement(run: Run, task: str) -> Rows:
    """Absolute cosine of every condition's directions to those of the largest groups.

    Mean over draws with the lowest and highest draw; ``n`` counts the users behind the directions.
    """
    for place in _all_by_size(run, task):
        logs, condition = place.logs, place.condition
        for (method, theta), title in _THETAS.items():
            for against in ("own draw", "other draws"):
                key = (method, theta, against)
                found = [log["agreement"][key] for log in logs if key in log["agreement"]]
                if not found:
                    continue
                shared = 0.0 if condition == OWN else 1.0
                if condition != OWN and against == "other draws":
                    shared = float(np.mean([log["shared"] for log in logs]))
                yield {
                    "model": place.title,
                    "condition": condition,
                    "users": size_of(place),
                    "direction": title,
                    "large group of the": against,
                    "cosine": float(np.mean(found)),
                    "lowest": min(found),
                    "highest": max(found),
                    "chance": chance(logs[0]["d"]),
                    "users shared": shared,
                    "n": min(log["users"] for log in logs),
                    "seeds": len(found),
                }


# --- figures -------------------------------------------------------------------------------------


def curve_lines(table: pd.DataFrame, task: str, model: str) -> pd.DataFrame:
    """The points of Figure 3 with their line, from the table of :func:`levels`."""
    part, lent = table[table["model"] == title_of(model)], _WHOSE[OTHER]
    names = {method_of(method).title: name for method, name in _LINES.items()}
    line = part["method"].map(names)
    # Random directions at the layers of lent ones are in the table alone.
    of_others = part["directions"] == lent
    line = line.mask(of_others, lent).where(~of_others | (line == _LINES[PAPER]))
    part = part.assign(line=pd.Categorical(line, [*_LINES.values(), lent])).dropna(subset="line")
    part = part.sort_values(["line", "users"]).astype({"line": str})
    return drawn(part, f"{get_task(task).metrics[0]} change", "model", "line", "users")


def curve_figure(table: pd.DataFrame, task: str, model: str, publish: Publisher) -> FigureOutput:
    """Figure 3 of one task and model: the change against Instruct by group size."""
    metric = get_task(task).metrics[0]
    data = curve_lines(table, task, model)
    return curve(
        publish,
        data,
        f"03_size_{task}_{file_part(model)}",
        made_by=levels,
        title=f"{task.replace('_', '-')}, {short_of(model)}: by group size",
        caption=f"Change of {metric} against Instruct on the same users by group size; 95 % "
        f"intervals over {span(data['n'])} test users, mean over {span(data['seeds'])} nested "
        "random sets of train users; paper: CHAMELEON's edit. At 1 user the edit comes from the "
        "pair of the very query that is asked (no gold; who has no pair stays unedited), or from "
        "one other user's; no preference fit is made from one user",
        x="users",
        xlabel="train users behind the directions",
        ylabel=f"{metric} change",
        group="line",
        reference=0.0,
        reference_label="Instruct",
        better=better(metric),
    )


def agreement_figure(
    table: pd.DataFrame, task: str, model: str, publish: Publisher
) -> FigureOutput:
    """Cosine of the paper's directions to those of the largest groups, by group size."""
    short = {_THETAS[PAPER, "theta_p"]: "θP", _THETAS[PAPER, "theta_n"]: "θN"}
    part = table[(table["model"] == title_of(model)) & table["direction"].isin(short)]
    # One line has one point at 1 user; the users who lend their directions are in the table.
    part = part[(part["users"] > 1) | (part["condition"] == OWN)]
    # Before the cosines lose their name, by which they are rounded in the table.
    data = rounded(
        part.assign(line=part["direction"].map(short) + ", " + part["large group of the"])
    )
    top = data["users"].max()
    figure = line_ci(
        data.rename(columns={"cosine": "value", "lowest": "ci_low", "highest": "ci_high"}),
        title=f"{task.replace('_', '-')}, {short_of(model)}: agreement with large groups",
        profile=publish.profile,
        x="users",
        xlabel="train users behind the directions (1: own user)",
        ylabel="absolute cosine",
        group="line",
        reference=float(data["chance"].iloc[0]),
        reference_label="chance",
        better=None,
    )
    return publish.figure(
        figure,
        f"03_agreement_{task}_{file_part(model)}",
        alt=f"Line plot of absolute cosines by number of users up to {top}, from "
        f"{data['cosine'].min():.2f} to {data['cosine'].max():.2f}.",
        caption=f"Absolute cosine to the directions of {top} users, mean over the layers that are "
        f"edited there and over {int(data['seeds'].max())} draws; bars reach from the lowest to "
        "the highest draw. The own draw's large group contains the small one; how many users two "
        f"draws share is in the table ({publish.profile} profile).",
        data=data,
        made_by=agreement,
    )


# --- verdicts ------------------------------------------------------------------------------------


def claims(run: Run, task: str) -> list[Claim]:
    """The claims of Figure 3 for every model; growth is claimed only where two sizes were run."""
    return [claim for model in run.models for claim in _of_model(run, task, model)]


def _of_model(run: Run, task: str, model: str) -> list[Claim]:
    metric = get_task(task).metrics[0]
    found = {place.condition: place for place in by_size(run, task, model)}
    own, groups = found.get(OWN), [found[name] for name in found if name not in SINGLES]
    small, large = groups[0], groups[-1]
    few, many = size_of(small), size_of(large)

    def claim(
        words: str, method: str, sizes: tuple[int, int], effect: Estimate | None = None,
        margins: Mapping[str, Estimate] | None = None,
    ) -> Claim:  # fmt: skip
        paper = plot_reading(PLOT.get(task, {}), model, *sizes)
        beyond = method == FITTED
        if beyond:
            words, paper = f"beyond the paper, {words}", NOT_IN_PAPER
        split = split_of(run, task)
        return Claim(task, model, words, effect, margins or {}, beyond, paper, split=split)

    def against(place: Place, method: str, *others: str) -> dict[str, Estimate]:
        return {other: estimate(place.rows, method, metric, other) for other in others}

    def growth(start: Place, method: str) -> tuple[Estimate, dict[str, Estimate]]:
        """What more users add, and the same minus what they add to random directions.

        Random directions stay the same from size to size: they change with the edited layers alone.
        """
        gain = [(1, large.of(method)), (-1, start.of(method))]
        noise = [(-1, large.of("random")), (1, start.of("random"))]
        margins = {"the growth of random": contrast([*gain, *noise], metric)}
        return contrast(gain, metric), margins

    words = "CHAMELEON's edit from a single user's own pairs beats Instruct"
    effect, margins = None, {}
    if own:
        lent = [(1, own.of(PAPER)), (-1, found[OTHER].of(PAPER))]
        margins = against(own, PAPER, "instruct", "random")
        effect = margins.pop("instruct")
        margins["another user's directions"] = contrast(lent, metric)
    made = [claim(words, PAPER, (0, 1), effect, margins)]
    for method, name, controls in (
        (PAPER, "CHAMELEON's edit", to_beat("paper")),
        (FITTED, "the fitted edit", to_beat("fitted")),
    ):
        [effect] = against(small, method, "instruct").values()
        margins = against(small, method, *controls)
        words = f"{name} from {few} users beats Instruct"
        made.append(claim(words, method, (0, few), effect, margins))
        if many > few:
            words = f"{name} from {many} users beats that from {few}"
            made.append(claim(words, method, (few, many), *growth(small, method)))
        if own and method == PAPER:
            words = f"{name} from {many} users beats that from a single user"
            made.append(claim(words, method, (1, many), *growth(own, method)))
    return made


@tabled
def claim_frame(found: Sequence[Claim]) -> Rows:
    """Every claim's effect, and the effect minus each of its controls, one row each."""
    for claim, control, number in effects_of(found):
        yield {
            "model": title_of(claim.model),
            "claim": f"{claim.words} ({get_task(claim.task).metrics[0]} change)",
            "minus the control": control.replace("_", " ") or "(none)",
            **estimate_columns(number),
        }


def verdicts(found: Sequence[Claim], notebook: str) -> list[Verdict]:
    """One verdict per claim."""
    return judge(found, section="4.4", notebook=notebook, csv="tables/figure3_{task}_claims.csv")
