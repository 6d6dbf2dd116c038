"""What all notebooks found together: the verdicts as tables, a figure and careful sentences.

Nothing is judged anew here: every word of a verdict comes from ``kit.stats.verdict`` in the
notebook that computed it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from chameleon_lib.kit.figures import FigureOutput
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
    TOO_FEW_USERS,
)
from chameleon_lib.kit.verdicts import Verdict, verdict_frame
from chameleon_lib.kit.verdicts import tally as count
from chameleon_lib.studies.frame import forest

_UNJUDGED = (NOT_RUN, TOO_FEW_USERS)
ONE_SIDE = 0.025  # chance that a 95 % interval leaves zero on the side of the claim


def claims(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Every claim: section, paper, ours with its interval, n, seeds, verdict, and where it is from.

    Links lead to the executed notebook and to the table behind the number; they are relative to a
    folder beside ``html/`` and ``tables/``.
    """
    links = []
    for v in verdicts:
        links.append(Markup('<a href="../html/{0}.html">{0}</a>').format(v.notebook))
        if v.csv:
            links[-1] += Markup(' · <a href="../{0}">CSV</a>').format(v.csv)
    # As objects: a column of text would turn the links into plain text.
    frame = verdict_frame(verdicts).drop(columns="controls").astype(object)
    frame["ours"] = ["not run" if v.ours is None else str(v.ours) for v in verdicts]
    frame.insert(0, "section", [v.section for v in verdicts])
    frame["split"] = [v.split for v in verdicts]
    frame["from"] = pd.Series(links, dtype=object)
    return frame


def tally(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """How many claims of each notebook got which word, the paper's and ours apart.

    Claims of a notebook rest on different numbers of users and seeds: the least and the most of
    those that were run stand in the row.
    """
    rows = []
    for row in count(verdicts):
        ours = row["claims of"] == "ours"
        part = [v for v in verdicts if (v.notebook, v.own) == (row["notebook"], ours)]
        run = [(v.n, v.seeds) for v in part if v.ours is not None] or [(0, 0)]
        for name, found in zip(("n", "seeds"), zip(*run, strict=True), strict=True):
            row |= {name: min(found), f"largest {name}": max(found)}
        rows.append(row)
    return pd.DataFrame(rows)


def may_conclude(verdicts: Sequence[Verdict]) -> list[str]:
    """What a reader may say after this run, counted from the verdicts."""
    judged = [v for v in verdicts if v.status not in _UNJUDGED]
    paper, own = (Counter(v.status for v in judged if v.own is ours) for ours in (False, True))
    return [
        f"Of {paper.total()} judged claims of the paper {paper[REPRODUCED]} are reproduced, "
        f"{paper[DIRECTION_ONLY]} show the direction only (a control reaches it, or none was run), "
        f"{paper[NOT_REPRODUCED]} are not reproduced, and {paper[OPPOSITE]} came out opposite.",
        f"Of {own.total()} judged claims of our own {own[HOLDS]} hold, {own[DIRECTION_ONLY]} show "
        f"the direction only, {own[DOES_NOT_HOLD]} do not hold, and {own[OPPOSITE]} came out "
        "opposite.",
        f"Not judged, as they were not run or on too few users: {len(verdicts) - len(judged)}.",
    ]


def may_not_conclude(verdicts: Sequence[Verdict], profile: RunProfile) -> list[str]:
    """What this run does not show, whatever came out."""
    judged = [v for v in verdicts if v.status not in _UNJUDGED]
    return [
        profile.banner,
        "Intervals cover the choice of users. They do not cover the choice of the model, of which "
        "there are one or two training seeds, nor that of the groups (`seeds` in the tables).",
        f"With {len(judged)} claims judged at 95 %, about {ONE_SIDE * len(judged):.2g} intervals "
        "would leave zero on the side of the claim by chance alone.",
        "A gain that a control reaches as well is no personalisation, and a gain over Instruct is "
        "none over a better prompt: see the rows with the insight in the prompt.",
    ]


def figure(verdicts: Sequence[Verdict], publish: Publisher) -> FigureOutput | str:
    """Every judged change of a metric with its 95 % interval, one panel per metric.

    Slopes, shifted differences and widened intervals would stand on the wrong scale there; the
    caption counts them.

    Returns:
        The figure, or a sentence where there is nothing to draw.
    """
    judged = [v for v in verdicts if v.status not in _UNJUDGED]
    drawable = [v for v in judged if v.plain]
    if not drawable:
        return "No judged change of a metric to draw."
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
    return forest(
        publish,
        frame,
        "99_effects",
        made_by=figure,
        title="Every judged change",
        caption=f"All {len(frame)} judged changes of a metric with 95 % intervals over users; "
        f"errors (mae) are better to the left. {len(judged) - len(frame)} more judged effects are "
        "on other scales and not drawn: slopes, differences shifted by a tolerance, and intervals "
        "widened for many comparisons",
        xlabel="ours",
        row="claim",
        panel="metric",
        reference_label="no effect",
    )
