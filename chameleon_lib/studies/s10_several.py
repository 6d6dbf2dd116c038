"""All ten preferences of a person in one model at once, beside each of them by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.data.preferences import DIRECT, Preference, invented_preferences, persons
from chameleon_lib.editors.measures import perplexity, recall
from chameleon_lib.editors.released import OURS
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.stats import bootstrap_mean
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.studies.s10_desk import MODULES, Desk, content
from chameleon_lib.studies.s10_rows import (
    ROME_1,
    SUBSET,
    SUBSTRING,
    TITLES,
    Sizes,
)  # fmt: skip


def several(
    profile: RunProfile,
    backbone_id: str,
    sizes: Sizes = SUBSET,
    *,
    people: int = 2,
    arm: str = ROME_1,
    preferences: Sequence[Preference] | None = None,
    store: ArtifactStore | None = None,
) -> pd.DataFrame:
    """All ten preferences of a person in the model at once: one after another, and in one fit.

    Args:
        people: Ten users of different types make one person; so many of these.
        arm: An editor's row.

    Returns:
        One row per way (``apart`` is each preference by itself) with the share of direct questions
        whose answer holds the target, the interval over people, and neutral text's perplexity
        ratio.

    Raises:
        UserError: Fewer people than asked for, or a model without editors.
    """
    given = list(preferences or invented_preferences())
    own = persons(given)[:people]
    if not 1 <= people <= len(own):
        raise UserError(f"people is {people}; the preferences make {len(persons(given))} persons.")
    root = (store or ArtifactStore()).root
    desk = Desk(profile, backbone_id, sizes, tuple(given), OURS, root)
    editor = desk.editor(arm, 0)

    def hits(asked: Sequence[Preference]) -> list[float]:
        texts = [p.questions[-1] for p in asked]
        said = desk.backbone.generate(texts, max_new_tokens=desk.room, groups=[0] * len(texts))
        return [recall(p.target, text)[SUBSTRING] for p, text in zip(asked, said, strict=True)]

    def person(at: int, how: str) -> dict[str, float]:
        base = perplexity(desk.backbone)
        if how == "apart":
            found = []
            for preference in own[at]:
                with editor.edit(*desk.requests(arm, preference)):
                    found += hits([preference])
            return {"share": float(np.mean(found)), "ratio": 1.0}
        requests = [request for p in own[at] for request in desk.requests(arm, p)]
        with editor.edit(*requests, joint=how == "joint"):
            return {
                "share": float(np.mean(hits(own[at]))),
                "ratio": perplexity(desk.backbone) / base,
            }

    rows = []
    for how in ("apart", "one after another", "joint"):
        found = desk.store.map(
            "editing_several",
            range(people),
            lambda batch, how=how: [person(at, how) for at in batch],  # type: ignore[misc]
            inputs=desk.inputs(arm=arm, how=how),
            key_of=lambda at: [content(p) for p in own[at]],
            batch_size=1,
            label=f"{desk.backbone.name} {arm}, {how}",
            modules=MODULES,
        )
        row: dict[str, Any] = {"row": f"{arm}, {how}"}
        row |= estimate_columns(bootstrap_mean([one["share"] for one in found]), TITLES[DIRECT])
        if how != "apart":
            row["perplexity ratio"] = float(np.mean([one["ratio"] for one in found]))
        rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)
