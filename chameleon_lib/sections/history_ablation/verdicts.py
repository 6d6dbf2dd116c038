"""The claims of section 4.6 and the verdicts on them: how many items, and chosen by which rule."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.claims import Claim, judged_claims
from chameleon_lib.sections.history_ablation.conditions import PAPER
from chameleon_lib.sections.history_ablation.tables import PLOT, cells_of, versus
from chameleon_lib.sections.paired import Term, contrast
from chameleon_lib.sections.results import FAMILY_TITLES, Cell, Run

_TITLES = {"chameleon": "CHAMELEON (paper)", "insight": "A.3 with insight, no edit"}
_OTHERS = ("recent", "nearest")  # beside random; "pca raw" is another reading, no control

Cells = dict[tuple[str, int], list[Cell]]


def claims(run: Run, task: str) -> list[Claim]:
    """The paper's two claims on the number of items, and ours on the rule, for every family."""
    k = run.settings.selection_k
    found = []
    for family in run.families:
        cells = cells_of(run, task, family)
        numbers = sorted(number for rule, number in cells if rule == PAPER)
        found.append(_number(run, task, family, cells, numbers[0], k, 1))
        found.append(_number(run, task, family, cells, k, numbers[-1], -1))
        found += [
            _rule(run, task, family, cells, rule, method, k)
            for rule, method in (
                (PAPER, "chameleon"),
                (PAPER, "insight"),
                ("pca raw", "insight"),
            )
        ]
    return found


def _number(
    run: Run, task: str, family: str, cells: Cells, few: int, many: int, sign: int
) -> Claim:
    """More items help CHAMELEON (sign 1) or hurt it (-1), beyond what they do to Instruct.

    A prompt without any edit changes with its items as well: only what exceeds that is the
    method's.
    """
    metric = get_task(task).metrics[0]
    words = (
        f"too little history limits the gain: {many} items beat {few}"
        if sign == 1
        else f"too much history hurts: {many} items are worse than {few}"
    )
    plot = PLOT.get((task, metric), {})
    paper = "not shown in the paper"
    if family == "decoder" and few in plot and many in plot:
        paper = f"~{plot[many] - plot[few]:+.3f} (plot reading)"
    change = versus(cells.get((PAPER, many), []), cells.get((PAPER, few), []), "chameleon")
    if few == many or not change:
        return Claim(task, family, words, False, paper, sign=sign)
    prompt = [Term(-term.weight, term.cells, "instruct") for term in change]
    return Claim(
        task,
        family,
        words,
        False,
        paper,
        contrast(run, change, metric),
        {"the change of Instruct": contrast(run, change + prompt, metric)},
        sign,
    )


def _rule(run: Run, task: str, family: str, cells: Cells, rule: str, method: str, k: int) -> Claim:
    """A rule chooses better than chance, and than the other controls where they were run.

    Random items are what the effect is measured against and a control too: where they are the only
    one, a rule that beats them has beaten every control that was run.
    """
    metric = get_task(task).metrics[0]
    words = (
        f"beyond the paper's figure, {rule} selection beats random items at {k} items "
        f"({_TITLES[method]})"
    )
    claim = Claim(task, family, words, True, "no such comparison in the paper")
    against = {
        other: terms
        for other in ("random", *_OTHERS)
        if (terms := versus(cells.get((rule, k), []), cells.get((other, k), []), method))
    }
    if "random" not in against:
        return claim
    found = {other: contrast(run, terms, metric) for other, terms in against.items()}
    return Claim(task, family, words, True, claim.paper, found["random"], found)


def claim_frame(found: Sequence[Claim]) -> pd.DataFrame:
    """Every claim that was run and every control it must beat, one row each."""
    rows = []
    for claim in found:
        if claim.effect is None:
            continue
        shown = {"": claim.effect, **{f"minus {n}": m for n, m in claim.margins.items()}}
        for control, value in shown.items():
            rows.append(
                {
                    "family": FAMILY_TITLES[claim.family],
                    "claim": claim.words,
                    "control": control or "the change itself",
                    "metric": get_task(claim.task).metrics[0],
                    **estimate_columns(value, "change"),
                }
            )
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if c not in ("n", "seeds")] + ["n", "seeds"]]


def judged(run: Run, found: Sequence[Claim], notebook: str) -> list[Verdict]:
    """One verdict per claim."""
    return judged_claims(run, found, section="4.6", notebook=notebook, figure="figure5")
