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

The demo leaves one thing out to stay within its minutes: the fitted edit between the smallest and
the largest group. All else is the full design.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.sections.answering import Answers, Exam
from chameleon_lib.sections.data import without_gold
from chameleon_lib.sections.grid import Plan, run_grid, studied
from chameleon_lib.sections.group_size.agreement import agreement_logs
from chameleon_lib.sections.group_size.ladder import build_ladder
from chameleon_lib.sections.results import Cell, Run
from chameleon_lib.sections.scoring import reference_answers, score_cell

SIZES = (1, 20, 40, 60, 80, 100)
TASKS = ("LaMP_2", "LaMP_3")


def run(profile: RunProfile, settings: EditSettings, *, sizes: str = "", **options: Any) -> Run:
    """Compute Figure 3.

    Args:
        profile: Sizes, backbones and data of the run.
        settings: Every choice of the method; few pairs are counted and never refused here (A20).
        sizes: Group sizes with commas between; the paper's if empty. One above the number of train
            users becomes that number.
        options: Those of :func:`chameleon_lib.sections.grid.run_grid`.
    """
    wanted = parse_sizes(sizes) if sizes else SIZES
    fit_between = not profile.name.startswith("demo")
    compute = partial(_compute, sizes=wanted, fit_between=fit_between)
    small = settings.with_(pairs_on_too_few="warn")
    done = run_grid(compute, studied(profile), small, **{"tasks": TASKS, **options})
    for task, data in done.data.items():
        if len(data.train) < wanted[-1]:
            done.notes.append(
                f"{task}: {len(data.train)} train users are all there are; no group is larger, and "
                "the groups of all of them do not differ from draw to draw."
            )
    return done


def parse_sizes(text: str) -> tuple[int, ...]:
    """Group sizes in ascending order, each once.

    Raises:
        UserError: Something else than numbers of at least 1, or no group of two or more users.
    """
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1 or sizes[-1] < 2:
        raise UserError(f"sizes is {text!r}; give numbers like 1,20,100, one of them above 1.")
    return tuple(sizes)


def _compute(
    plan: Plan, backbone: str, *, sizes: Sequence[int], fit_between: bool
) -> list[Cell]:
    desk = plan.open(backbone)
    study = desk.study
    # Golds are withheld from everything here: no method of this study needs one.
    train, _ = study.prepare(without_gold(desk.data.train))
    held = sorted({min(size, len(train)) for size in sizes})
    tell(f"{backbone} {plan.task}: groups of {', '.join(map(str, held))} users")
    pairs = study.pairs(train)
    exam = Exam(study, desk.test, reference_answers(study, desk.data, desk.test))
    plain = exam.answer({"instruct": ("instruct", None)})["instruct"]
    n_random = -(-study.settings.controls_random_draws // len(plan.draws))
    ladders = [
        build_ladder(
            study,
            train,
            pairs,
            desk.test,
            sizes,
            index,
            first=place == 0,
            n_random=n_random,
            fit_between=fit_between,
        )
        for place, index in enumerate(plan.draws)
    ]
    logs = agreement_logs([[rung.found for rung in rungs] for rungs in ladders])
    answers: dict[str, dict[str, list[Answers]]] = {}
    for rungs in ladders:
        arms = {
            f"{rung.condition}/{name}": ("instruct", edit)
            for rung in rungs
            for name, edit in rung.edits.items()
        }
        for key, found in exam.answer(arms).items():
            condition, name = key.split("/")
            answers.setdefault(condition, {}).setdefault(name, []).append(found)
    cells = []
    for at, rung in enumerate(ladders[0]):
        log = [own[at].log | agreed[at] for own, agreed in zip(ladders, logs, strict=True)]
        results = {"instruct": [plain], **answers[rung.condition]}
        cells.append(score_cell(desk, results, log, rung.condition))
    return cells
