"""What the index page shows first: the main claim, all claims in one sentence, one figure each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    HOLDS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
)
from chameleon_lib.kit.verdicts import Verdict

# Notebook number -> how the ids of its leading figures go on: the paper's tables and figures in
# the paper's order, then the controls' forest plots. All others open on demand.
LEADING = {
    "01": "effects",
    "02": "unseen",
    "03": "size",
    "04": "compute",
    "05": "items",
    "06": "directions",
}
CONTROLS = "06"


def headline(verdicts: Sequence[Verdict]) -> list[tuple[int, Verdict]]:
    """The paper's first claim in every setting, each verdict with its place in the whole list."""
    first = next((v for v in verdicts if not v.own), None)
    if first is None:
        return []
    return [
        (number, verdict)
        for number, verdict in enumerate(verdicts)
        if not verdict.own
        and (verdict.notebook, verdict.words) == (first.notebook, first.words)
    ]


def found(verdicts: Sequence[Verdict]) -> list[str]:
    """What came out and how sure it is, in sentences counted from the verdicts.

    Args:
        verdicts: all of a profile, the paper's claims and ours.

    Returns:
        One sentence on the paper's claims, one on how they were judged; none without verdicts.
    """
    paper = [v for v in verdicts if not v.own]
    run = [v for v in verdicts if v.status != NOT_RUN]
    if not paper:
        return []
    counts = Counter(v.status for v in paper)
    always = (REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED, OPPOSITE)
    words = [f"{counts[s]} {s}" for s in (*always, *(s for s in counts if s not in always))]
    sentences = [
        f"{len(paper)} verdicts, one for each claim of the paper in each task and model family: "
        f"{', '.join(words)}."
    ]
    if run:
        users, seeds = _span(v.n for v in run), _span(v.seeds for v in run)
        sentences.append(
            f"each on {users} users and {seeds} seeds, with a 95 % interval over users; "
            "“reproduced” also asks that the effect beats its controls."
        )
    return sentences


def beyond(verdicts: Sequence[Verdict]) -> list[str]:
    """What the kit's own method does where the main claim was tested, one sentence per claim."""
    first = next((v for v in verdicts if not v.own), None)
    if first is None:
        return []
    claims: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.own and verdict.notebook == first.notebook:
            claims.setdefault(verdict.words, []).append(verdict)
    return [
        f"{words}: {sum(v.status == HOLDS for v in settings)} of {len(settings)} settings hold."
        for words, settings in claims.items()
    ]


def _span(numbers: Any) -> str:
    distinct = sorted(set(numbers))
    return f"{distinct[0]}" if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


def figure_groups(
    figures: Sequence[Mapping[str, Any]], titles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Figures by the notebook that drew them, the paper's first.

    Args:
        figures: sidecars, ordered by id; an id begins with the number of its notebook.
        titles: notebook stem -> title.

    Returns:
        Per notebook: stem, title, whether it holds the controls, the one figure that is open
        (None for a notebook that only supports the others) and the rest.
    """
    by_number: dict[str, list[Mapping[str, Any]]] = {}
    for figure in figures:
        by_number.setdefault(figure["id"][:2], []).append(figure)
    groups = []
    # The paper's sections and their controls, then whatever else drew something.
    for number in sorted(by_number, key=lambda n: (n not in LEADING, n)):
        drawn = by_number[number]
        leading = f"{number}_{LEADING.get(number, '')}"
        first = next((f for f in drawn if f["id"].startswith(leading)), drawn[0])
        stem = next((stem for stem in titles if stem.startswith(f"{number}_")), number)
        groups.append(
            {
                "stem": stem,
                "title": titles.get(stem, stem),
                "controls": number == CONTROLS,
                "first": first if number in LEADING else None,
                "rest": [f for f in drawn if f is not first or number not in LEADING],
            }
        )
    return groups
