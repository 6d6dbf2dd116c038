"""Three questions answered from the numbers, a paragraph each.

Every word that judges is chosen by an interval. Gains point upwards: errors are turned around.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import MIN_USERS, Estimate
from chameleon_lib.lamp.metrics import higher_is_better, per_sample_scores
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.controls.ledger import added_to_default, ledger_tests
from chameleon_lib.sections.controls.tables import (
    EDITS,
    TITLES,
    factorial_effect,
)
from chameleon_lib.sections.controls.variants import VARIANTS, Variant
from chameleon_lib.sections.estimates import STATISTICS, estimate, having
from chameleon_lib.sections.paired import difference, widened
from chameleon_lib.sections.results import Cell, Run, query_golds

ALONE, ON_TOP, IN_PLACE = (
    "edit alone (C5 - C3)",
    "edit on top of the insight (C6 - C4)",
    "edit in place of the insight (C5 - C4)",
)
# Directions that are no user's own (method reference, section 11): the edit must beat them all.
COMMON = {
    "chameleon": ("random", "from_neutral", "shuffled_pairs", "permute_answers"),
    "fitted": ("random", "fitted_shuffled"),
}


def combinations(run: Run) -> list[tuple[str, str, list[Cell]]]:
    """The cells of every task and family of Table 1."""
    return [(task, family, run.of(task, family)) for task in run.data for family in run.families]


def gain_of(task: str, found: Estimate) -> Estimate:
    """The estimate with gains upwards."""
    return found if higher_is_better(get_task(task).metrics[0]) else -found


def _named(task: str, family: str) -> str:
    return f"{task.replace('_', '-')} {family}"


def _count(places: Sequence[str], total: int) -> str:
    return f"{len(places)} of {total}" + (f" ({', '.join(places)})" if places else "")


def _scale(run: Run) -> str:
    """Profile and test users, with a warning below the number that allows a judgement."""
    users = min(len(ids) for ids in run.test_users.values())
    few = f" (fewer than {MIN_USERS}: too few to judge by)" if users < MIN_USERS else ""
    return f"{run.profile.name} profile, {users} test users{few}"


def primary(task: str) -> str:
    """The metric a task is judged by."""
    return get_task(task).metrics[0]


def ledger_places(run: Run) -> list[tuple[str, str, Variant]]:
    """Where the ledger's run has the edit under a reading."""
    return [
        (task, family, variant)
        for task in run.data
        for family in run.families
        for variant in VARIANTS
        if having(run.of(task, family, variant.title), "chameleon")
    ]


def rescue(
    run: Run, task: str, family: str, variant: Variant, tests: int
) -> tuple[Estimate, Estimate]:
    """What the edit adds under a reading, and more than by default, widened for ``tests``."""
    cells = having(run.of(task, family, variant.title), "chameleon")
    gain = difference(run, cells, "chameleon", variant.prompt, primary(task))
    against = added_to_default(run, task, family, variant, primary(task))
    return widened(gain_of(task, gain), tests), widened(gain_of(task, against), tests)


def direction_sentence(run: Run) -> str:
    """Does the edit act through a personalised direction? ``run`` is Table 1's."""
    places = combinations(run)
    words = [
        f"{_scale(run)}, {len(places)} combinations of task and family. One direction "
        "serves a whole group, so it can be personal only in what it makes of the history in the "
        "prompt."
    ]
    for edit, title in EDITS.items():
        helps, hurts, own = [], [], []
        beaten: dict[str, int] = dict.fromkeys(COMMON[edit], 0)
        for task, family, cells in places:
            metric = get_task(task).metrics[0]
            effect = gain_of(task, difference(run, cells, edit, "instruct", metric))
            held = [name for name in COMMON[edit] if having(cells, name)]
            margins = {
                name: gain_of(task, difference(run, cells, edit, name, metric)) for name in held
            }
            for name, margin in margins.items():
                beaten[name] += margin.low > 0
            if effect.high < 0:
                hurts.append(_named(task, family))
            elif effect.low > 0:
                helps.append(_named(task, family))
                if margins and all(margin.low > 0 for margin in margins.values()):
                    own.append(_named(task, family))
        against = ", ".join(
            f"{TITLES[name].removeprefix('control: ')} in {count}" for name, count in beaten.items()
        )
        if not helps:
            outcome = "there is no gain whose direction could be personal"
        elif not own:
            outcome = "where it gains, some common direction gains as much"
        elif len(own) < len(helps):
            outcome = f"only in {_count(own, len(helps))} of its gains is the direction its own"
        else:
            outcome = "no direction that is nobody's gives any of its gains"
        words.append(
            f"{title} beats Instruct in {_count(helps, len(places))} and falls below it in "
            f"{_count(hurts, len(places))}. It beats {against}. So {outcome}."
        )
    return " ".join(words)


def _room(run: Run) -> str:
    """How far the insight alone gets, and where the planted answers themselves stand."""
    reached = []
    for task, family, cells in combinations(run):
        metric = primary(task)
        words = f"{_named(task, family)} {estimate(run, cells, 'insight', metric).value:.3f}"
        truth = run.data[task].truth
        if truth is not None:
            planted = [answer for user in run.test_users[task] for answer in truth[user].personal]
            scores = per_sample_scores(task, query_golds(run, task), planted)
            words += f" (the planted answers {np.mean(scores[STATISTICS[metric][0]]):.3f})"
        reached.append(f"{words} {metric}")
    return f"It reaches {', '.join(reached)}: an edit on top of it has no more room than that."


def insight_sentence(run: Run) -> str:
    """Does the edit help beyond the insight in the prompt? ``run`` is Table 1's."""
    places = combinations(run)
    insight = {"more": 0, "less": 0}
    for task, _, cells in places:
        found = gain_of(task, difference(run, cells, "insight", "instruct", primary(task)))
        insight["more"] += found.low > 0
        insight["less"] += found.high < 0
    words = [
        f"{_scale(run)}. The insight in the prompt, without any edit, gains in "
        f"{insight['more']} of {len(places)} combinations of task and family and costs in "
        f"{insight['less']}. {_room(run)}"
    ]
    for edit, title in EDITS.items():
        more, less, better, worse = (list[str]() for _ in range(4))
        for task, family, cells in places:
            on_top, instead = (
                gain_of(task, factorial_effect(run, cells, edit, effect, primary(task)))
                for effect in (ON_TOP, IN_PLACE)
            )
            name = _named(task, family)
            for found, gains, losses in ((on_top, more, less), (instead, better, worse)):
                if found.low > 0:
                    gains.append(name)
                elif found.high < 0:
                    losses.append(name)
        if not more:
            outcome = "adds nothing to the insight" + (" and costs some of it" if less else "")
        elif less:
            outcome = "adds to the insight in some places and costs in others"
        else:
            everywhere = len(more) == len(places)
            outcome = "adds to the insight" + ("" if everywhere else " in some places")
        words.append(
            f"{title} on top of it gains in {_count(more, len(places))} and costs in "
            f"{_count(less, len(places))}; in place of it, it is better in "
            f"{_count(better, len(places))} and worse in {_count(worse, len(places))}. "
            f"So it {outcome}."
        )
    return " ".join(words)


def ambiguity_sentence(run: Run, frame: pd.DataFrame) -> str:
    """Which ambiguities matter? ``run`` is the ledger's, ``frame`` its effects."""
    tests = ledger_tests(run)
    words = [
        f"{_scale(run)}, {tests} comparisons with the default. By chance alone "
        f"{0.05 * tests:.1f} intervals of 95 % would leave out 0; at the width that covers all "
        "comparisons at once hardly any would."
    ]
    for column, kind, verb in (
        ("against the default", "answers", "How often the edited model is right"),
        ("added, against the default", "edit", "What the edit adds to the same prompt without it"),
    ):
        plain = int(((frame[f"{column}_low"] > 0) | (frame[f"{column}_high"] < 0)).sum())
        listed = [
            f"{row['id']} {row['reading']} ({row['family'].split(' ')[0]}, {row[column]:+.3f})"
            for _, row in frame[frame["matters"].str.contains(kind)].iterrows()
        ]
        words.append(
            f"{verb} moves in {plain} at 95 % and in {len(listed)} at that width"
            + (f": {'; '.join(listed)}." if listed else ".")
        )
    edit, answers = (frame["matters"].str.contains(kind).any() for kind in ("edit", "answers"))
    if edit:
        words.append("So some open points decide what the edit does.")
    elif answers:
        words.append(
            "So the open points that matter do so through the prompt; none was seen to decide what "
            "the edit does."
        )
    else:
        words.append("So no open point was seen to matter here.")
    rescued = [
        f"{variant.title} ({family})"
        for task, family, variant in ledger_places(run)
        if min(gain.low for gain in rescue(run, task, family, variant, tests)) > 0
    ]
    words.append(
        "Readings under which the edit adds something, and more than by default, at that width: "
        + ("; ".join(rescued) or "none")
        + ". They were compared on test users, so none of them is a recommendation."
    )
    return " ".join(words)
