"""Counting what a run really sends through its backbones, stage by stage.

The calls of the backbone protocol are counted, by the stage of the artifact store that made them.
Prompts count in full, also where the kit reads what two of them share only once.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections import tunings

# Stage of the store → stage of the forecast.
STAGES = {
    "insights": "insights",
    "query_insights": "insights",
    "pairs": "pairs",
    "activations": "activations",
    "fit": "fit",
    "answers": "evaluation",
    "edit_size": "evaluation",
    "summaries": "LLM-REC",
    "aloe": "ALOE",
    "dpo": "DPO",
}


@dataclass
class Counted:
    """Texts that were asked or read, tokens of prompts and of answers, and gradient tokens."""

    prompts: int = 0
    read: int = 0
    written: int = 0
    backward: int = 0


class Meter:
    """Counts per stage, while it is :meth:`watching`."""

    def __init__(self) -> None:
        self.stages: dict[str, Counted] = defaultdict(Counted)
        self._open: list[str] = []

    @property
    def here(self) -> Counted:
        """The count of the innermost stage of the store that is at work."""
        return self.stages[self._open[-1] if self._open else "elsewhere"]

    @contextmanager
    def watching(self, patch: pytest.MonkeyPatch) -> Iterator[Meter]:
        """Every backbone and every store counts here inside the block."""
        with patch.context() as patched:
            self._patch(patched)
            yield self

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("map", "get_or_compute"):
            patch.setattr(ArtifactStore, name, self._staged(getattr(ArtifactStore, name)))
        for name in ("generate", "prepare", "generate_prepared", "score", "activations"):
            counter = getattr(self, f"_{name}")
            patch.setattr(HFBackbone, name, self._counted(getattr(HFBackbone, name), counter))
        for name in ("train_aloe", "train_dpo"):
            patch.setattr(tunings, name, self._trained(getattr(tunings, name)))

    def _staged(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def staged(store: Any, stage: str, *rest: Any, **named: Any) -> Any:
            self._open.append(STAGES.get(stage, "elsewhere"))
            try:
                return call(store, stage, *rest, **named)
            finally:
                self._open.pop()

        return staged

    def _counted(self, call: Callable[..., Any], counter: Callable[..., None]) -> Any:
        @functools.wraps(call)
        def counted(backbone: HFBackbone, *rest: Any, **named: Any) -> Any:
            found = call(backbone, *rest, **named)
            counter(backbone, found, *rest, **named)
            return found

        return counted

    def _trained(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def trained(*rest: Any, **named: Any) -> Any:
            # What a training scores through the backbone is in its own log already.
            self._open.append("elsewhere")
            try:
                tuned = call(*rest, **named)
            finally:
                self._open.pop()
            log, here = tuned.log, self.here
            here.prompts += log.rows + log.mix_rows
            here.read += log.forward_tokens
            here.backward += log.backward_tokens
            return tuned

        return trained

    def _generate(
        self, backbone: HFBackbone, found: list[str], prompts: Sequence[str], **_: Any
    ) -> None:
        self.here.prompts += len(prompts)
        self.here.read += sum(map(len, backbone.codec.prompts(prompts)))
        self.here.written += _answer_tokens(backbone, found)

    def _prepare(self, _: HFBackbone, found: Any, *__: Any, **___: Any) -> None:
        self.here.read += _tokens(found, stored=True)

    def _generate_prepared(
        self, backbone: HFBackbone, found: list[str], prepared: Any, **_: Any
    ) -> None:
        self.here.prompts += len(prepared)
        self.here.read += _tokens(prepared, stored=False)
        self.here.written += _answer_tokens(backbone, found)

    def _score(
        self, backbone: HFBackbone, _: Any, prepared: Any, answers: Sequence[str], **__: Any
    ) -> None:
        tokens = _answer_tokens(backbone, answers)
        self.here.read += _tokens(prepared, stored=False)
        self.here.written += tokens
        if torch.is_grad_enabled():
            self.here.backward += tokens

    def _activations(
        self,
        backbone: HFBackbone,
        _: Any,
        contexts: Sequence[str],
        answers: Sequence[str],
        **__: Any,
    ) -> None:
        self.here.prompts += len(contexts)
        self.here.read += sum(map(len, backbone.codec.prompts(contexts)))
        self.here.written += sum(map(len, backbone.codec.answers(answers)))


def _answer_tokens(backbone: HFBackbone, answers: Sequence[str]) -> int:
    """Tokens of answers; one more each for the end."""
    return sum(len(ids) + 1 for ids in backbone.codec.answers(answers))


def _tokens(prepared: Any, *, stored: bool) -> int:
    """Prompt tokens of the batches whose prefix is kept, or of those read anew at each use."""
    return sum(
        len(ids)
        for batch in prepared.batches
        if (batch.prefix is not None) == stored
        for ids in batch.prompts
    )
