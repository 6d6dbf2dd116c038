"""What the history ablation varies: rules and numbers of items, and what a profile can afford."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError

Arms = Literal["prompts", "edit", "fitted"]

EDITS = ("chameleon", "fitted")  # methods with one answer per group
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


@dataclass(frozen=True)
class Condition:
    """One selection.

    Attributes:
        rule: One of :data:`RULES`.
        k: Items, at most.
        arms: ``prompts`` are Instruct and Instruct with insight; ``edit`` adds the paper's edit,
            ``fitted`` both edits.
    """

    rule: str
    k: int
    arms: Arms = "fitted"

    @property
    def name(self) -> str:
        """As in ``Cell.condition``, such as "pca · 10 items"."""
        return f"{self.rule} · {self.k} items"

    @classmethod
    def parse(cls, name: str) -> Condition:
        """Rule and number of a cell's condition."""
        rule, rest = name.split(" · ")
        return cls(rule, int(rest.split()[0]))

    def settings(self, base: EditSettings) -> EditSettings:
        """The settings under this selection."""
        return base.with_(selection_k=self.k, **RULES[self.rule])


@dataclass(frozen=True)
class Design:
    """What of the study is run.

    Attributes:
        tasks: Tasks of the figure.
        n_train: Train users, at most; 0 for the profile's number.
        n_test: Test users, at most; 0 for the profile's number.
        group_size: Users per group, at most; 0 for the settings' number.
        fitted_items: Numbers of items at which the fitted edit is made; empty for all.
        control_items: Numbers of items at which the controls are run; empty for all.
        control_arms: Arms under each control; ``fitted`` where it does not say.
        world: Knobs of the embedded world.
    """

    tasks: tuple[str, ...] = ("LaMP_2", "LaMP_3")
    n_train: int = 0
    n_test: int = 0
    group_size: int = 0
    fitted_items: tuple[int, ...] = ()
    control_items: tuple[int, ...] = ()
    control_arms: tuple[tuple[str, Arms], ...] = ()
    world: tuple[tuple[str, Any], ...] = ()


FULL = Design()

# A few minutes of one core. Cut: LaMP-3; users and groups (embedding their histories takes a
# quarter of the time); the fitted edit and the controls to the paper's 10 items (a fit on prompts
# of 25 items takes three times as long), and all controls but random to the prompts without an
# edit. Histories are longer than elsewhere: of 12 to 16 items any rule takes nearly the same 10.
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


def item_numbers(items: str) -> list[int]:
    """The numbers of items in ascending order, each once.

    Raises:
        UserError: No list of positive whole numbers.
    """
    try:
        numbers = sorted({int(part) for part in items.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise UserError(f"items is {items!r}; give whole numbers such as '{ITEMS}'.")
    return numbers


def conditions_of(items: str, design: Design, paper_items: int) -> list[Condition]:
    """The conditions of a run: the paper's rule at every number of items, then the controls.

    Args:
        items: Numbers of items, divided by commas.
        design: What of them is run.
        paper_items: The paper's number, which all claims refer to.

    Raises:
        UserError: No list of numbers, or one without the paper's.
    """
    numbers = item_numbers(items)
    if paper_items not in numbers:
        raise UserError(f"items is {items!r}; the claims are about {paper_items}, so add it.")
    arms = dict(design.control_arms)
    found = [
        Condition(PAPER, k, "fitted" if k in (design.fitted_items or numbers) else "edit")
        for k in numbers
    ]
    for rule in CONTROLS:
        chosen = [k for k in numbers if k in (design.control_items or numbers)]
        found += [Condition(rule, k, arms.get(rule, "fitted")) for k in chosen]
    return found


def prompt_length(k: int, backbone: str) -> str:
    """Beside every number of the embedded models: they learned from at most ten items, by chance.

    More items are a length they never saw, and so are ten that a rule has picked.
    """
    if not backbone.startswith("demo:"):
        return "within the context"
    return "as trained" if k <= TRAINED_ITEMS else "longer than trained"
