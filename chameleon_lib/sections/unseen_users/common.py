"""Unseen users without history in an embedded world in which most users share one taste.

Only there can anything be gained without a history. Two conditions:

- :data:`COMMON_TASTE`: everything is fitted as in Table 1, where prompts and pairs show a history.
- :data:`FITTED_BARE`: pairs and prompts are shown without it, as the users will be asked.

What is cut, for a world of its own costs everything anew: LaMP-2 and LaMP-3 alone, fewer test
users, half of the fit's steps, no ALOE and DPO, no control for the fitted edit in the first
condition, and histories are chosen by position, since embedding them costs more than all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chameleon_lib.core.contrasts import contrasts_from_pairs, swap_contrasts
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import PreferencePair, check_pair_count, keep_different
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.lamp.prompts import unseen_prompt
from chameleon_lib.sections.answering import Exam
from chameleon_lib.sections.fits import stored_directions, stored_fit
from chameleon_lib.sections.grid import Plan, run_grid
from chameleon_lib.sections.results import Cell, Run
from chameleon_lib.sections.scoring import reference_answers, score_cell
from chameleon_lib.sections.study import Study
from chameleon_lib.sections.unseen_users.groups import groups

COMMON_TASTE = "no history, common taste"
FITTED_BARE = "no history, common taste, none in the fit"
TASKS = ("LaMP_2", "LaMP_3")
SHARE = 0.7
MAX_TEST_USERS = 100  # what a verdict needs
FIT_STEPS = 20
_CONTROLS = ("random", "from_neutral", "shuffled_pairs")


def run(
    profile: RunProfile,
    settings: EditSettings,
    *,
    share: float = SHARE,
    fit_steps: int = FIT_STEPS,
    **options: Any,
) -> list[Run]:
    """Compute both conditions: one run, or none if none of their tasks is asked for.

    Args:
        profile: Sizes and backbones.
        settings: Every choice of the method.
        share: Of the users who hold the one common taste.
        fit_steps: Adam steps of the fitted edit, at most those of ``settings``.
        **options: Those of :func:`chameleon_lib.sections.grid.run_grid`, ``tasks`` among them.
    """
    tasks = [task for task in TASKS if task in options["tasks"]]
    if not tasks:
        return []
    small = replace(profile, n_test=min(profile.n_test, MAX_TEST_USERS))
    light = settings.with_(selection_rule="recent", fit_steps=min(settings.fit_steps, fit_steps))
    world = {"common": share}
    return [run_grid(_compute, small, light, **{**options, "tasks": tasks, "world": world})]


def _compute(plan: Plan, backbone: str) -> list[Cell]:
    """One cell per condition."""
    desk = plan.open(backbone)
    study, data = desk.study, desk.data
    tell(f"{study.backbone_id} {study.task}: {len(desk.test)} unseen users, common taste")
    bare = plan.study(backbone, study.settings.with_(pairs_text="query_answer"))
    exam = Exam(study, desk.test, reference_answers(study, data, desk.test))
    arms: dict[str, tuple[str, Edit | None]] = {"instruct": ("unseen", None)}
    logs = []
    for index, group, pairs in groups(study, data, plan.draws):
        kept, identical = keep_different(pairs, study.settings)
        check_pair_count(len(kept), study.settings)
        shown = contrasts_from_pairs(study.task, kept, identical, study.settings)
        alone = without_history(study, [*kept, *identical])
        found = {
            COMMON_TASTE: {
                **_found(study, kept, index),
                **_fitted(study, {"fitted": shown}, index),
            },
            FITTED_BARE: {
                **_found(bare, kept, index),
                **_fitted(
                    study, {"fitted": alone, "fitted_shuffled": swap_contrasts(alone, index)}, index
                ),
            },
        }
        for condition, edits in found.items():
            for name, edit in edits.items():
                arms[f"{condition}/{name}/{index}"] = ("unseen", edit)
        logs.append(
            {
                "users": len(group),
                "pairs": len(pairs),
                "kept": len(kept),
                "identical": len(identical),
            }
        )
    said = exam.answer(arms)
    cells = []
    for condition in (COMMON_TASTE, FITTED_BARE):
        results = {"instruct": [said["instruct"]]}
        for name, answers in said.items():
            if name.startswith(f"{condition}/"):
                results.setdefault(name.split("/")[1], []).append(answers)
        cells.append(score_cell(desk, results, logs, condition))
    return cells


def without_history(study: Study, pairs: Sequence[PreferencePair]) -> list[Contrast]:
    """The contrasts of some pairs under the prompt of a user without history."""
    baseline: Any = study.settings.prompts_baseline
    return [
        replace(contrast, prompt=unseen_prompt(study.task, pair.query, baseline=baseline))
        for pair in pairs
        for contrast in contrasts_from_pairs(study.task, [pair], [], study.settings)
    ]


def _found(study: Study, kept: Sequence[PreferencePair], index: int) -> dict[str, Edit]:
    """The paper's edit and its controls, from the pair texts of the study's settings."""
    h_p, h_n = study.activations(kept)
    main = stored_directions(study, "paper", h_p, h_n, index)
    layers = main.choose_layers(study.settings)
    edits = {"chameleon": main.to_edit(study.settings)}
    for name in _CONTROLS:
        seed = 1000 + index if name == "random" else index
        directions = stored_directions(study, name, h_p, h_n, seed, main)
        edits[name] = directions.to_edit(study.settings, layers)
    return edits


def _fitted(study: Study, contrasts: dict[str, list[Contrast]], index: int) -> dict[str, Edit]:
    """Preference fits by name; all of a call ask the same prompts."""
    prompts = PlainPrompts(study.backbone, [c.prompt for c in contrasts["fitted"]])
    return {
        name: stored_fit(study, some, prompts, index, name)[0] for name, some in contrasts.items()
    }
