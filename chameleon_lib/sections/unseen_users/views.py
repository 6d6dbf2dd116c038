"""How the frames of section 4.3 are shown: the figure of all conditions, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from chameleon_lib.kit.figures import FigureOutput, dot_ci, save_figure
from chameleon_lib.kit.tables import span
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.estimates import estimate, where_defined
from chameleon_lib.sections.per_user import views as table1_views
from chameleon_lib.sections.results import FAMILY_TITLES, Run
from chameleon_lib.sections.unseen_users.tables import conditions

_PAPER, _FITTED = "CHAMELEON (paper)", "CHAMELEON fitted (ours)"


def effect_figure(frame: pd.DataFrame, task: str, profile: str) -> FigureOutput:
    """Forest plot of the differences to Instruct: a panel per family, a colour per condition."""
    primary = get_task(task).metrics[0]
    column = f"{primary} change"
    drawn = frame.rename(
        columns={column: "value", f"{column}_low": "ci_low", f"{column}_high": "ci_high"}
    )
    keep = ["condition", "family", "method", "kind", "value", "ci_low", "ci_high", "n", "seeds"]
    drawn = drawn[keep]
    # Table order is that of the methods; here what is claimed comes first.
    order = {kind: place for place, kind in enumerate(("edit", "rival", "ceiling", "control"))}
    drawn = drawn.sort_values("kind", key=lambda kinds: kinds.map(order), kind="stable")
    figure = dot_ci(
        drawn,
        title=f"{task.replace('_', '-')}, unseen users: {primary} against Instruct",
        profile=profile,
        xlabel=column,
        method="condition",
        panel="family",
        reference_label="Instruct",
        better="higher" if higher_is_better(primary) else "lower",
    )
    words = []
    for (family, condition), part in drawn.groupby(["family", "condition"], sort=False):
        values = part.set_index("method")["value"]
        words.append(
            f"{family}, {condition}: paper's edit {values[_PAPER]:+.3f}, "
            f"fitted edit {values[_FITTED]:+.3f}"
        )
    return save_figure(
        figure,
        f"02_unseen_{task}",
        alt=f"Forest plot of {len(drawn)} differences to Instruct. {'; '.join(words)}.",
        caption=(
            f"Change of {primary} against Instruct on the same prompt, for users in no group, with "
            f"95 % intervals over {span(drawn['n'])} test users and "
            f"{span(drawn['seeds'])} groups ({profile} profile)."
        ),
        data=drawn,
        profile=profile,
    )


def summary(runs: Sequence[Run], effects: Mapping[str, pd.DataFrame]) -> str:
    """What came out under every condition, in sentences made from the numbers."""
    names = dict.fromkeys(name for frame in effects.values() for name in frame["condition"])
    blocks = []
    for name in names:
        parts = {task: frame[frame["condition"] == name] for task, frame in effects.items()}
        held = {task: part for task, part in parts.items() if not part.empty}
        first, *sentences = table1_views.summary(runs[0], held).splitlines()
        before = [sentence for task in held for sentence in _certainty(runs, task, name)]
        blocks.append("\n".join([f"{first[:-1]}, {name}:", *before, *sentences]))
    return "\n\n".join(blocks)


def _certainty(runs: Sequence[Run], task: str, condition: str) -> list[str]:
    """How far a backbone leans to the generic answer before any edit: what an edit must move."""
    found = []
    for name, run in conditions(runs, task):
        if name != condition:
            continue
        for family in run.families:
            cells = run.of(task, family)
            margin = where_defined(estimate, run, cells, "instruct", "margin")
            found.append(
                f"{task.replace('_', '-')}, {FAMILY_TITLES[family]}: "
                + (
                    f"unedited, the user's answer stands {margin.value:+.1f} nats from the "
                    "generic one."
                    if margin
                    else "no user's answer differs from the generic one."
                )
            )
    return found
