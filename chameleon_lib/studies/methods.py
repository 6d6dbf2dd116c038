"""The rows of the tables by name: methods, the models they run on, and the paper's numbers.

The rows are those of two registries, ``core.directions`` and ``rivals.registry``, and the prompts
without an edit; a direction or rival that is registered later has its row from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

import chameleon_lib.rivals  # noqa: F401  all of them: a notebook runs again where one changes
from chameleon_lib.core.directions import Direction, all_directions
from chameleon_lib.kit.profiles import model_title
from chameleon_lib.rivals.registry import RIVALS

PAPER, FITTED = "chameleon", "fitted"  # the two edits that are compared: the paper's, and ours

# Why a direction is a control, in the order of tables; of those that no claim must hold against.
ROLES = (
    "claim",  # it is no user's own: whatever is claimed of an edit must hold against it
    "personal",  # it is none either, and is asked where an edit is said to be personal
    "label",  # it shows what a label alone does
    "estimator",  # it is found from the same pairs in another way
    "part",  # it is one of the edit's two parts alone
)
_ROLES = {"permute_answers": "personal", "answer_only": "label", "p_only": "part", "n_only": "part"}
_ROWS = {"paper": PAPER}  # direction → row, where the two have other names


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        id: Key of the row.
        title: Row name.
        kind: ``baseline`` (no edit), ``rival`` (another method), ``edit``, ``control`` or
            ``ceiling``.
        labels: Gold labels the method has seen: ``none`` or ``train``.
        paper: Name of the method in the paper's tables, if it has a row there.
        role: One of :data:`ROLES` if it is a control direction.
        control_of: Ids of the edits that it is a control of.
    """

    id: str
    title: str
    kind: str
    labels: str = "none"
    paper: str = ""
    role: str = ""
    control_of: tuple[str, ...] = ()


_PROMPTS = (
    Method("official", "Plain LaMP prompt, no history", "baseline"),
    Method("official_history", "Plain LaMP prompt, selected history", "baseline"),
    Method("instruct", "Instruct (A.3, no insight)", "baseline", paper="Instruct"),
    Method("insight", "A.3 with insight, no edit", "baseline"),
)
_NEUTRAL = Method("neutral", "A.3 neutral prompt, no edit", "control")


def _row(found: Direction) -> Method:
    """The row of a direction."""
    name = _ROWS.get(found.name, found.name)
    if found.kind == "control":
        against = tuple(_ROWS.get(edit, edit) for edit in found.beats)
        role = "claim" if against else _ROLES.get(name, "estimator")
        return Method(
            name, found.title, "control", role=role, control_of=against or (PAPER,)
        )
    if found.kind == "ceiling":
        return Method(name, found.title, "ceiling", labels="train")
    if name == PAPER:
        return Method(name, found.title, "edit", "none", "CHAMELEON", "estimator", (FITTED,))
    return Method(name, found.title, "edit")


class _Methods(Sequence[Method]):
    """All rows in table order."""

    def _rows(self) -> tuple[Method, ...]:
        rivals = [
            Method(rival.id, rival.title, "rival", "train" if rival.uses_gold else "none",
                   rival.paper)
            for rival in RIVALS.values()
        ]  # fmt: skip
        rows = [_row(found) for found in all_directions() if found.shown]
        edits: list[Method] = []
        for row in (row for row in rows if row.kind == "edit"):
            edits.append(row)
            if row.id in (PAPER, FITTED):
                edits.append(Method(f"{row.id}+insight", f"{row.title} + insight", "edit"))
            if row.id == PAPER:
                top = Method(f"{row.id}_top5", f"{row.title}, up to 5 layers", "edit")
                edits.append(top)
        controls = [row for row in rows if row.kind == "control"]
        ceilings = [row for row in rows if row.kind == "ceiling"]
        return (*_PROMPTS, *rivals, *edits, *controls, _NEUTRAL, *ceilings)

    def __len__(self) -> int:
        return len(self._rows())

    def __iter__(self) -> Iterator[Method]:
        return iter(self._rows())

    def __getitem__(self, at: Any) -> Any:
        return self._rows()[at]


METHODS = _Methods()


def method_of(name: str) -> Method:
    """The row with this id."""
    return next(method for method in METHODS if method.id == name)


def controls_of(edit: str, *roles: str) -> tuple[str, ...]:
    """Ids of an edit's control directions with these roles, in the order of the roles.

    Args:
        edit: Id of the edit.
        *roles: Of :data:`ROLES`; all if none is named.
    """
    return tuple(
        method.id
        for role in ROLES
        for method in METHODS
        if edit in method.control_of and method.role == role and (role in roles or not roles)
    )


# The embedded stand-ins have titles of their own and stand beside the paper's models.
_TITLES = {
    "demo:decoder": "decoder (Mistral class)",
    "demo:encdec": "encoder-decoder (T5 class)",
}
_IN_PAPER = {
    "demo:decoder": "Mistral-7B-Instruct-v0.3",
    "demo:encdec": "Flan-T5-XXL",
    "mistralai/Mistral-7B-Instruct-v0.3": "Mistral-7B-Instruct-v0.3",
    "google/flan-t5-xxl": "Flan-T5-XXL",
}


def model_of(backbone: str) -> str:
    """The model of a backbone: an embedded one without its training seed."""
    return backbone.rpartition(":")[0] if backbone.startswith("demo:") else backbone


def title_of(model: str) -> str:
    """What a table calls a model."""
    return _TITLES.get(model) or model_title(model)


def short_of(model: str) -> str:
    """One word for a model, for sentences and names of files."""
    return title_of(model).split(" ")[0]


def is_papers_decoder(model: str) -> bool:
    """Whether the paper's plots, which show Mistral-7B alone, may stand beside this model."""
    return _IN_PAPER.get(model, "").startswith("Mistral-7B")


@lru_cache(maxsize=1)
def paper_numbers() -> pd.DataFrame:
    """The paper's published tables (table, task, metric, direction, backbone, method, value)."""
    return pd.read_csv(Path(__file__).with_name("paper_tables.csv"))


def paper_value(
    task: str, metric: str, model: str, method: str, table: str = "table1"
) -> float | None:
    """One cell of the paper's Table 1 or 2; None where it has no such row, or not this model."""
    numbers = paper_numbers()
    row = numbers[
        (numbers["table"] == table)
        & (numbers["task"] == task.replace("_", "-"))
        & (numbers["metric"] == metric)
        & (numbers["backbone"] == _IN_PAPER.get(model, ""))
        & (numbers["method"] == method)
    ]
    return None if row.empty else float(row["value"].iloc[0])
