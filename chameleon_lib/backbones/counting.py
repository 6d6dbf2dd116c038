"""Counting the answer tokens that a fit sends through a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.edit import AnyEdit


class CountingBackbone:
    """A backbone that counts what it scores; all else is the backbone's own.

    A scored answer costs one token more than it has: the last of the prompt (decoder) or the start
    token (encoder-decoder) goes in with it. An edit of all positions reads a decoder's prompt anew.

    Attributes:
        learned: Tokens with a gradient.
        looked: Tokens without.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone: Any = backbone
        self.learned = 0
        self.looked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def score(
        self, prepared: Any, answers: Sequence[str], *, edit: AnyEdit | None = None, **rest: Any
    ) -> Tensor:
        """The backbone's own, counted."""
        tokens = sum(len(ids) + 1 for ids in self._backbone.codec.answers(answers))
        if edit is not None and edit.positions == "all" and self._backbone.family == "decoder":
            tokens += sum(len(ids) - 1 for batch in prepared.batches for ids in batch.prompts)
        if torch.is_grad_enabled():
            self.learned += tokens
        else:
            self.looked += tokens
        scores: Tensor = self._backbone.score(prepared, answers, edit=edit, **rest)
        return scores
