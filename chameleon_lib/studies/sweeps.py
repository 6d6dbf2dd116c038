"""What the studies of Figures 3 to 5 share: each varies one thing, and asks every method under it.

A condition is one value of what is varied: a group size, a budget, a selection of history items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from chameleon_lib.core.edit import Edit
from chameleon_lib.errors import UserError
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.studies.arms import Exam
from chameleon_lib.studies.frame import Claim, pick
from chameleon_lib.studies.methods import is_papers_decoder, title_of
from chameleon_lib.studies.run import Answers, Arm, Cell, Run

Asked = Mapping[tuple[str, Arm], tuple[str, Edit | None]]  # (condition, arm) → prompt kind, edit
Results = dict[str, dict[Arm, Answers]]  # condition → arm → answers


def ask(exam: Exam, arms: Asked, results: Results) -> None:
    """Ask all arms in one call, and add their answers to ``results``."""
    for (condition, arm), answers in exam.answer(arms).items():
        results.setdefault(condition, {})[arm] = answers


@dataclass(frozen=True, eq=False)
class Place:
    """One condition of one model on one task: its rows of the result frame, and its cells."""

    model: str
    condition: str
    rows: pd.DataFrame
    cells: list[Cell]

    @property
    def title(self) -> str:
        """Of the model, as in tables."""
        return title_of(self.model)

    @property
    def logs(self) -> list[dict[str, Any]]:
        """Of all draws."""
        return [log for cell in self.cells for log in cell.draws]

    def of(self, method: str) -> pd.DataFrame:
        """The rows of one method."""
        return pick(self.rows, method=method)


def places_of(run: Run, task: str, model: str | None = None) -> list[Place]:
    """Every condition that was run on a task; of one model if it is named."""
    found = []
    rows = pick(run.frame, task=task)
    for each in run.models if model is None else [model]:
        own = pick(rows, model=each)
        for condition in run.conditions:
            cells = run.at(task, each, condition)
            if cells:
                found.append(Place(each, condition, pick(own, condition=condition), cells))
    return found


def numbers_of(name: str, text: str, such_as: str, least: int = 1) -> list[int]:
    """The numbers of a parameter, divided by commas, in ascending order, each once.

    ``least`` is the smallest that the largest of them may be.

    Raises:
        UserError: No list of positive whole numbers, or none as large as that.
    """
    try:
        numbers = sorted({int(part) for part in str(text).split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1 or numbers[-1] < least:
        above = f", one of them at least {least}" if least > 1 else ""
        raise UserError(f"{name} is {text!r}; give whole numbers such as '{such_as}'{above}.")
    return numbers


def plot_reading(plot: Mapping[int, float], model: str, few: int, many: int) -> str:
    """The paper's change between two points of a plot, which has its decoder only."""
    if not is_papers_decoder(model) or few not in plot or many not in plot:
        return "not shown in the paper"
    return f"~{plot[many] - plot[few]:+.3f} (plot reading)"


def effects_of(found: Sequence[Claim]) -> Iterator[tuple[Claim, str, Estimate]]:
    """Every claim that was run with its effect (no control: ""), then minus each control."""
    for claim in found:
        for control, number in {"": claim.effect, **claim.margins}.items():
            if number is not None:
                yield claim, control, number
