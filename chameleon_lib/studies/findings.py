"""What all notebooks found together: the verdicts as tables, a figure and careful sentences.

Nothing is judged anew here: every word of a verdict comes from ``kit.stats.verdict`` in the
notebook that computed it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from chameleon_lib.kit.figures import FigureOutput, dot_ci
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
    STATUSES,
    TOO_FEW_USERS,
)
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.kit.verdicts import tally as count

_UNJUDGED = (NOT_RUN, TOO_FEW_USERS)
ONE_SIDE = 0.025  # chance that a 95 % interval leaves zero on the side of the claim


def claims(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Every claim: section, paper, ours with its interval, n, seeds, verdict, and where it is from.

    Links lead to the executed notebook and to the table behind the number; they are relative to a
    folder beside ``html/`` and ``tables/``.
    """
    rows = []
    for v in verdicts:
        links = Markup('<a href="../html/{0}.html">{0}</a>').format(v.notebook)
        if v.csv:
            links += Markup(' · <a href="../{0}">CSV</a>').format(v.csv)
        rows.append(
            {
                "section": v.section,
                "claim": v.claim,
                "paper": v.paper,
                "ours": "not run" if v.ours is None else str(v.ours),
                "n": v.n,
                "seeds": v.seeds,
                "verdict": v.status,
                "split": v.split,
                "from": links,
            }
        )
    # As objects: a column of text would turn the links into plain text.
    return pd.DataFrame(rows, dtype=object)


def tally(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """How many claims of each notebook got which word, the paper's and ours apart.

    Claims of a notebook rest on different numbers of users and seeds: the least and the most of
    those that were run stand in the row.
    """
    rows = []
    for row in count(verdicts):
        part = [v for v in verdicts if v.notebook == row["notebook"]]
        part = [v for v in part if v.own == (row["claims of"] == "ours")]
        users = [v.n for v in part if v.ours is not None] or [0]
        seeds = [v.seeds for v in part if v.ours is not None] or [0]
        rows.append(
            row
            | {"n": min(users), "largest n": max(users)}
            | {"seeds": min(seeds), "largest seeds": max(seeds)}
        )
    return pd.DataFrame(rows)


def may_conclude(verdicts: Sequence[Verdict], profile: RunProfile) -> list[str]:
    """What a reader may say after this run, counted from the verdicts."""
    sentences = []
    printed = [v for v in verdicts if not v.own and v.status not in _UNJUDGED]
    if printed:
        counts = Counter(v.status for v in printed)
        sentences.append(
            f"Of {len(printed)} claims of the paper that were judged on the {profile.name} "
            f"profile, {counts[REPRODUCED]} are reproduced, {counts[DIRECTION_ONLY]} show the "
            f"direction only (a control reaches it, or none was run), {counts[NOT_REPRODUCED]} are "
            f"not reproduced, and {counts[OPPOSITE]} came out opposite."
        )
    for section in dict.fromkeys(v.section for v in printed):
        part = [v for v in printed if v.section == section]
        right = sum(v.status == REPRODUCED for v in part)
        sentences.append(f"Section {section}: {right} of {len(part)} claims reproduced.")
    own = [v for v in verdicts if v.own and v.status not in _UNJUDGED]
    if own:
        counts = Counter(v.status for v in own)
        sentences.append(
            f"Of {len(own)} claims of our own, {counts[HOLDS]} hold, {counts[DOES_NOT_HOLD]} do "
            f"not, {counts[DIRECTION_ONLY]} show the direction only (a control reaches it, or none "
            f"was run), and {counts[OPPOSITE]} came out opposite."
        )
    left = sum(v.status in _UNJUDGED for v in verdicts)
    if left:
        sentences.append(f"{left} claims were not judged: not run, or on too few users.")
    return sentences


def may_not_conclude(verdicts: Sequence[Verdict], profile: RunProfile) -> list[str]:
    """What this run does not show, whatever came out."""
    judged = [v for v in verdicts if v.status not in _UNJUDGED]
    few = sorted({v.seeds for v in judged})
    sentences = []
    if profile.name != "paper":
        sentences.append(
            f"{profile.banner} Nothing here says whether the paper's own numbers are right."
        )
    sentences.append(
        "Intervals cover the choice of users. They do not cover the choice of the model, of which "
        "there are one or two training seeds per family"
        + (f", nor that of the groups ({few[0]} to {few[-1]} seeds per row)." if few else ".")
    )
    if judged:
        sentences.append(
            f"With {len(judged)} claims judged at 95 %, about {ONE_SIDE * len(judged):.2g} "
            "intervals would leave zero on the side of the claim by chance alone."
        )
    sentences.append(
        "A gain that a control reaches as well is no personalisation, and a gain over Instruct is "
        "none over a better prompt: see the rows with the insight in the prompt."
    )
    return sentences


def figure(verdicts: Sequence[Verdict], publish: Publisher) -> FigureOutput | str:
    """Every judged change of a metric with its 95 % interval, one panel per metric.

    Slopes, shifted differences and widened intervals would stand on the wrong scale there; the
    caption counts them.

    Returns:
        The figure, or a sentence where there is nothing to draw.
    """
    judged = [v for v in verdicts if v.status not in _UNJUDGED]
    drawable = [v for v in judged if v.plain]
    left = len(judged) - len(drawable)
    left_out = (
        f" {left} more judged effects are not drawn: slopes, differences shifted by a tolerance, "
        "and intervals widened for many comparisons."
        if left
        else ""
    )
    if not drawable:
        return f"No judged change of a metric to draw.{left_out}"
    rows = [
        {
            "claim": f"{v.section} · {v.claim.split(' (')[0]}"[:90],
            "metric": v.metric,
            "status": v.status,
            "value": v.ours.value,
            "ci_low": v.ours.low,
            "ci_high": v.ours.high,
            "n": v.n,
            "seeds": v.seeds,
        }
        for v in drawable
        if v.ours is not None
    ]
    frame = pd.DataFrame(rows)
    counts = Counter(frame["status"])
    words = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    drawn = dot_ci(
        frame,
        title="Every judged change",
        profile=publish.profile,
        xlabel="ours",
        row="claim",
        panel="metric",
        reference_label="no effect",
    )
    return publish.figure(
        drawn,
        "99_effects",
        alt=f"Forest plot of {len(frame)} effects with 95 % intervals: {words}.",
        caption=(
            f"All {len(frame)} judged changes of a metric with 95 % intervals over users; errors "
            f"(mae) are better to the left. {words} ({publish.profile} profile).{left_out}"
        ),
        data=frame,
        made_by=figure,
    )
