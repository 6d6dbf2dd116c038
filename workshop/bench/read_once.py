"""Reading prompts once: for all arms of an evaluation, and for all steps of a fit.

The reference is the order of before: beyond a memory of two GiB every arm read every prompt three
times (its answer and the two texts of its margin), and a fit read its prompts at every step. Here
memory has room for no prompt at all in either order, as in a run of the paper's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone, load_backbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, fit_by_preference
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import get_task
from chameleon_lib.demo import FAMILIES
from chameleon_lib.studies.arms import ARMS_AT_ONCE, Reference, read_once
from workshop.bench.measure import Clock, Goal, Row, Variant, run_rounds
from workshop.bench.models import embedded_backbone, paired_prompts, random_edit

Answered = tuple[list[str], Tensor]
_ARMS_GOAL, _FIT_GOAL = Goal(5.0, at_least=True), Goal(6.0, at_least=True)
_APART = 1e-4  # nats of a margin, and what a unit direction may differ by
_LIMIT = 32  # tokens of an answer
PERSONAL, GENERIC = "cannot wait to see you all on sunday, yay!", "I will see everybody on Sunday."
BEFORE, NOW = "every arm reads", "read once"


@dataclass(frozen=True)
class ReadOnceWork:
    """Sizes; the ratios do not depend on the number of prompts.

    Attributes:
        prompts: Prompts, one per user.
        history: History items per prompt.
        arms: Edits that are asked, the unedited model among them.
        many: Numbers of arms whose times are compared.
        steps: Steps of the fit.
        rounds: Paired rounds.
        model: A backbone's id, or an embedded family.
    """

    prompts: int = 8
    history: int = 36
    arms: int = 24
    many: Sequence[int] = (1, 8, 24, 64)
    steps: int = 40
    rounds: int = 1
    model: str = "smollm2"


QUICK = ReadOnceWork(prompts=4, history=8, arms=4, many=(1, 4), steps=4, model=FAMILIES[0])


class Reader:
    """Counts the prompt tokens that a backbone reads."""

    def __init__(self, backbone: HFBackbone) -> None:
        self.backbone, self.tokens = backbone, 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts inside the block, from 0."""
        self.tokens, prefill = 0, self.backbone.prefill

        def counted(prompts: Sequence[list[int]], groups: Sequence[int] | None) -> Any:
            self.tokens += sum(map(len, prompts))
            return prefill(prompts, groups)

        with mock.patch.object(self.backbone, "prefill", counted):
            yield


def measure(work: ReadOnceWork, clock: Clock) -> list[Row]:
    """Rows of the evaluation, of its growth with arms, and of the fit."""
    if work.model in FAMILIES:
        backbone, name = embedded_backbone(work.model)
    else:
        backbone, name = load_backbone(work.model), work.model
    backbone.prefix_bytes = 0
    prompts = paired_prompts(2 * work.prompts, work.history, get_task("LaMP_7"))[0][::2]
    length = round(sum(backbone.count_tokens(prompt) for prompt in prompts) / len(prompts))
    where = f"{name}, {work.prompts} prompts of about {length} tokens"
    reader = Reader(backbone)
    return [
        _arms(reader, prompts, where, work, clock),
        *_growth(reader, prompts, where, work, clock),
        _fit(reader, prompts, where, work, clock),
    ]


def _edits(backbone: HFBackbone, arms: int) -> list[Edit | None]:
    """No edit, and random ones."""
    every = random_edit(backbone, arms)
    parts = zip(every.theta_p.unbind(1), every.theta_n.unbind(1), strict=True)
    return [None, *(replace(every, theta_p=p, theta_n=n) for p, n in parts)][:arms]


def _reference(n: int) -> Reference:
    return Reference([PERSONAL] * n, [GENERIC] * n)


def _asked(reader: Reader, prompts: list[str], edits: Sequence[Edit | None]) -> list[Answered]:
    """In the order of the kit."""
    backbone, found = reader.backbone, list[Answered]()
    with reader.counting():
        for start in range(0, len(edits), ARMS_AT_ONCE):
            some, prepared = edits[start : start + ARMS_AT_ONCE], backbone.prepare(prompts)
            found += read_once(backbone, prepared, some, _reference(len(prompts)), _LIMIT, None)
    return found


@torch.no_grad()
def _asked_before(
    reader: Reader, prompts: list[str], edits: Sequence[Edit | None]
) -> list[Answered]:
    """Arm by arm, as before."""
    backbone, found, reference = reader.backbone, list[Answered](), _reference(len(prompts))
    with reader.counting():
        prepared = backbone.prepare(prompts)
        for edit in edits:
            said = backbone.generate_prepared(prepared, max_new_tokens=_LIMIT, edit=edit)
            personal, generic = (
                backbone.score(prepared, texts, edit=edit)
                for texts in (reference.personal, reference.generic)
            )
            found.append((said, (personal - generic).double()))
    return found


def _arms(
    reader: Reader, prompts: list[str], where: str, work: ReadOnceWork, clock: Clock
) -> Row:
    edits, tokens = _edits(reader.backbone, work.arms), dict[str, int]()

    def timed(name: str, ask: Callable[..., list[Answered]]) -> list[Answered]:
        found = ask(reader, prompts, edits)
        tokens[name] = reader.tokens
        return found

    variants: dict[str, Variant] = {
        BEFORE: lambda _: timed(BEFORE, _asked_before), NOW: lambda _: timed(NOW, _asked)
    }  # fmt: skip
    rounds = run_rounds("read-once, evaluation", variants, work.rounds, clock, ())
    both = list(zip(rounds.results[BEFORE][0], rounds.results[NOW][0], strict=True))
    equal = sum(old[0] == new[0] for old, new in both)
    apart = max(float((old[1] - new[1]).abs().max()) for old, new in both)
    return Row(
        "evaluation: before over now",
        f"{where}, {work.arms} arms",
        BEFORE,
        rounds.ratio(BEFORE, NOW),
        _ARMS_GOAL,
        equal == len(edits) and apart < _APART,
        f"texts of {equal} of {len(edits)} arms, margins within {apart:.1e} nats; prompt tokens "
        f"{tokens[BEFORE]} over {tokens[NOW]}, {tokens[BEFORE] / tokens[NOW]:.0f} times fewer",
    )


def _growth(
    reader: Reader, prompts: list[str], where: str, work: ReadOnceWork, clock: Clock
) -> list[Row]:
    tokens: dict[str, int] = {}

    def variant(arms: int) -> Variant:
        edits = _edits(reader.backbone, arms)

        def ask(_: int) -> None:
            _asked(reader, prompts, edits)
            tokens[str(arms)] = reader.tokens

        return ask

    variants = {str(arms): variant(arms) for arms in work.many}
    rounds = run_rounds("read-once, arms", variants, work.rounds, clock, ())
    one = str(work.many[0])
    return [
        Row(
            f"evaluation: {arms} arms over {one}",
            where,
            f"{one} arm",
            rounds.ratio(str(arms), one),
            None,
            None,
            f"prompt tokens read: {tokens[str(arms)]}, once for {ARMS_AT_ONCE} arms",
        )
        for arms in work.many[1:]
    ]


def _fit(
    reader: Reader, prompts: list[str], where: str, work: ReadOnceWork, clock: Clock
) -> Row:
    backbone, tokens = reader.backbone, dict[str, int]()
    contrasts = [Contrast(text, PERSONAL, GENERIC, str(at)) for at, text in enumerate(prompts)]
    settings = EditSettings().with_(
        fit_steps=work.steps, fit_rule="plain", fit_loss="preference", fit_holdout=0.0
    )

    def fit(name: str) -> Tensor:
        with reader.counting():
            edit = fit_by_preference(backbone, contrasts, [backbone.n_layers // 2], settings).edit
        tokens[name] = reader.tokens
        return torch.stack([edit.theta_p, edit.theta_n])

    def before(_: int) -> Tensor:
        prepare = backbone.prepare
        with mock.patch.object(backbone, "prepare", lambda texts, **_: prepare(texts)):
            return fit(BEFORE)

    variants: dict[str, Variant] = {BEFORE: before, NOW: lambda _: fit(NOW)}
    rounds = run_rounds("read-once, fit", variants, work.rounds, clock, ())
    apart = float((rounds.results[BEFORE][0] - rounds.results[NOW][0]).abs().max())
    return Row(
        "fit: before over now",
        f"{where}, {work.steps} steps",
        "every step reads",
        rounds.ratio(BEFORE, NOW),
        _FIT_GOAL,
        apart < _APART,
        f"directions within {apart:.1e}; prompt tokens {tokens[BEFORE]} over {tokens[NOW]}",
    )
