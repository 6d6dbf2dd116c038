"""Is an edit better than none? Asked at fit time, of users that the fit did not see.

The texts that answer it are the held-out users' own: items of their histories, each left out of the
history that its prompt shows (``sources.history_pairs``). So no gold answer is needed, and a fit
that learned to refuse, or to say nothing, makes these texts less likely and is found out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from chameleon_lib.core.answers import form_scores
from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import (
    PreferencePair,
    decode_settings,
    max_new_tokens,
    plain_prompt,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import get_task
from chameleon_lib.errors import UserError

log = logging.getLogger(__name__)

RATES = ("valid", "empty", "refusal", "preamble")  # of greedy answers
FIRST_TOKENS = 4  # answer tokens over which the divergence from the unedited model is a mean


@dataclass(frozen=True)
class FitCheck:
    """What an edit does to users held out of its fit; part of an ``EditProfile`` and its record."""

    users: int  # held-out users
    texts: int  # their own texts that were scored
    # log p of the texts over no edit, nats per token: mean over users (of a single user, over
    # texts) and its 95 % interval (t)
    gain: float
    low: float
    high: float
    rates: dict[str, float]  # :data:`RATES` of the edited model's greedy answers, shares
    plain: dict[str, float]  # the same of the unedited model
    # KL(unedited || edited) of the next token at the first :data:`FIRST_TOKENS` of the unedited
    # model's answers, nats: mean over texts
    kl: float
    moved: float  # share of those tokens at which the likeliest token is another one
    edit_ratio: float  # ||x̂ − x|| / ||x||, mean over edited tokens and layers
    # What became of the edit: "kept", "warned", or "zero" where its strength was set to 0; the
    # numbers are those of the edit as it was fitted
    action: str = "kept"
    # Share of the held-out users (of a single user, of the texts) whose texts get less likely
    harmed: float = 0.0

    @property
    def better(self) -> bool:
        """Whether the texts got likelier, and the answers still have their form.

        An edit that makes more than half of the valid answers invalid, or twice as many answers
        refuse (by a tenth of all at least), is not better whatever the gain.
        """
        valid = self.rates["valid"] >= self.plain["valid"] / 2
        refusal = self.rates["refusal"] <= max(2 * self.plain["refusal"], 0.1)
        return self.gain > 0 and valid and refusal

    def passes(self, settings: EditSettings) -> bool:
        """Whether ``check_edit`` lets the edit through: it is better, and harms few enough."""
        most = settings.guard_harmed
        return self.better and (most is None or self.harmed <= most)

    @property
    def warning(self) -> str:
        """What stands beside the edit's number in a table; empty if its interval is above 0."""
        if self.better and self.low > 0:
            return ""
        verdict = "not shown to be better" if self.better else "not better"
        return f"{verdict} than no edit on {self._held_out}: {self._told}"

    @property
    def _held_out(self) -> str:
        return f"{self.texts} texts of {self.users} held-out user{'s' * (self.users != 1)}"

    @property
    def _told(self) -> str:
        rates = ", ".join(
            f"{name} {self.plain[name]:.0%} → {self.rates[name]:.0%}" for name in RATES
        )
        return (
            f"{self.gain:+.3f} nats per token (95 % interval {self.low:+.3f} to {self.high:+.3f}), "
            f"answers {rates}, KL {self.kl:.2f} nats, edit ratio {self.edit_ratio:.3f}"
        )

    def sentence(self) -> str:
        """What to print of it."""
        kept = {
            "kept": "The edit is kept",
            "warned": "The edit is kept with a warning",
            "zero": "The edit is returned with strength 0",
        }[self.action]
        return (
            f"{kept}: {self.warning or f'better than no edit on {self._held_out}: {self._told}'}."
        )

    def record(self) -> dict[str, Any]:
        """JSON-able values, for :meth:`of`."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> FitCheck:
        """The check of a :meth:`record`."""
        return cls(**record)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    from scipy import stats  # here: 57 MB that reading a file has no use for

    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def _rates(task: str, answers: Sequence[str]) -> dict[str, float]:
    form = form_scores(answers)
    valid = [get_task(task).is_valid(answer) for answer in answers]
    return {"valid": float(np.mean(valid))} | {name: float(form[name].mean()) for name in RATES[1:]}


@torch.no_grad()
def check_fit(
    backbone: Backbone, edit: Edit, texts: Sequence[PreferencePair], settings: EditSettings
) -> FitCheck:
    """Measure an edit on pairs of held-out users, whose personalised answers are their own texts.

    Raises:
        UserError: Fewer than two texts, which have no interval.
    """
    if len(texts) < 2:
        raise UserError(
            f"An edit is checked on two or more texts of held-out users, there are {len(texts)}; "
            "hold out more users, or set check_edit to 'off'."
        )
    task, own = texts[0].task, [pair.answer_p for pair in texts]
    prepared = backbone.prepare([plain_prompt(pair, settings) for pair in texts])
    plain = backbone.score(prepared, own, reduce="mean")
    backbone.diagnostics = True
    try:
        gains = backbone.score(prepared, own, edit=edit, reduce="mean") - plain
        ratios = backbone.usage.mean_ratios()
    finally:
        backbone.diagnostics = False
    owners = [pair.user_id for pair in texts]
    by_owner = {one: gains[[owner == one for owner in owners]].double().mean() for one in owners}
    units = torch.stack(list(by_owner.values())) if len(by_owner) > 1 else gains.double()

    def answered(by: Edit | None) -> list[str]:
        limit, decode = max_new_tokens(task, settings), decode_settings(settings)
        return backbone.generate_prepared(prepared, max_new_tokens=limit, edit=by, decode=decode)

    said = answered(None)
    divergence = backbone.divergence(prepared, said, edit=edit, tokens=FIRST_TOKENS).mean(0)
    gain, low, high = _interval(units.cpu().numpy())
    return FitCheck(
        users=len(by_owner),
        texts=len(texts),
        gain=gain,
        low=low,
        high=high,
        rates=_rates(task, answered(edit)),
        plain=_rates(task, said),
        kl=float(divergence[0]),
        moved=float(divergence[1]),
        edit_ratio=float(np.mean([ratio["edit"] for ratio in ratios.values()])),
        harmed=float((units < 0).double().mean()),
    )


def guarded(edit: Edit, check: FitCheck, settings: EditSettings) -> tuple[Edit, FitCheck]:
    """What ``check_edit`` lets pass of an edit, and the check with what became of it.

    An edit whose interval holds 0 passes with a warning: held-out users are few.

    Raises:
        UserError: The edit is not better than none, or harms more of the held-out users than
            ``guard_harmed`` allows, and ``check_edit`` is "refuse".
    """
    if check.passes(settings):
        if check.warning:
            log.warning("The edit is kept, though %s.", check.warning)
        return edit, check
    if check.better:
        log.warning(
            "The edit makes texts of %.0f %% of the held-out users less likely; guard_harmed "
            "allows %.0f %%.", 100 * check.harmed, 100 * (settings.guard_harmed or 0),
        )  # fmt: skip
    if settings.check_edit == "refuse":
        if check.better:
            raise UserError(
                f"The edit makes texts of {check.harmed:.0%} of the held-out users less likely and "
                f"guard_harmed allows {settings.guard_harmed:.0%}; look for poisoned histories, or "
                "set check_edit to 'zero' or 'warn'."
            )
        raise UserError(
            f"The edit is {check.warning}; use more users, another pairs_source or theta_method "
            "fitted, or set check_edit to 'zero' or 'warn'."
        )
    check = replace(check, action="warned" if settings.check_edit == "warn" else "zero")
    log.warning("%s", check.sentence())
    return (edit if check.action == "warned" else edit.without_strength()), check
