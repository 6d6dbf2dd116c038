"""Verdicts of the controls: the kit's own claims to its three questions."""

from __future__ import annotations

from chameleon_lib.kit.stats import own_claim, verdict
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.sections.claims import split_of
from chameleon_lib.sections.controls.answers import (
    ALONE,
    COMMON,
    ON_TOP,
    combinations,
    ledger_places,
    primary,
    rescue,
)
from chameleon_lib.sections.controls.ledger import ledger_tests
from chameleon_lib.sections.controls.tables import EDITS, factorial_effect
from chameleon_lib.sections.estimates import having
from chameleon_lib.sections.paired import difference
from chameleon_lib.sections.results import FAMILY_TITLES, Run


def verdicts(table1: Run, ledger: Run, notebook: str) -> list[Verdict]:
    """The kit's own claims to the three questions, per task and family."""
    found = []
    for task, family, cells in combinations(table1):
        metric, better = primary(task), higher_is_better(primary(task))
        place = f"{task.replace('_', '-')}, {FAMILY_TITLES[family]}"
        for edit, title in EDITS.items():
            alone, on_top = (
                factorial_effect(table1, cells, edit, effect, metric) for effect in (ALONE, ON_TOP)
            )
            common = [name for name in COMMON[edit] if having(cells, name)]
            margins = [difference(table1, cells, edit, name, metric) for name in common]
            for claim, effect, controls, note in (
                (
                    "acts through a personalised direction",
                    alone,
                    # A gain on top of the insight is the next claim, and no control of this one.
                    margins,
                    f"must also beat: {', '.join(common)}" if common else "no control was run",
                ),
                (
                    "helps beyond the insight in the prompt",
                    on_top,
                    [alone],
                    "must also gain without the insight",
                ),
            ):
                found.append(
                    Verdict(
                        words=f"{title} {claim}",
                        setting=place,
                        measure=f"{metric} change",
                        section="4.2",
                        notebook=notebook,
                        paper="not in the paper",
                        ours=effect,
                        own=True,
                        status=own_claim(verdict(effect, controls, better)),
                        n=effect.n,
                        seeds=effect.seeds,
                        scorer=f"{metric}, LaMP evaluator's definition",
                        csv="tables/controls_a_insight_edit.csv",
                        note=note.replace("_", " "),
                        split=split_of(table1, task),
                    )
                )
    return found + _ledger_verdicts(ledger, notebook)


def _ledger_verdicts(run: Run, notebook: str) -> list[Verdict]:
    """Does some reading of an open point let the paper's edit add something to its prompt?"""
    found, tests = [], ledger_tests(run)
    for task in run.data:
        for family in run.families:
            rescues = {
                variant.title: rescue(run, task, family, variant, tests)
                for t, f, variant in ledger_places(run)
                if (t, f) == (task, family)
            }
            if not rescues:
                continue
            title = max(rescues, key=lambda name: min(one.low for one in rescues[name]))
            gain, against = rescues[title]
            found.append(
                Verdict(
                    words="some reading of an open point lets the paper's edit add to its prompt",
                    setting=f"{task.replace('_', '-')}, {FAMILY_TITLES[family]}",
                    measure=f"{primary(task)} gain, interval widened",
                    section="3.2",
                    notebook=notebook,
                    paper="not in the paper",
                    ours=gain,
                    own=True,
                    status=own_claim(verdict(gain, [against])),
                    n=gain.n,
                    seeds=gain.seeds,
                    scorer=f"{primary(task)}, LaMP evaluator's definition, gains upwards",
                    csv="tables/controls_d_ledger.csv",
                    note=f"the best of {len(rescues)}: {title}; interval widened to cover {tests} "
                    "comparisons; must also add more than the default edit",
                    split=split_of(run, task),
                )
            )
    return found
