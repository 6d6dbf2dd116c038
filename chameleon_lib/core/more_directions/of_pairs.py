"""Edits that need more of a case than its activations: other texts, or a preference fit."""

from __future__ import annotations

import random
from dataclasses import replace

from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.directions import direction
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import swap_contrasts
from chameleon_lib.core.sources import of_other_users
from chameleon_lib.errors import UserError


@direction(
    "permute_answers", title="control: answers of other users", kind="control", of="pairs"
)
def _permute_answers(case: Case) -> Edit:
    """Every history with the answers of another user: does a direction hold more than a label?"""
    order = list(range(len(case.kept)))
    random.Random(f"permute/{case.seed}").shuffle(order)
    moved = [
        replace(pair, answer_p=case.kept[at].answer_p, answer_n=case.kept[at].answer_n)
        for pair, at in zip(case.kept, order, strict=True)
    ]
    return case.edit_of_texts(case.method, moved)


@direction(
    "answer_only", title="control: directions from answers alone", kind="control", of="pairs"
)
def _answer_only(case: Case) -> Edit:
    """Answers read without any history."""
    return case.edit_of_texts(case.method.with_(pairs_text="answer_only"), case.kept)


@direction("fitted", title="CHAMELEON fitted (ours)", kind="ours", of="pairs")
def _fitted(case: Case) -> Edit:
    return case.fit("fitted", case.contrasts)


@direction(
    "fitted_shuffled",
    title="control: fitted on shuffled pairs",
    kind="control",
    beats=("fitted",),
    of="pairs",
)
def _fitted_shuffled(case: Case) -> Edit:
    return case.fit("fitted_shuffled", swap_contrasts(case.contrasts, case.seed))


@direction(
    "fitted_filtered",
    title="fitted on the pairs worth learning from (ours)",
    kind="ours",
    of="pairs",
    shown=False,
)
def _fitted_filtered(case: Case) -> Edit:
    """The self-made pairs without a fault, whose answers the own history makes likelier."""
    return case.fit_on("fitted_filtered", case.method.filtered(case.pairs))


@direction(
    "fitted_history",
    title="fitted on the users' own histories (ours)",
    kind="ours",
    of="pairs",
    shown=False,
)
def _fitted_history(case: Case) -> Edit:
    """What the users wrote, against the model's neutral version; needs the case's users."""
    return case.fit_on("fitted_history", case.history)


@direction(
    "fitted_format",
    title="control: fitted on other users' histories",
    kind="control",
    beats=("fitted_history",),
    of="pairs",
    shown=False,
)
def _fitted_format(case: Case) -> Edit:
    """Every prompt with a text that another user wrote to another one: the form alone is left."""
    return case.fit_on("fitted_format", of_other_users(case.history))


@direction(
    "fitted_gold", title="positive control: fitted on gold pairs", kind="ceiling", of="pairs"
)
def _fitted_gold(case: Case) -> Edit:
    if not case.users:
        raise UserError("fitted_gold learns from gold answers; give the users that have them.")
    return case.fit("fitted_gold", case.gold)
