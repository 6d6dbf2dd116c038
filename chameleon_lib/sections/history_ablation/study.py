"""Section 4.6, Figure 5: how many history items represent a user, and which.

A condition is a selection rule (the paper's PCA, or a control) with a number of items. Everything
after the selection is made anew in it: insights, pairs, activations, directions and fits. Users
and groups are the same in all conditions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from chameleon_lib.core.contrasts import contrasts_from_pairs
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import PreparedUser, check_pair_count, keep_different
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.answering import Answers, Exam
from chameleon_lib.sections.arms import draw_group
from chameleon_lib.sections.data import TaskData, without_gold
from chameleon_lib.sections.fits import stored_directions, stored_fit
from chameleon_lib.sections.grid import Desk, Plan, run_grid, studied
from chameleon_lib.sections.history_ablation.conditions import (
    DEMO,
    FULL,
    ITEMS,
    RULES,
    Condition,
    Design,
    conditions_of,
    item_numbers,
)
from chameleon_lib.sections.results import Cell, Run, sorted_ids
from chameleon_lib.sections.scoring import reference_answers, score_cell
from chameleon_lib.sections.study import Study

Choices = dict[tuple[str, int], list[list[int]]]

log = logging.getLogger(__name__)
_NO_PAIR = (
    "A group has not one pair with different outputs and gets no edit; run with more users."
)


def run(
    profile: RunProfile,
    settings: EditSettings,
    *,
    items: str = ITEMS,
    data_dir: str = "",
    design: Design | None = None,
    **options: Any,
) -> Run:
    """Compute Figure 5.

    Args:
        profile: Sizes, backbones and data of the run.
        settings: Every choice of the method; rule and number of items are varied.
        items: Numbers of items, divided by commas; ``selection_k`` must be among them.
        data_dir: Folder of official LaMP files; empty for the embedded world.
        design: What is run of the full design; by default all of it on official files, and
            :data:`~chameleon_lib.sections.history_ablation.conditions.DEMO` in the embedded world.
        options: More of :func:`chameleon_lib.sections.grid.run_grid`.

    Returns:
        A run whose test users are those that every backbone can read in every condition.
    """
    design = design or (FULL if data_dir else DEMO)
    sized = replace(
        studied(profile),
        n_train=min(profile.n_train, design.n_train or profile.n_train),
        n_test=min(profile.n_test, design.n_test or profile.n_test),
    )
    grouped = settings.with_(
        group_size=min(settings.group_size, design.group_size or settings.group_size),
        # Few items leave few pairs: to be counted here, not refused (A20).
        pairs_on_too_few="warn",
    )
    known = {"tasks": design.tasks, "world": dict(design.world), "data_dir": data_dir}
    conditions = tuple(conditions_of(items, design, settings.selection_k))
    compute = partial(_compute, conditions=conditions)
    done = run_grid(compute, sized, grouped, **{**known, **options})
    return replace(done, test_users={cell.task: cell.draws[0]["tested"] for cell in done.cells})


def choices(
    done: Run, task: str, items: str = ITEMS, *, store: ArtifactStore | None = None
) -> Choices:
    """What every rule chooses at every number of items, whether or not it was run.

    Returns:
        (rule, items) → indices per test user. No backbone takes part in this.
    """
    chosen = set(done.test_users[task])
    users = [user for user in done.data[task].test if user.id in chosen]
    found = {}
    for rule in RULES:
        for k in item_numbers(items):
            settings = Condition(rule, k).settings(done.settings)
            study = Study(done.profile, done.profile.backbones[0], task, settings, store)
            found[rule, k] = study.select(users)
    return found


@dataclass(frozen=True)
class _Ready:
    """One backbone in one condition: its study, and the users that it can read."""

    study: Study
    train: list[PreparedUser]
    test: list[PreparedUser]
    counts: dict[str, int]


def _compute(plan: Plan, backbone: str, *, conditions: Sequence[Condition]) -> list[Cell]:
    data = plan.data()
    own = _ready(plan, backbone, data, conditions)
    every = [own]
    for name in plan.profile.backbones:
        if name != backbone:
            # From the end: whoever of two workers is done first meets the other halfway.
            every.append(_ready(plan, name, data, conditions[::-1]))
    test = _common(ready.test for part in every for ready in part.values())
    edited = [c for c in conditions if c.arms != "prompts"]
    train = _common(part[condition].train for part in every for condition in edited)
    return [_cell(plan, data, condition, own[condition], train, test) for condition in conditions]


def _ready(
    plan: Plan, backbone: str, data: TaskData, conditions: Sequence[Condition]
) -> dict[Condition, _Ready]:
    found = {}
    for condition in conditions:
        study = plan.study(backbone, condition.settings(plan.settings))
        test, counts = study.prepare(without_gold(data.test))
        train: list[PreparedUser] = []
        if condition.arms != "prompts":
            train, _ = study.prepare(without_gold(data.train))
        found[condition] = _Ready(study, train, test, counts)
    return found


def _common(parts: Iterable[Sequence[PreparedUser]]) -> set[str]:
    """Ids of the users in all of the lists."""
    return set.intersection(*({user.user.id for user in part} for part in parts))


def _cell(
    plan: Plan,
    data: TaskData,
    condition: Condition,
    ready: _Ready,
    train_ids: set[str],
    test_ids: set[str],
) -> Cell:
    """The arms of one backbone under one selection."""
    study = ready.study
    tell(f"{study.backbone_id} {study.task}: {condition.name}, {len(test_ids)} test users")
    test = [user for user in ready.test if user.user.id in test_ids]
    edits: dict[str, Edit] = {}
    logs: list[dict[str, Any]] = [{}]
    if condition.arms != "prompts":
        train = [user for user in ready.train if user.user.id in train_ids]
        edits, logs = _edits(study, condition, train, plan.draws)
    arms: dict[str, tuple[str, Edit | None]] = {
        "instruct": ("instruct", None),
        "insight": ("insight", None),
        **{name: ("instruct", edit) for name, edit in edits.items()},
    }
    results: dict[str, list[Answers]] = {}
    exam = Exam(study, test, reference_answers(study, data, test))
    for name, answers in exam.answer(arms).items():
        results.setdefault(name.split("/")[0], []).append(answers)
    tested = sorted_ids(data, test_ids)
    logs = [{**log, "tested": tested} for log in logs]
    cell = score_cell(Desk(study, data, test, ready.counts), results, logs, condition.name)
    cell.scores["insight"].update(_prompt_scores(data, test, study.settings))
    return cell


def _edits(
    study: Study, condition: Condition, train: Sequence[PreparedUser], draws: Sequence[int]
) -> tuple[dict[str, Edit], list[dict[str, Any]]]:
    """``chameleon/i`` and, if asked for, ``fitted/i`` of every group, with the log of each.

    A rule may show the model so little of a few users that both prompts get the same answers: such
    a group has no edit, and its log says 0 pairs.
    """
    settings = study.settings
    groups = {i: draw_group(train, settings.group_size, i) for i in draws}
    ids = {i: {user.user.id for user in group} for i, group in groups.items()}
    pairs = study.pairs([user for user in train if user.user.id in set().union(*ids.values())])
    own = {i: keep_different([p for p in pairs if p.user_id in ids[i]], settings) for i in draws}
    contrasts = {i: contrasts_from_pairs(study.task, *own[i], settings) for i in draws if own[i][0]}
    # Groups overlap: their prompts are read once for all of them.
    prompts = PlainPrompts(study.backbone, [c.prompt for some in contrasts.values() for c in some])
    edits, logs = {}, []
    for i in draws:
        kept, identical = own[i]
        own_log: dict[str, Any] = {
            "draw": i,
            "users": len(ids[i]),
            "kept": len(kept),
            "identical": len(identical),
            "layers": [],
        }
        logs.append(own_log)
        if not kept:
            own_log["refused"] = _NO_PAIR
            log.warning("%s %s, %s: %s", study.backbone_id, study.task, condition.name, _NO_PAIR)
            continue
        check_pair_count(len(kept), settings)
        directions = stored_directions(study, "paper", *study.activations(kept), i)
        edits[f"chameleon/{i}"] = directions.to_edit(settings)
        own_log["layers"] = list(directions.choose_layers(settings))
        if condition.arms == "fitted":
            edits[f"fitted/{i}"], own_log["fit"] = stored_fit(
                study, contrasts[i], prompts, i, "fitted"
            )
    return edits, logs


def _prompt_scores(
    data: TaskData, test: Sequence[PreparedUser], settings: EditSettings
) -> Mapping[str, np.ndarray]:
    """What stands in the prompt of every query, (1, queries) each.

    ``items`` counts the history items; ``named`` says whether the insight names the planted taste
    (the embedded world only).
    """
    rows: dict[str, list[float]] = {"items": []}
    for user in test:
        for personal, _ in user.insights_for(settings.insight_scope):
            rows["items"].append(float(len(user.items)))
            if data.truth is not None:
                planted = data.truth[user.user.id].insight
                rows.setdefault("named", []).append(float(personal == planted))
    return {name: np.array([values]) for name, values in rows.items()}
