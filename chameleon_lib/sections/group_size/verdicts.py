"""The claims of section 4.4 and what came of them, each beside the control it must beat."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.claims import Claim, judged_claims
from chameleon_lib.sections.estimates import estimate
from chameleon_lib.sections.group_size.ladder import OTHER, OWN
from chameleon_lib.sections.group_size.tables import cells_of, groups_of, size_of
from chameleon_lib.sections.paired import Term, contrast
from chameleon_lib.sections.per_user.tables import CLAIM_CONTROLS, FITTED_CONTROLS
from chameleon_lib.sections.results import FAMILY_TITLES, Cell, Run

# Read off the paper's plot (± 0.002), which has the decoder only; shown, never compared with.
_PLOT = {
    "LaMP_2": {0: 0.198, 1: 0.355, 20: 0.377, 40: 0.386, 60: 0.386, 80: 0.387, 100: 0.396},
    "LaMP_3": {0: 0.497, 1: 0.447, 20: 0.431, 40: 0.424, 60: 0.419, 80: 0.411, 100: 0.407},
}


def claims(run: Run, task: str) -> list[Claim]:
    """The claims of Figure 3 for every family; growth is claimed only where two sizes were run."""
    return [claim for family in run.families for claim in _of_family(run, task, family)]


def _of_family(run: Run, task: str, family: str) -> list[Claim]:
    metric = get_task(task).metrics[0]
    groups = groups_of(run, task, family)
    small, large = groups[0], groups[-1]
    few, many = size_of(small), size_of(large)
    found = [_single_user(run, task, family, metric)]

    def add(words: str, own: bool, sizes: tuple[int, int], effect: Estimate,
            margins: dict[str, Estimate]) -> None:  # fmt: skip
        paper = "not in the paper" if own else paper_reading(task, family, *sizes)
        found.append(Claim(task, family, words, own, paper, effect, margins))

    for method, controls, name in (
        ("chameleon", CLAIM_CONTROLS, "CHAMELEON's edit"),
        ("fitted", FITTED_CONTROLS, "beyond the paper, the fitted edit"),
    ):
        own = method == "fitted"
        margins = {c: estimate(run, small, method, metric, c) for c in controls}
        add(f"{name} from {few} users beats Instruct", own, (0, few),
            estimate(run, small, method, metric, "instruct"), margins)  # fmt: skip
        if many > few:
            add(f"{name} from {many} users beats that from {few}", own, (few, many),
                *_growth(run, small, large, method, metric))  # fmt: skip
        single = cells_of(run, task, family).get(OWN)
        if single and method == "chameleon":
            add(f"{name} from {many} users beats that from a single user", own, (1, many),
                *_growth(run, single, large, method, metric))  # fmt: skip
    return found


def _single_user(run: Run, task: str, family: str, metric: str) -> Claim:
    cells = cells_of(run, task, family)
    words = "CHAMELEON's edit from a single user's own pairs beats Instruct"
    paper = paper_reading(task, family, 0, 1)
    if OWN not in cells:
        return Claim(task, family, words, False, paper, None, {})
    own, other = cells[OWN], cells[OTHER]
    margins = {
        "random": estimate(run, own, "chameleon", metric, "random"),
        "another user's directions": contrast(
            run, [Term(1, own, "chameleon"), Term(-1, other, "chameleon")], metric
        ),
    }
    effect = estimate(run, own, "chameleon", metric, "instruct")
    return Claim(task, family, words, False, paper, effect, margins)


def _growth(
    run: Run, small: Sequence[Cell], large: Sequence[Cell], method: str, metric: str
) -> tuple[Estimate, dict[str, Estimate]]:
    """What more users add, and the same minus what they add to random directions.

    Random directions stay the same from size to size: they change with the edited layers alone.
    """
    gain = [Term(1, large, method), Term(-1, small, method)]
    noise = [Term(-1, large, "random"), Term(1, small, "random")]
    margins = {"the growth of random": contrast(run, [*gain, *noise], metric)}
    return contrast(run, gain, metric), margins


def paper_reading(task: str, family: str, few: int, many: int) -> str:
    """The paper's change between two sizes (0: Instruct) as far as its plot shows it."""
    plot = _PLOT.get(task, {})
    if family != "decoder" or few not in plot or many not in plot:
        return "not shown in the paper"
    return f"~{plot[many] - plot[few]:+.3f} (plot reading)"


def claim_frame(found: Sequence[Claim]) -> pd.DataFrame:
    """Every claim's effect, and the effect minus each of its controls, one row each."""
    rows = []
    for claim in found:
        numbers = {"(none)": claim.effect, **claim.margins}
        for minus, number in numbers.items():
            if number is not None:
                rows.append(
                    {
                        "family": FAMILY_TITLES[claim.family],
                        "claim": f"{claim.words} ({get_task(claim.task).metrics[0]} change)",
                        "minus the control": minus.replace("_", " "),
                        **estimate_columns(number),
                    }
                )
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]


def judged(run: Run, found: Sequence[Claim], notebook: str) -> list[Verdict]:
    """One verdict per claim."""
    return judged_claims(run, found, section="4.4", notebook=notebook, figure="figure3")
