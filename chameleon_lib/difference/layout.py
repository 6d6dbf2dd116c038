"""Prompts with places for soft prompts: which token stands where.

A prompt has up to 16 placeholders, whose input embeddings are overwritten, and around them markers
with untrained embeddings. Their ids lie above the model's vocabulary, so that no text can spell
them and the model stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from chameleon_lib.backbones.text import TextEncoder
from chameleon_lib.difference.released import OURS, Released
from chameleon_lib.difference.reviews import Corpus, Review
from chameleon_lib.difference.vectors import SLOTS
from chameleon_lib.difference.wording import Wording
from chameleon_lib.errors import UserError

HISTORY, DIFFERENCE = "history", "difference"
KINDS = (HISTORY, DIFFERENCE)
_PLACE = "\ue000"  # private use: taken out of all texts, so it marks places alone
_PLACES = re.compile(f"{_PLACE}(\\d+){_PLACE}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: Tokens; ids from the size of the vocabulary on are placeholders and markers.
        blocks: Ids of the reviews in its blocks, newest first; those that did not fit are gone.
        rows: Rows of soft prompts that have a placeholder.
    """

    ids: list[int]
    blocks: tuple[str, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How prompts are laid out.

    Attributes:
        tokenizer: Of the language model.
        vocabulary: Rows of its embedding; the ids above are ours.
        wording: What prompts say.
        kinds: Which soft prompts stand in a block.
        slots: Blocks at most.
        max_tokens: Tokens of a prompt at most; the oldest blocks are dropped until it fits.
        bare: There are always as many blocks as slots, which hold soft prompts and no review: they
            know no user.
        chat: Whether the tokenizer's chat template is used.
        released: Defects of the released code to repeat.
    """

    tokenizer: Any
    vocabulary: int
    wording: Wording = field(default_factory=Wording)
    kinds: tuple[str, ...] = KINDS
    slots: int = SLOTS
    max_tokens: int = 3072
    bare: bool = False
    chat: bool = True
    released: Released = OURS

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(KINDS):
            raise UserError(f"There is no soft prompt of kind {min(unknown)!r}; use {KINDS}.")
        # Made once: it reads the whole tokenizer.
        object.__setattr__(self, "_encoder", TextEncoder(self.tokenizer))

    @property
    def places(self) -> list[str]:
        """Names of all new tokens, in the order of their ids: placeholders, then markers."""
        names = [f"[{kind}_TOKEN_{at}]" for kind in ("HIS", "DIFF") for at in range(self.slots)]
        return names + [
            f"<{kind}_token_{side}>" for kind in ("his", "diff") for side in ("start", "end")
        ]

    def prompt(
        self,
        corpus: Corpus,
        review: Review,
        blocks: Sequence[Review] = (),
        *,
        told: str = "",
    ) -> Prompt:
        """The prompt that asks for a review.

        Args:
            corpus: Where the items are.
            review: Gives its item, rating and title; its text is not looked at.
            blocks: Past reviews, newest first.
            told: What is known of the user in words.

        Raises:
            UserError: Too long without any block.
        """
        places: Sequence[Review | None] = [None] * self.slots if self.bare else blocks[: self.slots]
        for n in range(len(places), -1, -1):
            ids = self._ids(self._text(corpus, review, places[:n], told))
            if len(ids) <= self.max_tokens:
                rows = tuple(
                    KINDS.index(kind) * self.slots + at for kind in self.kinds for at in range(n)
                )
                return Prompt(ids, tuple(block.id for block in places[:n] if block), rows)
        raise UserError(
            f"The prompt of review {review.id} has {len(ids)} tokens without any past review; "
            f"at most {self.max_tokens} are allowed."
        )

    def _text(
        self, corpus: Corpus, review: Review, blocks: Sequence[Review | None], told: str
    ) -> str:
        say, items = self.wording, corpus.items
        parts = [_plain(say.item(items[review.item]))]
        if told:
            parts.append(_plain(say.summary(told)))
        if blocks:
            parts.append(say.header)
        for at, block in enumerate(blocks):
            if block is not None:
                parts.append(_plain(say.block(block, items[block.item])))
            parts += [self._slot(kind, at) for kind in self.kinds]
        return "".join([*parts, _plain(say.request(review))])

    def _slot(self, kind: str, at: int) -> str:
        """Start marker, placeholder, end marker."""
        which, first = KINDS.index(kind), 2 * self.slots
        row = (first + 2 * which, which * self.slots + at, first + 2 * which + 1)
        return "".join(f"{_PLACE}{place}{_PLACE}" for place in row)

    def _ids(self, user: str) -> list[int]:
        encoder: TextEncoder = self._encoder  # type: ignore[attr-defined]
        system = self.wording.system + (self.wording.explained if self.kinds else "")
        if self.chat and getattr(self.tokenizer, "chat_template", None):
            written = encoder.written(self._rendered(encoder.hidden(system), encoder.hidden(user)))
            start = []
        else:
            written = f"{system}\n{user}" if system else user
            start = self.tokenizer("a")["input_ids"][:1]
            start = start if start == [self.tokenizer.bos_token_id] else []
        if self.released.chat_string:
            written = re.sub(r"\n(?=\S*user\n)", "", written, count=1)
        ids = list(start)
        for at, part in enumerate(_PLACES.split(written)):
            if at % 2:
                ids.append(self.vocabulary + int(part))
            elif part:
                ids += encoder.ids([part], add_special_tokens=False)[0]
        return ids

    def _rendered(self, system: str, user: str) -> str:
        def render(*turns: tuple[str, str]) -> str:
            messages = [{"role": role, "content": text} for role, text in turns]
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
            )

        try:
            return render(("system", system), ("user", user))
        except TemplateError:  # a template without system turns
            return render(("user", f"{system}\n{user}"))


def _plain(text: str) -> str:
    return text.replace(_PLACE, "")
