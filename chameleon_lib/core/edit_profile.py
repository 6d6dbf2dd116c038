"""The edit profile: what a fit returns, an edit with where it came from."""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import FittedDirections
from chameleon_lib.core.settings import EditSettings


@dataclass(frozen=True, eq=False)
class EditProfile:
    """What ``Chameleon.fit`` returns.

    Attributes:
        task: LaMP task of the users.
        edit: The edit, ready for ``backbone.generate(..., edit=profile.edit)``.
        settings: Settings of the fit.
        backbone: Name and fingerprint of the model the directions belong to.
        users: Ids of the users whose pairs were pooled (one for a personal profile); their
            pseudonyms where the profile was loaded from a store (``profiles.store``).
        n_pairs: Pairs the directions were made from.
        n_identical: Pairs that were discarded because both outputs agree.
        directions: Directions of all layers with diagnostics; None for fitted directions.
        fitted: Record of the gradient fit; None for the paper's directions.
        revision: Revision of the model on the hub; empty for a local checkpoint.
        prompts: SHA-256 of the wording of all prompts (``prompts_digest``); empty if unknown.
    """

    task: str
    edit: Edit
    settings: EditSettings
    backbone: tuple[str, str]
    users: tuple[str, ...]
    n_pairs: int
    n_identical: int
    directions: Directions | None = None
    fitted: FittedDirections | None = None
    revision: str = ""
    prompts: str = ""
