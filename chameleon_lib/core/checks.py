"""Is an edit better than none? Asked at fit time, of users that the fit did not see.

The texts that answer it are the held-out users' own: items of their histories, each left out of the
history that its prompt shows (``sources.history_pairs``). So no gold answer is needed, and a fit
that learned to refuse, or to say nothing, makes these texts less likely and is found out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreferencePair
from chameleon_lib.core.settings import EditSettings

RATES = ("valid", "empty", "refusal", "preamble")  # of greedy answers
FIRST_TOKENS = 4  # answer tokens over which the divergence from the unedited model is a mean


@dataclass(frozen=True)
class FitCheck:
    """What an edit does to users held out of its fit; part of an ``EditProfile`` and its record."""

    users: int  # held-out users
    texts: int  # their own texts that were scored
    # log p of the texts over no edit, nats per token: mean over users, and its 95 % interval
    # (users resampled, 10,000 times, fixed seed)
    gain: float
    low: float
    high: float
    rates: dict[str, float]  # :data:`RATES` of the edited model's greedy answers, shares
    plain: dict[str, float]  # the same of the unedited model
    # KL(unedited || edited) of the next-token distribution at the first answer tokens of the
    # unedited model's answers, nats: mean over texts
    kl: float
    moved: float  # share of those tokens at which the likeliest token is another one
    edit_ratio: float  # ||x̂ − x|| / ||x||, mean over edited tokens and layers
    action: str = "kept"  # "kept", "zero" (strength set to 0) or "warned"; see ``check_edit``

    @property
    def better(self) -> bool:
        """Whether the interval of the gain lies above 0."""
        return self.low > 0

    @property
    def warning(self) -> str:
        """One sentence to stand beside the edit's number in a table; empty if it is better."""
        raise NotImplementedError

    def sentence(self) -> str:
        """What to print of it."""
        raise NotImplementedError


def check_fit(
    backbone: Backbone,
    edit: Edit,
    texts: Sequence[PreferencePair],
    settings: EditSettings,
) -> FitCheck:
    """Measure an edit on pairs of held-out users, whose personalised answers are their own texts.

    Raises:
        UserError: No texts.
    """
    raise NotImplementedError


def guarded(edit: Edit, check: FitCheck, settings: EditSettings) -> tuple[Edit, FitCheck]:
    """The edit that ``check_edit`` lets pass: itself, or at strength 0.

    Raises:
        UserError: It is not better than none and ``check_edit`` is "refuse".
    """
    raise NotImplementedError
