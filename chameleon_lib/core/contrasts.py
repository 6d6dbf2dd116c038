"""From preference pairs to what the preference fit learns from (contrasts and agreed queries)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    keep_different,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import answer_prompt


def contrasts_from_pairs(
    task: str,
    kept: Sequence[PreferencePair],
    identical: Sequence[PreferencePair],
    settings: EditSettings,
) -> list[Contrast]:
    """Self-generated contrasts under the plain prompt; agreed queries go on the leash."""
    contrasts = []
    for pair in [*kept, *identical]:
        same = pair.identical(settings.pairs_drop_identical)
        if not pair.answer_p.strip() or not pair.answer_n.strip():
            continue
        prompt = answer_prompt(
            task,
            pair.items,
            pair.query,
            role="P",
            insight=None,
            baseline=settings.prompts_baseline,  # type: ignore[arg-type]
        )
        rejected = None if same else pair.answer_n
        contrasts.append(Contrast(prompt, pair.answer_p, rejected, pair.user_id))
    return contrasts


def gold_contrasts(
    task: str,
    users: Sequence[PreparedUser],
    pairs: Sequence[PreferencePair],
    settings: EditSettings,
) -> list[Contrast]:
    """The positive control's contrasts: gold answer against neutral output, train users only.

    Raises:
        UserError: A query has no gold answer.
    """
    golds = {q.id: q.gold for user in users for q in user.user.queries}
    replaced = []
    for pair in pairs:
        gold = golds[pair.query_id]
        if gold is None:
            raise UserError(f"Query {pair.query_id} has no gold; the positive control needs it.")
        replaced.append(
            PreferencePair(pair.user_id, pair.query_id, pair.query, pair.items, gold, pair.answer_n)
        )
    kept, identical = keep_different(replaced, settings)
    return contrasts_from_pairs(task, kept, identical, settings)


def swap_contrasts(contrasts: Sequence[Contrast], seed: int) -> list[Contrast]:
    """Chosen and rejected swapped at random (control C10 for the fitted edit)."""
    generator = torch.Generator().manual_seed(seed)
    swapped = []
    for contrast in contrasts:
        if contrast.rejected is not None and torch.rand((), generator=generator) < 0.5:
            contrast = Contrast(
                contrast.prompt, contrast.rejected, contrast.chosen, contrast.user_id
            )
        swapped.append(contrast)
    return swapped
