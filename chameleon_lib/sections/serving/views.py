"""What the serving notebook says and draws; every word is computed from its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from chameleon_lib.kit.figures import FigureOutput, dot_ci, save_figure
from chameleon_lib.sections.serving.answers import UNEDITED
from chameleon_lib.sections.serving.solvers import EDITED, EQUAL, ORDERS

_FORM = "form"


def forms_sentence(agreement: pd.DataFrame) -> str:
    """What the equality table shows."""
    within = (agreement["difference from the hook, below"] <= agreement["allowed"]).all()
    tokens = int(agreement["greedy tokens"].sum())
    same = int(agreement["same greedy tokens"].sum())
    worst = float(agreement["difference from the hook, below"].max())
    untouched = bool(agreement["base bit for bit"].all())
    return (
        f"Hook, adapters and merged weights {'agree' if within else 'do not all agree'} within the "
        f"bounds: no logit differs by more than {worst:.0e}, {same} of {tokens} greedy tokens are "
        f"the same, and the base under a disabled adapter is {'' if untouched else 'not '}bit for "
        "bit the base."
    )


def batch_sentence(batches: pd.DataFrame) -> str:
    """What one batch for all users shows."""
    equal, count = int(batches["equal answers"].sum()), int(batches["answers"].sum())
    opening = (
        "Users of one batch get what they get alone"
        if equal == count
        else "Not every user of one batch gets what the other ways to serve give"
    )
    return (
        f"{opening}: {equal} of {count} compared answers are the same, across rows that edit "
        "different layers and rows that are not edited."
    )


def whose_sentences(found: pd.DataFrame) -> list[str]:
    """Does it matter whose edit answers?

    Only an edit of one user's own queries that changes answers can show whose it is: one that
    changes none says the same as any other, and in official files an edit is a small group's.
    """
    sentences = []
    for row in found.to_dict("records"):
        same = row["another user's edit says the same"]
        sentence = (
            f"{row['family']}: the own edit changes {row['changed by the own edit']:.0%} of "
            f"{row['held-out queries']} held-out answers, and in {same:.0%} of the cases another "
            "user's edit says the same on the same prompt."
        )
        sentences.append(sentence)
    personal = f"right: {UNEDITED}" in found  # counted where each user's taste is planted
    if (
        personal
        and float(found["changed by the own edit"].min()) > 0
        and float(found["another user's edit says the same"].min()) >= 0.9
    ):
        sentences.append(
            "So these edits hold next to nothing of one user's taste: what tells the users apart "
            "is the history in the prompt."
        )
    sentences.append(
        f"With {int(found['n'].max())} users per family this is a look and no verdict."
    )
    return sentences


def solver_sentences(found: pd.DataFrame) -> list[str]:
    """What the solvers agree on, counted over tasks and backbones."""
    count = len(found)
    lower = int((found["mean loss, span"] < found["mean loss, reference"]).sum())
    return [
        f"Over {count} groups (tasks × backbones): the fast solver orders the layers like the "
        f"reference in {int(found[ORDERS].sum())} and picks the same ones to edit in "
        f"{int(found[EDITED].sum())}. It ends at a lower mean loss in {lower}.",
        f"{found[EQUAL].min():.1%} to {found[EQUAL].max():.1%} of the edited answers are equal; of "
        f"those that either edit changes, {found['equal among these'].min():.0%} to "
        f"{found['equal among these'].max():.0%}.",
    ]


def size_figure(sizes: pd.DataFrame, profile: str) -> FigureOutput:
    """Bytes per user, every form and both backbones, as powers of ten."""
    drawn = sizes[["backbone", _FORM, "MB per user", "n", "seeds"]].copy()
    drawn["value"] = [math.log10(size * 1e6) for size in drawn["MB per user"]]
    drawn["ci_low"] = drawn["ci_high"] = drawn["value"]
    figure = dot_ci(
        drawn,
        title="What one user takes on disk",
        profile=profile,
        xlabel="bytes, power of ten",
        row=_FORM,
        panel="backbone",
        reference=None,
        better="lower",
    )
    words = _ranges(drawn)
    return save_figure(
        figure,
        "07_sizes",
        alt=f"Dots on a logarithmic scale, from directions to merged weights. {words}",
        caption=(
            f"Computed from the shapes of the paper's backbones, all decoder layers edited. {words}"
            f" ({profile} profile)."
        ),
        data=drawn,
        profile=profile,
    )


def _ranges(drawn: pd.DataFrame) -> str:
    parts: Sequence[str] = [
        f"{name}: {part['MB per user'].min():.1f} MB to {part['MB per user'].max():,.0f} MB"
        for name, part in drawn.groupby("backbone", sort=False)
    ]
    return "; ".join(parts) + "."
