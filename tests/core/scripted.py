"""A backbone that answers by a rule and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chameleon_lib.core.backbone import DecodeSettings


class ScriptedBackbone:
    """Generation by ``reply``; a token is a word, and ``limit`` tokens fit.

    Args:
        reply: Prompt to answer.
        limit: Context limit in words.
    """

    name, family, fingerprint, n_layers, d = "scripted", "decoder", "none", 3, 4

    def __init__(self, reply: Callable[[str], str], limit: int = 1_000_000) -> None:
        self.reply, self.limit = reply, limit
        self.prompts: list[str] = []
        self.groups: list[int] = []
        self.decodes: list[tuple[int, DecodeSettings | None]] = []

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def fits(self, prompt: str, max_new_tokens: int) -> bool:
        return self.count_tokens(prompt) + max_new_tokens <= self.limit

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        edit: Any = None,
        groups: Sequence[int] | None = None,
        decode: DecodeSettings | None = None,
    ) -> list[str]:
        assert edit is None
        self.prompts += prompts
        self.groups += groups or []
        self.decodes.append((max_new_tokens, decode))
        return [self.reply(prompt) for prompt in prompts]


def scripted(reply: Callable[[str], str], limit: int = 1_000_000) -> Any:
    """The backbone, untyped: it plays only the part of the protocol that text stages use."""
    return ScriptedBackbone(reply, limit)


def by_role(personal: str, neutral: str) -> Callable[[str], str]:
    """A reply that depends on the agent that the prompt names."""
    return lambda prompt: personal if "helpfully personalized" in prompt else neutral
