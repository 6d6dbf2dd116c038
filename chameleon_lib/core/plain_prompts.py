"""The plain prompts of preference fits, read by the backbone once for all fits that use them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from chameleon_lib.core.protocols import Backbone, Prepared


class PlainPrompts:
    """Prompts that are read together, at their first use, and then handed out in mini-batches.

    All of them are read even where a fit needs a few: what stands beside a prompt in a batch moves
    its last digits, and must not depend on which of several fits comes first.

    Args:
        backbone: The model that reads them.
        prompts: The prompts, in the order they are read; repetitions count once.
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[str]) -> None:
        self.backbone = backbone
        self._rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}

    @property
    def texts(self) -> list[str]:
        """The distinct prompts, in the order they are read."""
        return list(self._rows)

    @cached_property
    def _prepared(self) -> Prepared:
        return self.backbone.prepare(self.texts)

    def chunk(self, prompts: Sequence[str]) -> Prepared:
        """Some of the prompts, prepared, in the order given.

        Raises:
            ValueError: A prompt that is none of :attr:`texts`.
        """
        unknown = [prompt for prompt in prompts if prompt not in self._rows]
        if unknown:
            raise ValueError(f"{len(unknown)} prompts were not announced, first {unknown[0]!r}")
        return self.backbone.rows(self._prepared, [self._rows[prompt] for prompt in prompts])
