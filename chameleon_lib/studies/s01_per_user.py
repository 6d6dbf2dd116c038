"""Section 4.2, Table 1: users with history, every arm on every backbone, and what stands behind it.

:func:`run` computes the study; all others count from its result frame and its logs. Every number
carries n users, seeds and a 95 % interval over users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User, get_task, is_valid_answer
from chameleon_lib.data.floors import floors_for
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import (
    Estimate,
    bootstrap_metric,
    confusion_by_user,
    mcnemar,
    seed_sd,
    sums_by_user,
)
from chameleon_lib.kit.tables import estimate_columns, part_columns, span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies.arms import (
    PARTS,
    arms_of,
    build_draw,
    edit_size,
    exam_of,
    groups_of,
    plain_arms,
    random_per_draw,
    score_cell,
)
from chameleon_lib.studies.data import TaskData
from chameleon_lib.studies.forms import form_of, measures_of
from chameleon_lib.studies.frame import (
    NOT_IN_PAPER,
    STATISTICS,
    Claim,
    Rows,
    better,
    between,
    columns_of,
    drawn,
    estimate,
    forest,
    group_sums,
    having,
    judge,
    matrix,
    methods_in,
    metrics_of,
    pick,
    places,
    summarise,
    tabled,
    titled,
    values_of,
)
from chameleon_lib.studies.methods import (
    FITTED,
    METHODS,
    PAPER,
    controls_of,
    method_of,
    paper_value,
    title_of,
)
from chameleon_lib.studies.rivals import (
    Log,
    change_on_seen,
    has_learned,
    prompted_rivals,
    quarters,
    said,
    trained_rivals,
)
from chameleon_lib.studies.run import Arm, Cell, Desk, Plan, Run, left_out, run_grid, split_of

# Edits whose size is measured: the two that are compared, and a control of either's size.
SIZED = (PAPER, FITTED, "from_neutral", "fitted_shuffled", "random")

# Floors that look at a user's history.
OF_HISTORY = ("user_majority", "user_mean", "user_mean_rounded", "user_mode", "last_item")


def run(profile: RunProfile, settings: EditSettings, **options: Any) -> Run:
    """Compute Table 1; ``options`` are those of :func:`chameleon_lib.studies.run.run_grid`."""
    return run_grid(_compute, profile, settings, **options)


def _compute(plan: Plan, backbone: str) -> list[Cell]:
    few = backbone not in plan.profile.studied
    draws = plan.draws[: plan.profile.repeats] if few else plan.draws
    return [compute_cell(plan.open(backbone), draws)]


def compute_cell(desk: Desk, draws: tuple[int, ...]) -> Cell:
    """All arms of one backbone on one task."""
    study, data = desk.study, desk.data
    tell(f"{study.backbone_id} {study.task}: {len(desk.test)} test users, {len(draws)} groups")
    exam = exam_of(desk)
    answers = exam.answer(plain_arms())
    rivals = study.backbone_id in study.profile.studied
    if rivals:
        answers |= prompted_rivals(exam)
        before = said(study, desk.train, "instruct")
    logs = []
    # The positive control and ALOE ask for the gold answers of train users.
    for group in groups_of(study, desk.train, draws, golds=data.train):
        draw = build_draw(study, group, random_per_draw(study.settings, draws))
        sizes = {
            name: edit_size(study, desk.test, draw.edits[Arm(name, group.index)]) for name in SIZED
        }
        answers |= exam.answer(arms_of(draw))
        log = {**draw.log, **_pair_quality(data, group.pairs), "sizes": sizes}
        if rivals:
            for name, (found, trained) in trained_rivals(exam, group, before).items():
                answers[Arm(name, group.index)] = found
                log[name] = trained
        logs.append(log)
    return score_cell(desk, answers, logs)


def _pair_quality(data: TaskData, pairs: Sequence[Any]) -> dict[str, Any]:
    """Which synthetic answers equal the planted ones, with their users; empty for real data."""
    if data.truth is None:
        return {}
    truth = {}
    for user in data.train:
        planted = data.truth[user.id]
        for query, p, n in zip(user.queries, planted.personal, planted.generic, strict=True):
            truth[query.id] = (p, n)
    return {
        "right": {
            "users": [pair.user_id for pair in pairs],
            "personal": [pair.answer_p == truth[pair.query_id][0] for pair in pairs],
            "neutral": [pair.answer_n == truth[pair.query_id][1] for pair in pairs],
        }
    }


# ---- Table 1, its effects and verdicts


def results(frame: pd.DataFrame, task: str, table: str = "table1") -> pd.DataFrame:
    """Table 1 of one task: one row per model and method, the paper's numbers beside ours."""
    part = pick(frame, task=task)
    found = summarise(part, metrics_of(part))
    shown = titled(found, "kind", "labels")
    rows = list(zip(found["model"], found["method"], strict=True))
    for metric in get_task(task).metrics:
        printed = [paper_value(task, metric, model, method_of(name).paper, table)
                   for model, name in rows]  # fmt: skip
        shown[f"paper {metric}"] = pd.Series(printed, dtype=float)
    return shown


@tabled
def by_model(frame: pd.DataFrame, task: str) -> Rows:
    """The primary metric and the margin per training seed: one model proves nothing.

    The intervals cover the choice of test users. Beside them stand the standard deviation of the
    primary metric over the random groups, and the range of the random directions, of which a group
    has several. The form of free text stands in :func:`results`, over all seeds.
    """
    primary = get_task(task).metrics[0]
    shown = {*controls_of(PAPER, "claim"), *controls_of(FITTED, "claim")}
    for (backbone,), part in places(pick(frame, task=task), "backbone"):
        for method in methods_in(part):
            if method.kind == "control" and method.id not in shown:
                continue
            own = pick(part, method=method.id)
            draws = matrix(own, STATISTICS[primary][0])[0]  # (seeds, queries)
            random = method.id == "random"
            levels = draws.mean(axis=1) if random else np.array([np.nan])
            yield {
                "backbone": backbone,
                "method": method.title,
                **columns_of({primary: primary}, between, own, None),
                f"{primary} sd over groups": np.nan if random else seed_sd(draws),
                f"{primary} lowest draw": levels.min(),
                f"{primary} highest draw": levels.max(),
                **columns_of({"margin": "margin"}, between, own, None),
            }


@tabled
def effects(frame: pd.DataFrame, task: str, agree: Sequence[str] = ()) -> Rows:
    """Every method against Instruct: paired differences, McNemar, and damage where users agree.

    McNemar's test is made on the first seed of the model alone: pooled over seeds a user would
    count several times. ``agree`` are queries whose personal and generic answers are the same text,
    in the embedded world: any change of the primary metric on them is damage. What an edit does to
    the form of free text stands beside the primary metric, which it may move by that alone.
    """
    primary = get_task(task).metrics[0]
    shown = (primary, *measures_of(task), "margin")
    metrics = {metric: f"{metric} change" for metric in shown}
    for (model,), part in places(pick(frame, task=task), "model"):
        for method in methods_in(part):
            if method.id in ("instruct", "official", "official_history"):
                continue
            held = having(part, method.id, "instruct")
            one, other = pick(held, method=method.id), pick(held, method="instruct")
            row: dict[str, Any] = {"model": title_of(model), "method": method.title}
            row["kind"] = method.kind
            row |= columns_of(metrics, between, one, other)
            if len(agree):
                found = between(pick(one, query=agree), pick(other, query=agree), primary)
                row |= part_columns(found, f"{primary} change where users agree")
            if task == "LaMP_2":
                first, base = (matrix(arm, STATISTICS[primary][0])[0][0] for arm in (one, other))
                test = mcnemar(first, base)
                row |= {"McNemar b": test.b, "McNemar c": test.c, "McNemar p": test.p}
            yield row


@dataclass(frozen=True)
class Question:
    """A claim to be judged wherever its methods were run.

    Attributes:
        words: The claim.
        method: What it is about.
        against: What it is compared with.
        beats: What it must beat as well.
        own: Whether the kit makes it, and not the paper.
    """

    words: str
    method: str
    against: str
    beats: tuple[str, ...]
    own: bool = False

    def measured(self, part: pd.DataFrame) -> tuple[Estimate, dict[str, Estimate]] | None:
        """Effect and margins on the first metric of the task; None where a method is missing.

        Args:
            part: Rows of one task, model and condition.
        """
        held = having(part, self.method, self.against, *self.beats)
        if held.empty:
            return None
        metric = get_task(values_of(held, "task")[0]).metrics[0]
        effect = estimate(held, self.method, metric, self.against)
        return effect, {name: estimate(held, self.method, metric, name) for name in self.beats}


def questions() -> list[Question]:
    """The claims of Tables 1 and 2; all must hold against directions that are no user's own."""
    common, of_ours = controls_of(PAPER, "claim"), controls_of(FITTED, "claim")
    # An ALOE that lost is no rival: the edit must gain by itself, and by its own directions.
    others = ("instruct", "llm_rec", *common)
    ours = "beyond the paper, the fitted edit beats Instruct"
    return [
        Question("CHAMELEON's edit beats Instruct", PAPER, "instruct", common),
        Question("CHAMELEON's edit beats ALOE", PAPER, "aloe", others),
        Question(ours, FITTED, "instruct", of_ours, own=True),
    ]


def claims(
    run: Run,
    rows: pd.DataFrame,
    printed: Callable[[str, str, Question], str | None],
    asked: Sequence[Question],
    words: str = "",
    remark: str = "",
) -> list[Claim]:
    """Every question, wherever its methods were run.

    Args:
        run: Whose users they are.
        rows: Rows of it, under one condition.
        printed: The paper's number in words, from task, model and question; None where the paper
            does not ask it.
        asked: The questions.
        words: Put before the claim.
        remark: Put before the controls in the note.
    """
    found = []
    for (task, model), part in places(rows, "task", "model"):
        for question in asked:
            measured = question.measured(part)
            if measured is None:
                continue
            paper = printed(task, model, question)
            found.append(
                Claim(
                    task,
                    model,
                    words + question.words,
                    *measured,
                    own=paper is None,
                    paper=paper or NOT_IN_PAPER,
                    split=split_of(run, task),
                    remark=remark,
                )
            )
    return found


def verdicts(run: Run, notebook: str) -> list[Verdict]:
    """One verdict per task, model and claim of :func:`questions`, where its methods were run."""

    def printed(task: str, model: str, question: Question) -> str | None:
        before = method_of(question.against).paper
        return None if question.own else paper_change(task, model, before)

    csv = "tables/table1_{task}_effects.csv"
    made = claims(run, run.frame, printed, questions())
    return judge(made, section="4.2", notebook=notebook, csv=csv)


def paper_change(
    task: str,
    model: str,
    before: str,
    tables: tuple[str, str] = ("table1", "table1"),
    remark: str = "",
) -> str:
    """The paper's gain of CHAMELEON over another of its rows, in words.

    Args:
        task: Task name.
        model: Model id.
        before: The other row's name in the paper.
        tables: The table of that row, and the table of CHAMELEON's.
        remark: Put behind the numbers.
    """
    metric = get_task(task).metrics[0]
    numbers = [
        paper_value(task, metric, model, name, table)
        for name, table in zip((before, "CHAMELEON"), tables, strict=True)
    ]
    if numbers[0] is None or numbers[1] is None:
        return NOT_IN_PAPER
    return f"{numbers[1] - numbers[0]:+.3f} ({numbers[0]:.3f} → {numbers[1]:.3f}){remark}"


# ---- What stands behind Table 1: floors without a model, pairs, directions, edit sizes, trainings


@tabled
def floors(run: Run, task: str, *, history: bool = True) -> Rows:
    """Baselines that need no model, on the test users and on all labelled users.

    Without ``history`` those that look at one are left out, and the test users are asked alone.
    """
    data, metrics = run.data[task], [*get_task(task).metrics, *measures_of(task)]
    parts = {"test users": data.chosen(run.test_users[task])}
    if history:
        parts["all users"] = list(data.everyone)
    for name, baseline in floors_for(task).items():
        if name in OF_HISTORY and not history:
            continue
        for part, users in parts.items():
            answers = baseline(users, data.train)
            row: dict[str, Any] = {"baseline": name.replace("_", " "), "users": part}
            floor = _floor(task, users, answers)
            row |= columns_of({metric: metric for metric in metrics}, floor)
            yield row | {"valid rate": float(np.mean([is_valid_answer(task, a) for a in answers]))}


def _floor(task: str, users: Sequence[User], answers: list[str]) -> Callable[[str], Estimate]:
    """From a metric to its estimate on some users' answers."""
    gold = [str(query.gold) for user in users for query in user.queries]
    owner = [user.id for user in users for _ in user.queries]
    scores = {**per_sample_scores(task, gold, answers), **form_of(task, gold, answers)}

    def estimated(metric: str) -> Estimate:
        score, statistic = STATISTICS[metric]
        if statistic == "macro_f1":
            sums = confusion_by_user(gold, answers, get_task(task).labels, owner)
        else:
            sums = sums_by_user(scores[score], owner)
        return bootstrap_metric(statistic, sums)

    return estimated


@tabled
def directions(run: Run, task: str) -> Rows:
    """Per backbone, draw and layer: pairs, CCS loss with its floor and control, geometry, sizes.

    The ratios are those of :func:`edit_sizes`; empty where an edit does not act.
    """
    shown = {f"{part} ratio": (PAPER, part) for part in PARTS}
    shown["fitted edit ratio"] = (FITTED, "edit")
    for cell in (c for c in run.cells if c.task == task):
        for index, log in enumerate(cell.draws):
            sizes: dict[str, dict[int, float]] = {}  # column → layer → mean over queries
            for column, (name, part) in shown.items():
                measured = log["sizes"][name]
                means = np.mean(measured[part], axis=0).tolist()
                sizes[column] = dict(zip(measured["layers"], means, strict=True))
            for layer in log["rows"]:
                number = int(layer["layer"])
                yield {
                    "backbone": cell.backbone,
                    "draw": index,
                    "layer": number,
                    "edited": number in log["layers"],
                    "pairs kept": log["kept"],
                    "pairs identical": log["identical"],
                    **{k: v for k, v in layer.items() if k != "layer"},
                    **{column: found.get(number) for column, found in sizes.items()},
                    "n": log["users"],
                    "seeds": 1,
                }


@tabled
def edit_sizes(run: Run) -> Rows:
    """Per task, model and edit: the length of the change over that of what it changes.

    Means over edited layers, edited tokens, groups and training seeds, each of which counts the
    same; boost and removal are the two parts of the edit. The intervals are over the few test users
    whose answers were watched. The tables per layer hold every training seed by itself.
    """
    for task, model, edit in product(run.data, run.models, SIZED):
        cells = run.at(task, model)
        weights = np.concatenate([[1 / len(cell.draws)] * len(cell.draws) for cell in cells])
        logs = [log["sizes"][edit] for cell in cells for log in cell.draws]
        layers = np.average([len(log["layers"]) for log in logs], weights=weights)
        row: dict[str, Any] = {
            "task": task.replace("_", "-"),
            "model": title_of(model),
            "edit": method_of(edit).title,
            "edited layers": float(layers),
        }
        for part in PARTS:
            sums = [sums_by_user(np.mean(log[part], axis=1), log["users"]) for log in logs]
            found = bootstrap_metric("mean", np.stack(sums), seed_weights=(weights, None))
            row |= estimate_columns(found, f"{part} ratio")
        yield row


@tabled
def pair_counts(run: Run) -> Rows:
    """Per backbone and task: pairs before and after the filter, and how many are right.

    The intervals are over the train users of all groups, who are counted beside them.
    """
    for cell in run.cells:
        logs = cell.draws
        row: dict[str, Any] = {
            "backbone": cell.backbone,
            "task": cell.task.replace("_", "-"),
            "pairs asked": float(np.mean([log["pairs"] for log in logs])),
            "pairs kept": float(np.mean([log["kept"] for log in logs])),
            "drop rate": float(np.mean([log["identical"] / log["pairs"] for log in logs])),
        }
        for role in ("personal", "neutral") if "right" in logs[0] else ():
            right = group_sums([(log["right"]["users"], log["right"][role]) for log in logs])
            row |= part_columns(bootstrap_metric("mean", right), f"{role} right")
        yield row | {
            "edited layers": " | ".join(",".join(map(str, log["layers"])) for log in logs),
            **left_out(cell.counts),
            "history items dropped": cell.counts["dropped_items"],
            "history items cut": cell.counts["cut_items"],
            "n": logs[0]["users"],
            "seeds": len(logs),
        }


@tabled
def trainings(run: Run) -> Rows:
    """What the trained rivals were trained on and whether they learned: means over groups.

    The loss is the mean of the first and of the last quarter of the steps, per token for ALOE and
    per pair for DPO. What a rival gained on the users it was trained on is counted against
    Instruct; *learned* says that every loss fell and that the gain is beyond chance.
    """
    for cell in run.cells:
        for method in METHODS:
            logs: list[Log] = [log[method.id] for log in cell.draws if method.id in log]
            if method.kind != "rival" or not logs:
                continue
            first = logs[0]
            ends = np.mean([quarters(log["loss"]) for log in logs], axis=0)
            gain = change_on_seen(logs)
            yield {
                "backbone": cell.backbone,
                "task": cell.task.replace("_", "-"),
                "method": method.title,
                "gold answers seen": first["queries"] if first["uses_gold"] else 0,
                "weights": first["params"],
                "trainable weights": first["trainable_params"],
                "dialogues mixed in": f"{first['mix_rows']} ({first['mix']})",
                "steps": first["steps"],
                "rows": float(np.mean([log["rows"] for log in logs])),
                "ties": float(np.mean([log["ties"] for log in logs])),
                "loss, first quarter": float(ends[0]),
                "loss, last quarter": float(ends[1]),
                "metric": get_task(cell.task).metrics[0],
                **estimate_columns(gain, "change on seen users"),
                "learned": "yes" if has_learned(cell.task, logs, gain) else "no",
                "departures from the paper": ", ".join(first["departures"]),
            }


# ---- How it is shown


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table for reading: empty cells for what the paper does not have."""
    shown = table.drop(columns=[c for c in ("kind",) if c in table])
    for column in (c for c in shown.columns if c.startswith("paper ")):
        shown[column] = [f"{v:.3f}" if pd.notna(v) else "" for v in shown[column]]
    return shown


def effect_figure(table: pd.DataFrame, task: str, publish: Publisher) -> FigureOutput:
    """Forest plot of the differences to Instruct, one panel per model."""
    primary = get_task(task).metrics[0]
    data = drawn(table, f"{primary} change", "model", "method", "kind")
    return forest(
        publish,
        data,
        f"01_effects_{task}",
        made_by=effect_figure,
        title=f"{task.replace('_', '-')}: {primary} against Instruct",
        caption=(
            f"Change of {primary} against Instruct on the same users, 95 % intervals over "
            f"{span(data['n'])} test users; seeds are training seeds times groups"
        ),
        xlabel=f"{primary} change",
        panel="model",
        reference_label="Instruct",
        better=better(primary),
    )
