"""Section 4.3, Table 2: test users who are in no group, without any history and with theirs.

The paper calls them new users without history, yet its set-up evaluates groups on users who have
one (A19). Both readings are shown: the question alone (:data:`NO_HISTORY`, the paper's words), and
the prompt of Table 1, whose history no fit has seen (:data:`WITH_HISTORY`: the stored answers of
Table 1). Where every taste is a user's own, nothing can be known of a user without history, so in
the embedded world that reading is a control: whatever moves there is no personalisation.

It is asked again in a world in which most users share one taste, where something can be gained
without a history, under two conditions: :data:`COMMON_TASTE` fits everything as in Table 1, where
prompts and pairs show a history; :data:`FITTED_BARE` shows them without it, as the users will be
asked. That world costs everything anew, so there are LaMP-2 and LaMP-3 alone, fewer test users,
half of the fit's steps, no trained rivals, no control for the fitted edit in the first condition,
and histories chosen by position, since embedding them costs more than all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, PlainPrompts, contrasts_from_pairs, swap_contrasts
from chameleon_lib.core.pairs import PreferencePair
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User, get_task, unseen_prompt
from chameleon_lib.data.metrics import higher_is_better
from chameleon_lib.data.users import check_disjoint
from chameleon_lib.errors import UserError
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate, bootstrap_metric
from chameleon_lib.kit.tables import estimate_columns, span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies import s01_per_user as table1
from chameleon_lib.studies.arms import (
    Draw,
    Group,
    build_draw,
    exam_of,
    groups_of,
    random_per_draw,
    score_cell,
)
from chameleon_lib.studies.data import TaskData
from chameleon_lib.studies.frame import (
    Claim,
    Rows,
    better,
    between,
    contrast,
    drawn,
    forest,
    having,
    judge,
    methods_in,
    pick,
    places,
    tabled,
    user_sums,
)
from chameleon_lib.studies.methods import FITTED, PAPER, controls_of, paper_value, title_of
from chameleon_lib.studies.rivals import TunedStudy, training_log, tunings_of
from chameleon_lib.studies.run import (
    Answers,
    Arm,
    Cell,
    Desk,
    Plan,
    Run,
    agreeing_queries,
    run_grid,
    studied,
)
from chameleon_lib.studies.study import Study

NO_HISTORY, WITH_HISTORY = "no history", "with history"
COMMON_TASTE = "no history, common taste"
FITTED_BARE = "no history, common taste, none in the fit"
READINGS = {NO_HISTORY: "unseen", WITH_HISTORY: "instruct"}  # condition → prompt kind
WORDS = {
    NO_HISTORY: "new users without history",
    WITH_HISTORY: "new users whose history is in the prompt and in no fit",
    COMMON_TASTE: "new users without history who mostly share a taste",
    FITTED_BARE: "new users without history who mostly share a taste, fitted without history",
}
# Whose gain is followed from one reading to the other.
FOLLOWED = ("aloe", "dpo", PAPER, FITTED, "fitted_gold")

# The world with a common taste.
TASKS = ("LaMP_2", "LaMP_3")
SHARE = 0.7  # of the users who hold it
MAX_TEST_USERS = 100  # what a verdict needs
FIT_STEPS = 20


def run(
    profile: RunProfile,
    settings: EditSettings,
    *,
    share: float = SHARE,
    fit_steps: int = FIT_STEPS,
    **options: Any,
) -> list[Run]:
    """Compute Table 2.

    Args:
        profile: Its studied backbones are used.
        settings: Every choice of the method.
        share: Of the users who hold the one common taste.
        fit_steps: Adam steps of the fitted edit under a common taste, at most those of
            ``settings``.
        **options: Those of :func:`chameleon_lib.studies.run.run_grid`.

    Returns:
        The run with both readings and, in the embedded world, the one with a common taste.

    Raises:
        UserError: A test user, or a text of one, would reach a fit or a training.
    """
    profile = studied(profile)
    main = run_grid(_both_readings, profile, settings, **options)
    if any(data.truth is None for data in main.data.values()):
        note = "Whether users share a taste cannot be set in real data: no common-taste condition."
        return [_noted(main, note)]
    tasks = [task for task in TASKS if task in main.data]
    if not tasks:
        return [_noted(main)]
    small = replace(profile, n_test=min(profile.n_test, MAX_TEST_USERS))
    light = settings.with_(selection_rule="recent", fit_steps=min(settings.fit_steps, fit_steps))
    asked = {**options, "tasks": tasks, "world": {"common": share}}
    return [_noted(main), _noted(run_grid(_common_taste, small, light, **asked))]


def shown_edits() -> list[str]:
    """The edits that are asked: the paper's and ours, what both must beat, and the ceiling."""
    controls = [*controls_of(PAPER, "claim"), *controls_of(FITTED, "claim")]
    return list(dict.fromkeys([PAPER, FITTED, *controls, "fitted_gold"]))


def _noted(run: Run, *notes: str) -> Run:
    """The run with what was refused nowhere, and other notes."""
    groups_of = sum(len(c.draws) for c in run.cells if c.condition == run.conditions[0])
    what = "test user" if notes else "test user or a text of one"
    checked = f"Checked before every fit: none of the {groups_of} groups holds a {what}."
    return replace(run, notes=[*run.notes, checked, *notes])


def _both_readings(plan: Plan, backbone: str) -> list[Cell]:
    """One cell per reading: the edits and trainings of Table 1, asked in both."""
    desk = plan.open(backbone)
    study = desk.study
    tell(f"{study.backbone_id} {study.task}: {len(desk.test)} unseen users")
    exam = exam_of(desk)
    plain: dict[str, tuple[str, Edit | None]] = {
        reading: (kind, None) for reading, kind in READINGS.items()
    }
    draws: list[Draw] = []
    answers: dict[str, dict[Arm, Answers]] = {reading: {} for reading in READINGS}
    for group in groups(desk, plan.draws):
        draw = build_draw(study, group, random_per_draw(study.settings, plan.draws))
        for name, tuned in tunings_of(study, group).items():
            draw.log[name] = training_log(tuned.log)
            asked = exam.of(TunedStudy(study, tuned)).answer(plain)
            for reading in READINGS:
                answers[reading][Arm(name, group.index)] = asked[reading]
        draws.append(draw)
    shown = [(arm, draw.edits[arm]) for draw in draws
             for arm in (Arm(name, draw.index) for name in shown_edits())]  # fmt: skip
    # One call for all draws: the prompts of a kind are then read once.
    arms = {(reading, Arm("instruct")): asked for reading, asked in plain.items()}
    arms |= {(reading, arm): (kind, edit) for reading, kind in READINGS.items()
             for arm, edit in shown}  # fmt: skip
    for (reading, arm), found in exam.answer(arms).items():
        answers[reading][arm] = found
    logs = [draw.log for draw in draws]
    return [score_cell(desk, answers[reading], logs, reading) for reading in READINGS]


def _common_taste(plan: Plan, backbone: str) -> list[Cell]:
    """One cell per condition of the world in which most users share a taste."""
    desk = plan.open(backbone)
    study = desk.study
    tell(f"{study.backbone_id} {study.task}: {len(desk.test)} unseen users, common taste")
    bare = plan.study(backbone, study.settings.with_(pairs_text="query_answer"))
    plain = Arm("instruct")
    arms: dict[tuple[str, Arm], tuple[str, Edit | None]] = {("", plain): ("unseen", None)}
    logs = []
    for group in groups(desk, plan.draws):
        index, case = group.index, study.case(group.pairs, group.index)
        alone = without_history(study, [*case.kept, *case.identical])
        prompts = PlainPrompts(study.backbone, [contrast.prompt for contrast in alone])
        fits = {
            name: study.preference_fit(some, prompts, index, name).edit
            for name, some in ((FITTED, alone), ("fitted_shuffled", swap_contrasts(alone, index)))
        }
        found = {
            COMMON_TASTE: _found(case) | {FITTED: case.edit("fitted")},
            FITTED_BARE: _found(bare.case(group.pairs, index)) | fits,
        }
        for condition, edits in found.items():
            for name, edit in edits.items():
                arms[condition, Arm(name, index)] = ("unseen", edit)
        logs.append(group.log(case))
    said = exam_of(desk).answer(arms)
    return [
        score_cell(
            desk,
            {plain: said["", plain]} | {arm: said[c, arm] for c, arm in said if c == condition},
            logs,
            condition,
        )
        for condition in (COMMON_TASTE, FITTED_BARE)
    ]


def without_history(study: Study, pairs: Sequence[PreferencePair]) -> list[Contrast]:
    """The contrasts of some pairs under the prompt of a user without history."""
    baseline: Any = study.settings.prompts_baseline
    return [
        replace(contrast, prompt=unseen_prompt(study.task, pair.query, baseline=baseline))
        for pair in pairs
        for contrast in contrasts_from_pairs(study.task, [pair], [], study.settings)
    ]


def _found(case: Case) -> dict[str, Edit]:
    """The paper's edit and its controls, from the pair texts of the case's settings."""
    controls = controls_of(PAPER, "claim")
    seeds = {name: 1000 + case.seed if name == "random" else None for name in controls}
    return {PAPER: case.edit("paper"), **{n: case.edit(n, seed) for n, seed in seeds.items()}}


# ---- Groups of train users, and the refusal of any leak


def groups(desk: Desk, draws: Sequence[int]) -> Iterator[Group]:
    """The groups of Table 1, each checked before anything is fitted on it.

    Raises:
        UserError: A test user, or a text of one, is among them.
    """
    for group in groups_of(desk.study, desk.train, draws, golds=desk.data.train):
        refuse_leaks(group, desk.data)
        yield group


def refuse_leaks(group: Group, data: TaskData) -> None:
    """Refuse a fit or training that a test user, or a text of one, would reach.

    Everything that edits, ALOE and DPO learn from is in the group. In real files two
    people may tag one film or write the same words, so there whole histories decide who is who. In
    the embedded world no text may be shared; only the short posts of two histories can come out
    the same.

    Raises:
        UserError: The sentence names the test user.
    """
    users, pairs = [user.user for user in group.users], group.pairs
    fitted = {user.id for user in users} | {pair.user_id for pair in pairs}
    for user in data.test:
        if user.id in fitted:
            raise UserError(f"Test user {user.id!r} would reach a fit; take another group.")
    check_disjoint(users, data.test)
    if data.truth is None:
        return
    seen = {text for user in users for text in (*_asked(user), *_written(user))}
    seen |= {text for p in pairs for text in (p.query, *(item.text for item in p.items))}
    for user in data.test:
        own = _asked(user) if data.task == "LaMP_7" else [*_asked(user), *_written(user)]
        if not seen.isdisjoint(own):
            raise UserError(f"A text of test user {user.id!r} would reach a fit; split them again.")


def _asked(user: User) -> list[str]:
    return [query.text for query in user.queries]


def _written(user: User) -> list[str]:
    return [item.text for item in user.history]


# ---- Table 2: the tables of Table 1 under every condition


def tasks_of(runs: Sequence[Run]) -> list[str]:
    """Tasks in order."""
    return list(dict.fromkeys(task for run in runs for task in run.data))


def conditions(runs: Sequence[Run], task: str) -> Iterator[tuple[str, Run]]:
    """Every condition of a task with the run that holds it."""
    for run in runs:
        for condition in run.conditions if task in run.data else ():
            yield condition, run


def digests(runs: Sequence[Run]) -> dict[str, str]:
    """Digests of all users that were read, by name."""
    found: dict[str, str] = {}
    for run in runs:
        for task, data in run.data.items():
            found[f"{task}, common taste" if task in found else task] = data.digest
    return found


def _under_each(
    runs: Sequence[Run], task: str, table: Callable[[str, Run], pd.DataFrame]
) -> pd.DataFrame:
    """A table of every condition, one below the other."""
    parts = []
    for condition, run in conditions(runs, task):
        part = table(condition, run).copy()
        part.insert(0, "condition", condition)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def results(runs: Sequence[Run], task: str) -> pd.DataFrame:
    """Table 2 of one task: one row per condition, model and method.

    The paper has one number per method for its unseen users and does not say in which reading, so
    it stands beside both. Of free text the form stands here and in the tables of Table 1's kind;
    what is kept of a gain is counted in the first metric alone.
    """

    def one(condition: str, run: Run) -> pd.DataFrame:
        printed = "table2" if condition in READINGS else ""
        return table1.results(pick(run.frame, condition=condition), task, printed)

    return _under_each(runs, task, one)


def effects(runs: Sequence[Run], task: str) -> pd.DataFrame:
    """Every method against Instruct on the same prompt, per condition: differences and damage."""

    def one(condition: str, run: Run) -> pd.DataFrame:
        part = pick(run.frame, condition=condition)
        return table1.effects(part, task, agreeing_queries(run, task))

    return _under_each(runs, task, one)


def floors(runs: Sequence[Run], task: str) -> pd.DataFrame:
    """Answers that need neither a model nor a history, on the test users of every condition."""
    parts = []
    for condition, run in conditions(runs, task):
        if condition != WITH_HISTORY:  # its users are those without
            part = table1.floors(run, task, history=False).drop(columns="users")
            part.insert(0, "condition", condition)
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def verdicts(runs: Sequence[Run], notebook: str) -> list[Verdict]:
    """Per task, condition and model one verdict per claim of Table 1, without LLM-REC.

    A condition in which a method or one of its controls was not run is not judged, and ALOE, which
    the paper compares with in Table 2, is compared with in its reading alone. In an embedded world
    the reading without history is judged only where users share a taste, which is a condition of
    its own: elsewhere nothing can be known of such a user, so the world would decide the verdict,
    and its rows are a control.
    """
    own = [replace(q, beats=tuple(name for name in q.beats if name != "llm_rec"))
           for q in table1.questions()]  # fmt: skip
    made: list[Claim] = []
    for task in tasks_of(runs):
        for condition, run in conditions(runs, task):
            if condition == NO_HISTORY and run.data[task].truth is not None:
                continue
            asked = [q for q in own if q.against != "aloe" or condition == NO_HISTORY]
            rows = pick(run.frame, task=task, condition=condition)
            printed = _printed if condition in READINGS else _not_printed
            words, remark = f"{WORDS[condition]}, ", f"reading: {condition}"
            made += table1.claims(run, rows, printed, asked, words, remark)
    csv = "tables/table2_{task}_effects.csv"
    return judge(made, section="4.3", notebook=notebook, csv=csv)


def _not_printed(_task: str, _model: str, _question: table1.Question) -> None:
    """In a world of our own."""


def _printed(task: str, model: str, question: table1.Question) -> str | None:
    """The paper's gain of CHAMELEON for new users; it has no Instruct for them but Table 1's."""
    if question.own:
        return None
    if question.against == "aloe":
        return table1.paper_change(task, model, "ALOE", ("table2", "table2"))
    tables, remark = ("table1", "table2"), ", over Instruct with history"
    return table1.paper_change(task, model, "Instruct", tables, remark)


# ---- How much of a gain with history is left without it


@tabled
def retention(main: Run) -> Rows:
    """How much of a method's gain with history is kept without it, per task, model and method.

    Gains are changes of the primary metric turned so that better is positive. The share is given
    where the gain with history is above zero with its whole interval: of nothing, nothing can be
    kept. The paper has no Instruct row for users without history; its own share, and ours the same
    way beside it, take both gains over Instruct with history.
    """
    for (task, model), part in places(main.frame, "task", "model"):
        metric = get_task(task).metrics[0]
        sign = 1 if higher_is_better(metric) else -1
        for method in methods_in(pick(part, condition=NO_HISTORY)):
            if method.id not in FOLLOWED:
                continue
            held = having(part, method.id)
            without, with_it = (
                {name: pick(held, condition=reading, method=name)
                 for name in (method.id, "instruct")}
                for reading in (NO_HISTORY, WITH_HISTORY)
            )  # fmt: skip
            seen, unseen = (
                _turned(between(arms[method.id], arms["instruct"], metric), sign)
                for arms in (with_it, without)
            )
            lost = contrast(
                [
                    (sign, with_it[method.id]),
                    (-sign, with_it["instruct"]),
                    (-sign, without[method.id]),
                    (sign, without["instruct"]),
                ],
                metric,
            )
            row: dict[str, Any] = {
                "task": task.replace("_", "-"),
                "model": title_of(model),
                "method": method.title,
                "metric": metric,
                **estimate_columns(seen, "gain with history"),
                **estimate_columns(unseen, "gain without history"),
                **estimate_columns(lost, "gain lost"),
            }
            for title, base in (
                ("share kept", without),
                ("share kept, as the paper has it", with_it),
            ):
                row[title] = "no gain to keep"
                if seen.low > 0:
                    arms = [without[method.id], base["instruct"], *with_it.values()]
                    found = _share(arms, metric)
                    row[title] = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
            row["paper's share"] = _paper_share(task, metric, model, method.paper)
            yield row | {"n": seen.n, "seeds": seen.seeds}


def _turned(found: Estimate, sign: int) -> Estimate:
    return found if sign > 0 else -found


def _share(arms: Sequence[pd.DataFrame], metric: str) -> Estimate:
    """``(a - b) / (c - d)`` of four arms, resampled over users."""

    def share(totals: np.ndarray) -> np.ndarray:
        a, b, c, d = np.moveaxis(totals[..., 0::2] / totals[..., 1::2], -1, 0)
        # A resample without any gain lies beyond the interval on either side.
        return np.divide(a - b, c - d, out=np.full_like(a, np.inf), where=c != d)

    return bootstrap_metric(share, np.concatenate([user_sums(a, metric) for a in arms], axis=-1))


def _paper_share(task: str, metric: str, model: str, method: str) -> float | None:
    before = paper_value(task, metric, model, "Instruct")
    after = paper_value(task, metric, model, method)
    unseen = paper_value(task, metric, model, method, "table2")
    if before is None or after is None or unseen is None or after == before:
        return None
    return (unseen - before) / (after - before)


# ---- How it is shown


def effect_figure(table: pd.DataFrame, task: str, publish: Publisher) -> FigureOutput:
    """Forest plot of the differences to Instruct: a panel per model, a colour per condition."""
    primary = get_task(task).metrics[0]
    data = drawn(table, f"{primary} change", "condition", "model", "method", "kind")
    # Table order is that of the methods; here what is claimed comes first.
    order = {kind: place for place, kind in enumerate(("edit", "rival", "ceiling", "control"))}
    data = data.sort_values("kind", key=lambda kinds: kinds.map(order), kind="stable")
    return forest(
        publish,
        data,
        f"02_unseen_{task}",
        made_by=effect_figure,
        title=f"{task.replace('_', '-')}, unseen users: {primary} against Instruct",
        caption=(
            f"Change of {primary} against Instruct on the same prompt, for users in no group, with "
            f"95 % intervals over {span(data['n'])} test users and {span(data['seeds'])} groups"
        ),
        xlabel=f"{primary} change",
        method="condition",
        panel="model",
        reference_label="Instruct",
        better=better(primary),
    )
