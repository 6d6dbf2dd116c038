"""Text to tokens and back, by one convention for generation, scoring and activations.

A prompt ends in "Your answer:". Its answer is tokenised separately, as ``" " + answer`` for
decoders and as ``answer`` for encoder-decoders, and its ids are appended; EOS follows where the
caller asks for it. Generated text is cut at the first EOS and stripped.

Under a chat template the template itself says what stands between the model's turn and its first
word (a blank after Mistral's ``[/INST]``, nothing after the line break of Qwen, Llama 3, Gemma and
Phi-3) and which stop token closes the turn (Gemma's ``<end_of_turn>``, not its ``<eos>``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from torch import Tensor

from chameleon_lib.errors import UserError

_QUESTION, _WORD = "question", "answer"  # content of the turns that a template is probed with


class TextCodec:
    """Tokenizer with the conventions of this project.

    Args:
        tokenizer: A Hugging Face tokenizer.
        decoder_only: Whether answers continue the prompt in the same sequence.
        eos_ids: Tokens that end an answer; the tokenizer's own EOS is added in front.
        prompts_chat: ``template`` wraps every prompt as one user turn of the tokenizer's chat
            template where it has one (B8); ``raw`` never does.

    Raises:
        UserError: If there is no EOS token, or on an unknown ``prompts_chat``.
    """

    def __init__(
        self, tokenizer: Any, *, decoder_only: bool, eos_ids: Sequence[int], prompts_chat: str
    ) -> None:
        if prompts_chat not in ("template", "raw"):
            raise UserError(f"prompts_chat is '{prompts_chat}'; use template or raw.")
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.eos_ids = tuple(dict.fromkeys([*own, *eos_ids]))
        if not self.eos_ids:
            raise UserError("The model has no end-of-sequence token; set one in its tokenizer.")
        self.tokenizer = tokenizer
        self.decoder_only = decoder_only
        self.eos_id = self.eos_ids[0]
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.chat = prompts_chat == "template" and bool(getattr(tokenizer, "chat_template", None))
        before, self._lead = ":", " "
        if self.chat:
            before, self._lead, close = self._turn()
            if close in self.eos_ids:
                self.eos_id = close
        # SentencePiece tokenizers put a word mark in front of every text, so " tag" alone would
        # become two blanks. Tokenising after what stands before the answer, and dropping that
        # again, gives the ids that really follow a prompt. Byte-level tokenizers do not need it.
        start, word = self._ids(before), f"{self._lead}a"
        probe = self._ids(before + word)
        continued = probe[: len(start)] == start and probe[len(start) :] != self._ids(word)
        self._before, self._anchor = (before, len(start)) if continued else ("", 0)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def wrap(self, prompt: str) -> str:
        """The prompt as one user turn of the chat template, if there is one in use."""
        if not self.chat:
            return prompt
        return self._render([{"role": "user", "content": prompt}], opens=True)

    def _render(self, turns: list[dict[str, str]], *, opens: bool) -> str:
        # Qwen 3 thinks aloud before it answers unless told not to; other templates ignore the word.
        return str(
            self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=opens, enable_thinking=False
            )
        )

    def dialogue(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a dialogue in the chat template, up to where the model's next turn begins.

        Args:
            turns: (role, text) each.

        Raises:
            TemplateError: If the template refuses the dialogue.
            ValueError: If no chat template is in use.
        """
        if not self.chat:
            raise ValueError("There is no chat template in use that could render a dialogue.")
        messages = [{"role": role, "content": text} for role, text in turns]
        return self._ids(self._render(messages, opens=True))

    def _turn(self) -> tuple[str, str, int | None]:
        """What the template puts before an answer, between that and its first word, and after it.

        Returns:
            The text from the question to the model's turn, the lead of the answer, and the first
            token after it. Where the template does not tell, the lead is a blank, unless one
            stands there already.
        """
        asked = [{"role": "user", "content": _QUESTION}]
        opened = self._render(asked, opens=True)
        before = opened.rpartition(_QUESTION)[2] or ":"
        lead = "" if before[-1].isspace() else " "
        try:
            whole = self._render([*asked, {"role": "assistant", "content": _WORD}], opens=False)
        except TemplateError:
            return before, lead, None
        told, word, after = whole.rpartition(_WORD)
        if word and told.startswith(opened) and not told.removeprefix(opened).strip():
            lead = told.removeprefix(opened)
        closing = self._ids(after) if word else []
        return before, lead, closing[0] if closing else None

    def prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids per prompt: wrapped, with the tokenizer's own special tokens (BOS, or T5's EOS)."""
        if not prompts:
            return []
        # No text is no turn: an empty context keeps BOS alone.
        nothing = (self.tokenizer.bos_token or "") if self.chat else ""
        texts = [self.wrap(prompt) if prompt else nothing for prompt in prompts]
        # A chat template writes BOS itself; adding it again would double it.
        rows = self.tokenizer(texts, add_special_tokens=not self.chat)["input_ids"]
        if self.decoder_only:
            # A decoder whose tokenizer closes every text with EOS would start after the end.
            return [row[:-1] if row and row[-1] in self.eos_ids else list(row) for row in rows]
        return [list(row) for row in rows]

    def answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Ids per answer, without EOS; an empty answer has no ids."""
        if not self.decoder_only:
            texts = list(answers)
        else:
            texts = [self._before + self._lead + answer for answer in answers]
        if not texts:
            return []
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            list(row[self._anchor :]) if answer else []
            for row, answer in zip(rows, answers, strict=True)
        ]

    def decode(self, rows: Tensor) -> list[str]:
        """Generated ids ``(B, T)`` to stripped texts, each cut at its first EOS."""
        kept = []
        for row in rows.tolist():
            end = next((at for at, token in enumerate(row) if token in self.eos_ids), len(row))
            kept.append(row[:end])
        texts = self.tokenizer.batch_decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [str(text).strip() for text in texts]
