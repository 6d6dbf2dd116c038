"""Dose and response: the effect of the edits in worlds of weaker and stronger planted tastes.

Only an embedded world can show it. The strength of a world decides how often a user's taste wins
where it could, in histories and gold answers alike: at 0.25 three of four such labels are generic.
All else is the same at every dose, users, sentences and the chance that decides each label, so that
doses are compared user by user. Since the golds follow the dose, an edit of constant push would
gain accuracy with it; the margin between the user's and the generic answer does not know the golds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from chameleon_lib.core.contrasts import contrasts_from_pairs
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import (
    PreparedUser,
    check_pair_count,
    fit_context,
    keep_different,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.lamp.records import User
from chameleon_lib.sections.answering import Answers, Exam
from chameleon_lib.sections.arms import draw_group
from chameleon_lib.sections.controls.study import stored_edit
from chameleon_lib.sections.data import TaskData, without_gold
from chameleon_lib.sections.fits import stored_directions, stored_fit
from chameleon_lib.sections.grid import Desk, Plan, run_grid, studied
from chameleon_lib.sections.results import Cell, Run, sorted_ids
from chameleon_lib.sections.scoring import reference_answers, score_cell
from chameleon_lib.sections.study import Study

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

    Args:
        profile: Its studied backbones are used.
        settings: Every choice of the method but the selection: histories of exchangeable items
            need no embedder, whose cost would be that of all answers.
        doses: Strengths of the world.
        users: Train users, at most, and test users; a smaller ``max_users`` caps both.
        group: Users per group, at most.
        options: Those of :func:`chameleon_lib.sections.grid.run_grid`.
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
    done = run_grid(partial(_compute, doses=tuple(doses)), sized, light, **options)
    tested = {cell.task: cell.draws[0]["tested"] for cell in done.cells}
    return replace(done, test_users=tested)


def name_of(dose: float) -> str:
    """Condition of a dose."""
    return f"strength {dose:g}"


def _compute(plan: Plan, backbone: str, *, doses: Sequence[float]) -> list[Cell]:
    plans = [replace(plan, world=(*plan.world, ("strength", dose))) for dose in doses]
    worlds = [each.data() for each in plans]
    everyone = [
        {user.user.id for user in _asked(each.study(name), data.test)}
        for name in sorted(plan.profile.backbones, key=lambda name: name == backbone)
        for each, data in zip(plans, worlds, strict=True)
    ]
    tested = set.intersection(*everyone)
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
    study: Study, data: TaskData, draws: Sequence[int], dose: float, tested: set[str]
) -> Cell:
    """All arms of one backbone at one dose."""
    tell(f"{study.backbone_id} {study.task}: taste of strength {dose:g}, {len(tested)} test users")
    test = [user for user in _asked(study, data.test) if user.user.id in tested]
    edits, logs = _edits(study, data.train, draws)
    arms: dict[str, tuple[str, Edit | None]] = {
        "instruct": ("instruct", None),
        **{name: ("instruct", edit) for name, edit in edits.items()},
    }
    results: dict[str, list[Answers]] = {}
    exam = Exam(study, test, reference_answers(study, data, test))
    for name, answers in exam.answer(arms).items():
        results.setdefault(name.split("/")[0], []).append(answers)
    ids = sorted_ids(data, tested)
    logs = [{**log, "tested": ids} for log in logs]
    counts = {"users": len(data.test), "too_long": len(data.test) - len(test)}
    return score_cell(Desk(study, data, test, counts), results, logs, name_of(dose))


def _edits(
    study: Study, users: Sequence[User], draws: Sequence[int]
) -> tuple[dict[str, Edit], list[dict[str, Any]]]:
    """Paper's, fitted and random edit of every group, and what went into them."""
    settings = study.settings
    train: list[PreparedUser] = study.prepare(without_gold(users))[0]
    pairs = study.pairs(train)
    groups = {i: {u.user.id for u in draw_group(train, settings.group_size, i)} for i in draws}
    own = {
        i: keep_different([pair for pair in pairs if pair.user_id in ids], settings)
        for i, ids in groups.items()
    }
    contrasts = {i: contrasts_from_pairs(study.task, *own[i], settings) for i in draws}
    # Read together, once for all groups.
    prompts = PlainPrompts(study.backbone, [c.prompt for i in draws for c in contrasts[i]])
    edits, logs = {}, []
    for index in draws:
        kept, identical = own[index]
        check_pair_count(len(kept), settings)
        h_p, h_n = study.activations(kept)
        edits[f"chameleon/{index}"] = main = stored_edit(study, h_p, h_n, index)
        drawn = stored_directions(study, "random", h_p, h_n, 1000 + index)
        edits[f"random/{index}"] = drawn.to_edit(settings, main.layers)
        edits[f"fitted/{index}"], _ = stored_fit(study, contrasts[index], prompts, index, "fitted")
        logs.append({"users": len(groups[index]), "kept": len(kept), "identical": len(identical)})
    return edits, logs
