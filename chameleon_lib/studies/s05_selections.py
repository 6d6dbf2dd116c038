"""Section 4.6, Figure 5: how many history items represent a user, and which.

A condition is a selection: a rule (the paper's PCA, or a control) with a number of items.
Everything after the selection is made anew in it: insights, pairs, activations, directions and
fits. Users and groups are the same in all conditions.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import check_pair_count, keep_different
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.arms import Log, exam_of, groups_of, score_cell
from chameleon_lib.studies.data import without_gold
from chameleon_lib.studies.run import Arm, Cell, Desk, Plan, Run, in_all, run_grid, studied
from chameleon_lib.studies.study import Study
from chameleon_lib.studies.sweeps import numbers_of

Arms = Literal["prompts", "edit", "fitted"]
Choices = dict[tuple[str, int], list[list[int]]]

ITEMS = "5,10,15,20,25"
PAPER = "pca"
TRAINED_ITEMS = 10  # most history items in a training prompt of the embedded models
_EQ2 = {"selection_norm": "l2", "selection_n_components": None}

# Rule → what it changes in the settings. Two readings of eq. 2 stand here (A17): "pca" ranks items
# by their distance from the user's mean, "pca raw" projects the embeddings as they are, as the
# equation prints it.
RULES: Mapping[str, Mapping[str, Any]] = {
    PAPER: {"selection_rule": "pca"},
    "pca raw": {"selection_rule": "pca", "selection_center": "components"},
    "random": {"selection_rule": "random", "selection_center": "both", **_EQ2},
    "recent": {"selection_rule": "recent", "selection_center": "both", **_EQ2},
    "nearest": {"selection_rule": "nearest", "selection_center": "both", **_EQ2},
}
CONTROLS = tuple(rule for rule in RULES if rule != PAPER)

log = logging.getLogger(__name__)
_NO_PAIR = "A group has not one pair with different outputs and gets no edit; run with more users."


# --- the design ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """One condition.

    Its arms are Instruct and Instruct with insight (``prompts``), with the paper's edit (``edit``)
    or with both edits (``fitted``).
    """

    rule: str
    k: int
    arms: Arms = "fitted"

    @property
    def name(self) -> str:
        """As in ``Cell.condition``, such as "pca · 10 items"."""
        return f"{self.rule} · {self.k} items"

    def settings(self, base: EditSettings) -> EditSettings:
        """The settings under this selection."""
        return base.with_(selection_k=self.k, **RULES[self.rule])


@dataclass(frozen=True)
class Design:
    """What of the study is run: upper limits of users, 0 for the run's own; which of the numbers of
    items asked for; and at which of them the fitted edit and the controls are made. Empty is all.

    A control that ``control_arms`` does not name has all arms; ``world`` are knobs of the embedded
    world.
    """

    tasks: tuple[str, ...] = ("LaMP_2", "LaMP_3")
    n_train: int = 0
    n_test: int = 0
    group_size: int = 0
    items: tuple[int, ...] = ()
    fitted_items: tuple[int, ...] = ()
    controls: tuple[str, ...] = CONTROLS
    control_items: tuple[int, ...] = ()
    control_arms: tuple[tuple[str, Arms], ...] = ()
    world: tuple[tuple[str, Any], ...] = ()

    def selections(self, items: str, paper_items: int) -> list[Selection]:
        """The conditions of a run: the paper's rule at every number of items, then the controls.

        All claims refer to the paper's number of items.

        Raises:
            UserError: No list of numbers, or one without the paper's.
        """
        numbers = numbers_of("items", items, ITEMS)
        if paper_items not in numbers:
            raise UserError(f"items is {items!r}; the claims are about {paper_items}, so add it.")
        arms = dict(self.control_arms)
        numbers = [k for k in numbers if not self.items or k in (*self.items, paper_items)]
        found = [
            Selection(PAPER, k, "fitted" if k in (self.fitted_items or numbers) else "edit")
            for k in numbers
        ]
        chosen = [k for k in numbers if k in (self.control_items or numbers)]
        for rule in self.controls:
            found += [Selection(rule, k, arms.get(rule, "fitted")) for k in chosen]
        return found


# The paper's figure is its own rule at every number, and so is its claim. What stands beside it is
# judged at the paper's 10 items: the controls and the fitted edit are made there alone. Each
# condition writes its insights anew, so train users are those that three groups need.
FULL = Design(
    n_train=300,
    fitted_items=(10,),
    control_items=(10,),
    control_arms=(
        ("pca raw", "prompts"),
        ("random", "edit"),
        ("recent", "edit"),
        ("nearest", "edit"),
    ),
)

# The same claims for a day of a laptop, of the numbers and rules that they compare: "pca raw" and
# the controls beside random are left out.
REDUCED = replace(
    FULL, n_train=66, n_test=102, group_size=44, items=(5, 10, 25), controls=("random",)
)

# A few minutes of one core. Cut: LaMP-3; users and groups (embedding their histories takes a
# quarter of the time); the fitted edit and the controls to the paper's 10 items, and all controls
# but random to the prompts without an edit. Histories are longer than elsewhere: of 12 to 16 items
# any rule takes nearly the same 10.
DEMO = Design(
    tasks=("LaMP_2",),
    n_train=66,
    n_test=102,
    group_size=44,
    fitted_items=(10,),
    control_items=(10,),
    control_arms=(
        ("pca raw", "prompts"),
        ("random", "edit"),
        ("recent", "prompts"),
        ("nearest", "prompts"),
    ),
    world=(("history", (28, 32)),),
)


def prompt_length(k: int, backbone: str) -> str:
    """Beside every number of the embedded models: they learned from at most ten items, by chance.

    More items are a length they never saw, and so are ten that a rule has picked.
    """
    if not backbone.startswith("demo:"):
        return "within the context"
    return "as trained" if k <= TRAINED_ITEMS else "longer than trained"


# --- the study -----------------------------------------------------------------------------------


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

    Test users are those that every backbone can read in every condition.

    Args:
        profile: Sizes, backbones and data of the run.
        settings: Every choice of the method; rule and number of items are varied.
        items: Numbers of items, divided by commas; ``selection_k`` must be among them.
        data_dir: Folder of official LaMP files; empty for the embedded world.
        design: By default :data:`DEMO` in the embedded world; on official files :data:`FULL`, or
            :data:`REDUCED` in a reduced profile.
        options: More of :func:`chameleon_lib.studies.run.run_grid`.
    """
    files = REDUCED if profile.reduced else FULL
    design = design or (files if data_dir else DEMO)
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
    selections = tuple(design.selections(items, settings.selection_k))
    compute = partial(_compute, selections=selections)
    return run_grid(compute, sized, grouped, **{**known, **options})


def choices(
    done: Run, task: str, items: str = ITEMS, *, store: ArtifactStore | None = None
) -> Choices:
    """(rule, items) → what every rule chooses, as indices per test user, run or not.

    No backbone takes part in this.
    """
    users = done.data[task].chosen(done.test_users[task])
    found = {}
    for rule in RULES:
        for k in numbers_of("items", items, ITEMS):
            settings = Selection(rule, k).settings(done.settings)
            study = Study(done.profile, done.profile.backbones[0], task, settings, store)
            found[rule, k] = study.select(users)
    return found


def _compute(plan: Plan, backbone: str, *, selections: Sequence[Selection]) -> list[Cell]:
    own: dict[Selection, Desk] = {}
    tests, trains, data = [], [], plan.data()
    for name in sorted(plan.profile.backbones, key=lambda name: name != backbone):
        # Others from the end: whoever of two workers is done first meets the other halfway.
        for each in selections if name == backbone else selections[::-1]:
            study = plan.study(name, each.settings(plan.settings))
            test = study.prepare(without_gold(data.test))
            desk = Desk(study, data, test.users, test.counts)
            tests.append(desk.test)
            if each.arms != "prompts":
                trains.append(desk.train)
            if name == backbone:
                own[each] = desk
    common, train = in_all(tests), in_all(trains)
    cells = []
    for each, desk in own.items():
        tell(f"{backbone} {plan.task}: {each.name}, {len(common)} test users")
        tested = [user for user in desk.test if user.user.id in common]
        cells.append(_cell(each, replace(desk, test=tested), train, plan.draws))
    return cells


def _cell(selection: Selection, desk: Desk, train: Collection[str], draws: Sequence[int]) -> Cell:
    """The arms of one backbone under one selection, on the users that all have in common."""
    arms: dict[Arm, tuple[str, Edit | None]] = {
        Arm(kind): (kind, None) for kind in ("instruct", "insight")
    }
    logs: list[Log] = [{}]
    if selection.arms != "prompts":
        edits, logs = _edits(desk, selection, train, draws)
        arms |= {arm: ("instruct", edit) for arm, edit in edits.items()}
    answers = exam_of(desk).answer(arms)
    logs = [{**log, "rule": selection.rule, "items": selection.k} for log in logs]
    cell = score_cell(desk, answers, logs, selection.name)
    cell.answers[Arm("insight")].scores.update(_prompt_scores(desk))
    return cell


def _edits(
    desk: Desk, selection: Selection, common: Collection[str], draws: Sequence[int]
) -> tuple[dict[Arm, Edit], list[Log]]:
    """``chameleon`` and, if asked for, ``fitted`` of every group, with the log of each.

    A rule may show the model so little of a few users that both prompts get the same answers: such
    a group has no edit, and its log says 0 pairs.
    """
    study, settings = desk.study, desk.study.settings
    train = [user for user in desk.train if user.user.id in common]
    edits: dict[Arm, Edit] = {}
    logs = []
    for group in groups_of(study, train, draws):
        case = Case(study, *keep_different(group.pairs, settings), group.pairs, group.index)
        logs.append(group.log(case))
        if not case.kept:
            logs[-1]["refused"] = _NO_PAIR
            log.warning("%s %s, %s: %s", study.backbone_id, study.task, selection.name, _NO_PAIR)
            continue
        check_pair_count(len(case.kept), settings)
        edits[Arm("chameleon", group.index)] = case.edit("paper")
        if selection.arms == "fitted":
            edits[Arm("fitted", group.index)] = case.edit("fitted")
            logs[-1]["fit"] = case.fits["fitted"].log()
    return edits, logs


def _prompt_scores(desk: Desk) -> dict[str, np.ndarray]:
    """What stands in the prompt of every query, (queries,) each.

    ``items`` counts the history items; ``named`` says whether the insight names the planted taste
    (the embedded world only).
    """
    truth = desk.data.truth
    rows: dict[str, list[float]] = {"items": []}
    for user in desk.test:
        for personal, _ in user.insights_for(desk.study.settings.insight_scope):
            rows["items"].append(float(len(user.items)))
            if truth is not None:
                planted = truth[user.user.id].insight
                rows.setdefault("named", []).append(float(personal == planted))
    return {name: np.array(values) for name, values in rows.items()}
