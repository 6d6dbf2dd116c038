"""The pieces of notebooks 07 and 09: a handful of users on one base, and a reader's own history.

Notebook 08 is not counted: its size is that of the reader's table.
"""

from __future__ import annotations

from chameleon_lib.kit.forecast.cell import HELD_OUT, Cell
from chameleon_lib.kit.forecast.known import Model
from chameleon_lib.kit.forecast.scope import Scope, base, directions

SERVED, SERVED_TASK = 5, "LaMP_7"  # parameters of notebook 07
LEARNED, ASKED, MEMBERS = 6, 2, 10  # queries of a user of the world; users of an edit elsewhere
SERVED_STEPS = 12
SOLVERS = ("reference", "span")
PLAY_TASK, STRENGTHS = "LaMP_2", 7


def serving(scope: Scope) -> list[Cell]:
    """Notebook 07: an edit per user, their answers, and both CCS solvers on Table 1's group."""
    cells = []
    for model in scope.models(studied=True):
        cells.append(_service(scope, model))
        for task in scope.profile.tasks:
            cell = base(scope, scope.cell(model, task), scope.train, scope.test)
            directions(cell, scope.train, scope.group, 1)
            cell.ccs("solvers", cell.shape.kept * scope.group, 1)
            cell.exam("solvers", "instruct", ("plain", *SOLVERS), scope.test)
            cells.append(cell)
    return cells


def _service(scope: Scope, model: Model) -> Cell:
    cell = scope.cell(model, SERVED_TASK, "served")
    cell.fit_steps = SERVED_STEPS
    world = scope.embedded_world
    fitting = SERVED if world else SERVED * MEMBERS
    pairs = SERVED * LEARNED if world else fitting
    cell.insights("train", fitting)
    if not world:
        cell.insights("asking", 2 * SERVED)
    cell.pairs("train", pairs)
    cell.activations("main", cell.shape.kept * pairs)
    cell.ccs("pooled", cell.shape.kept * pairs, 1)
    for user in range(SERVED):
        held = 0.0 if world else HELD_OUT
        cell.fits(f"user {user}", pairs / SERVED, ("own",), held=held)
    rows = 3 * SERVED  # no edit, the own one, the pooled one; in one batch, alone, and by PEFT
    for way in ("together", "alone", "PEFT"):
        cell.asked(way, "instruct", rows)
    held_out = SERVED * (ASKED if world else 1)
    cell.asked("whose edit", "instruct", (1 + SERVED) * held_out)
    return cell


def playground(scope: Scope) -> list[Cell]:
    """Notebook 09: Table 1's first group makes both edits; the reader asks one query."""
    models = scope.models(studied=True)[:1]
    cells = []
    for model in models:
        cell = base(scope, scope.cell(model, PLAY_TASK), scope.train, 0)
        directions(cell, scope.train, scope.group, 1)
        cell.fits("draw 0", scope.group, ("fitted",))
        cell.insights("reader", 1)
        cell.pairs("reader", 1)
        for name in ("chameleon", "fitted"):
            for number in range(STRENGTHS):
                cell.exam("play", "instruct", (f"{name} x{number}",), 1)
        cells.append(cell)
    return cells
