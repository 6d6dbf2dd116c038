"""Section 4.3, Table 2: test users who are in no group, without any history and with theirs.

The paper calls them new users without history, yet its set-up evaluates groups on users who have
one (A19). Both readings are shown: the question alone (:data:`NO_HISTORY`, the paper's words), and
the prompt of Table 1, whose history no fit has seen (:data:`WITH_HISTORY`: the stored answers of
Table 1).

Where every taste is a user's own, nothing can be known of a user without history, so in the
embedded world that reading is a control: whatever moves there is no personalisation.
:mod:`~chameleon_lib.sections.unseen_users.common` asks it again where most users share one taste.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.sections.answering import Answers, Exam
from chameleon_lib.sections.arms import Draw, build_draw
from chameleon_lib.sections.grid import Plan, run_grid, studied
from chameleon_lib.sections.results import Cell, Run
from chameleon_lib.sections.rivals import tunings_of
from chameleon_lib.sections.scoring import reference_answers, score_cell
from chameleon_lib.sections.tunings import (
    TunedStudy,
    training_log,
)
from chameleon_lib.sections.unseen_users import common as unseen_common
from chameleon_lib.sections.unseen_users.groups import groups

NO_HISTORY = "no history"
WITH_HISTORY = "with history"
READINGS = {NO_HISTORY: "unseen", WITH_HISTORY: "instruct"}  # condition → prompt kind

SHOWN = (
    "chameleon",
    "fitted",
    "random",
    "from_neutral",
    "shuffled_pairs",
    "fitted_shuffled",
    "fitted_gold",
)


def run(profile: RunProfile, settings: EditSettings, **options: Any) -> list[Run]:
    """Compute Table 2.

    Args:
        profile: Sizes and data; its studied backbones are used.
        settings: Every choice of the method.
        **options: Those of :func:`chameleon_lib.sections.grid.run_grid`.

    Returns:
        The run with both readings and, in the embedded world, the one with a common taste.

    Raises:
        UserError: A test user, or a text of one, would reach a fit or a training.
    """
    profile = studied(profile)
    main = run_grid(_compute, profile, settings, **options)
    if any(data.truth is None for data in main.data.values()):
        note = "Whether users share a taste cannot be set in real data: no common-taste condition."
        return [_noted(main, note)]
    common = unseen_common.run(profile, settings, **{**options, "tasks": list(main.data)})
    return [_noted(run) for run in (main, *common)]


def _noted(run: Run, *notes: str) -> Run:
    """The run with what was refused nowhere, and other notes."""
    groups_of = sum(len(c.draws) for c in run.cells if c.condition == run.conditions[0])
    what = "test user" if notes else "test user or a text of one"
    checked = f"Checked before every fit: none of the {groups_of} groups holds a {what}."
    return replace(run, notes=[*run.notes, checked, *notes])


def _compute(plan: Plan, backbone: str) -> list[Cell]:
    """One cell per reading: the edits and trainings of Table 1, asked in both."""
    desk = plan.open(backbone)
    study, data = desk.study, desk.data
    tell(f"{study.backbone_id} {study.task}: {len(desk.test)} unseen users")
    exam = Exam(study, desk.test, reference_answers(study, data, desk.test))
    # Table 1's number of random directions per draw, since their seeds count through the draws.
    n_random = -(-study.settings.controls_random_draws // len(plan.draws))
    draws: list[Draw] = []
    answers: dict[str, dict[str, list[Answers]]] = {reading: {} for reading in READINGS}
    for index, group, own in groups(study, data, plan.draws):
        draw = build_draw(study, group, own, index, n_random)
        for name, tuned in tunings_of(study, group, own, index).items():
            draw.log[name] = training_log(tuned.log)
            asked = exam.of(TunedStudy(study, tuned)).answer(_plain())
            for reading in READINGS:
                answers[reading].setdefault(name, []).append(asked[reading])
        draws.append(draw)
    # One call for all draws: the prompts of a kind are then read once.
    said = exam.answer({**_plain(), **_edited(draws)})
    for reading in READINGS:
        answers[reading]["instruct"] = [said[reading]]
        for name in SHOWN:
            answers[reading][name] = [said[f"{reading}/{name}/{draw.index}"] for draw in draws]
    logs = [draw.log for draw in draws]
    return [score_cell(desk, answers[reading], logs, reading) for reading in READINGS]


def _plain() -> dict[str, tuple[str, Edit | None]]:
    return {reading: (kind, None) for reading, kind in READINGS.items()}


def _edited(draws: Sequence[Draw]) -> dict[str, tuple[str, Edit | None]]:
    """The shown arms of every draw in both readings; one random direction per draw."""
    return {
        f"{reading}/{name}/{draw.index}": (
            kind,
            draw.edits["random/0" if name == "random" else name],
        )
        for reading, kind in READINGS.items()
        for draw in draws
        for name in SHOWN
    }
