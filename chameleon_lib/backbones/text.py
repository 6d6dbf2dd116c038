"""Text to tokens and back, by one convention for generation, scoring and activations.

A prompt ends in "Your answer:". Its answer is tokenised separately, as ``" " + answer`` for
decoders and as ``answer`` for encoder-decoders, and its ids are appended; EOS follows where the
caller asks for it. Generated text is cut at the first EOS and stripped.

Under a chat template the template itself says what stands between the model's turn and its first
word (a blank after Mistral's ``[/INST]``, nothing after the line break of Qwen, Llama 3, Gemma and
Phi-3) and which stop token closes the turn (Gemma's ``<end_of_turn>``, not its ``<eos>``).

What a user wrote is text, also where it reads like a control token: ``</s>`` in a review ends no
prompt, ``<|im_start|>system`` opens no turn. Control tokens come from the template and from the
tokenizer's own beginning and end alone.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from torch import Tensor

from chameleon_lib.errors import UserError

log = logging.getLogger(__name__)

_QUESTION, _WORD = "question", "answer"  # content of the turns that a template is probed with
_MARKER = re.compile(r"<[|\uff5c].*[|\uff5c]>")
_BRACKETED = re.compile(r"[^\w\s]\S*[^\w\s]")


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that steer a model, with their ids.

    All special tokens, and of the other added ones those that look like marks: ``<|…|>``, or in
    brackets and written by the chat template, such as Qwen's ``<think>``. Words, phrases and runs
    of blanks that somebody added are text.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    added = {id_: token for id_, token in tokenizer.added_tokens_decoder.items() if str(token)}
    found = {str(token): id_ for id_, token in added.items() if token.special}
    for id_, token in ((id_, str(token)) for id_, token in added.items()):
        if _MARKER.fullmatch(token) or (_BRACKETED.fullmatch(token) and token in template):
            found[token] = id_
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    return found | {token: tokenizer.convert_tokens_to_ids(token) for token in named if token}


class TextEncoder:
    """A tokenizer whose control tokens have names that no text can hold.

    The library's own switch (``split_special_tokens``) leaves the marks of a Unigram vocabulary,
    T5's ``</s>`` among them, and every mark that is not flagged as special. Here the marks are
    renamed in a copy of the tokenizer and all else is as it was: a text without marks has the ids
    it always had, and the marks in a text are spelt out.

    Args:
        tokenizer: A Hugging Face tokenizer, fast or slow; stays as it is.

    Raises:
        UserError: A tokenizer that cannot tell its marks from text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._controls = tokenizer, control_tokens(tokenizer)
        drawn = secrets.token_hex(8)  # so that nobody's text knows the names
        self._token, self._text = (
            {mark: f"\ufdd0{kind}.{drawn}.{id_}\ufdd0" for mark, id_ in self._controls.items()}
            for kind in ("token", "text")
        )
        self._back = {name: mark for mark, name in self._text.items()}
        self._any_mark, self._any_hidden = _any_of(self._token), _any_of(self._back)
        self._any = _any_of([*self._token, *self._back])
        self._fast = self._renamed() if tokenizer.is_fast else None

    def _renamed(self) -> Tokenizer:
        state, new = json.loads(self._tokenizer.backend_tokenizer.to_str()), self._token
        for token in state["added_tokens"]:
            if token["content"] in new:
                token |= {"content": new[token["content"]], "normalized": False}
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {new.get(word, word): id_ for word, id_ in model["vocab"].items()}
        else:  # Unigram: its marks would be found in any text
            model["vocab"] = [[new.get(word, word), score] for word, score in model["vocab"]]
        if "merges" in model:  # nor may letters merge into a mark
            pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
            model["merges"] = [
                [a, b] for a, b in pairs if a not in new and b not in new and a + b not in new
            ]
        if model.get("unk_token") in new:
            model["unk_token"] = new[model["unk_token"]]
        renamed = Tokenizer.from_str(json.dumps(state))
        renamed.no_truncation()
        renamed.no_padding()
        for mark, id_ in self._controls.items():
            if renamed.token_to_id(new[mark]) != id_:
                raise self._refusal(mark)
        return renamed

    @staticmethod
    def _refusal(mark: str) -> UserError:
        return UserError(
            f"The model's tokenizer cannot tell its control token {mark!r} from the same letters "
            "in a user's text; give a model with a tokenizer.json that can."
        )

    def marks(self, text: str) -> list[str]:
        """The control tokens that a text spells."""
        return [match[0] for match in self._any_mark.finditer(text)]

    def hidden(self, text: str) -> str:
        """A user's text for a template, whose own marks alone can then be found in the whole."""
        return self._any_mark.sub(lambda match: self._text[match[0]], text)

    def written(self, rendered: str) -> str:
        """A rendered template for ``ids``: its own marks are tokens, what was hidden is text."""
        said = self._token | self._back
        return self._any.sub(lambda match: said[match[0]], rendered)

    def shown(self, rendered: str) -> str:
        """A rendered template for readers."""
        return self._any_hidden.sub(lambda match: self._back[match[0]], rendered)

    def ids(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Ids per text; its control tokens are those that ``written`` named, and no other."""
        if self._fast is not None:
            encoded = self._fast.encode_batch(list(texts), add_special_tokens=add_special_tokens)
            return [list(row.ids) for row in encoded]
        rows = [self._slow(text) for text in texts]
        if add_special_tokens:
            rows = [list(self._tokenizer.build_inputs_with_special_tokens(row)) for row in rows]
        return rows

    def _slow(self, text: str) -> list[int]:
        """For a tokenizer in Python: named marks cut the text, and its parts are text."""
        tokens = {name: self._controls[mark] for mark, name in self._token.items()}
        unknown = self._tokenizer.unk_token_id
        row: list[int] = []
        for part in re.split(f"({_any_of(tokens).pattern})", text):
            if part in tokens:
                row.append(tokens[part])
                continue
            spelt = self._tokenizer.tokenize(part, split_special_tokens=bool(self.marks(part)))
            ids = self._tokenizer.convert_tokens_to_ids(spelt)
            for mark, id_ in self._controls.items():
                if id_ in ids and id_ != unknown:
                    raise self._refusal(mark)
            row += ids
        return row


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the words, the longest first; without words it never does."""
    longest = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


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
        self.tokenizer, self._encoder = tokenizer, TextEncoder(tokenizer)
        self.spelt: Counter[str] = Counter()
        self.decoder_only = decoder_only
        self.eos_id = self.eos_ids[0]
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.chat = prompts_chat == "template" and bool(getattr(tokenizer, "chat_template", None))
        before, self._lead = ":", " "
        if self.chat:
            before, self._lead, close = self._turn()
            before = self._encoder.written(before)
            if close in self.eos_ids:
                self.eos_id = close
        # SentencePiece tokenizers put a word mark in front of every text, so " tag" alone would
        # become two blanks. Tokenising after what stands before the answer, and dropping that
        # again, gives the ids that really follow a prompt. Byte-level tokenizers do not need it.
        start, word = self._ids(before), f"{self._lead}a"
        probe = self._ids(before + word)
        continued = probe[: len(start)] == start and probe[len(start) :] != self._ids(word)
        self._before, self._anchor = (before, len(start)) if continued else ("", 0)

    def _ids(self, written: str) -> list[int]:
        return self._encoder.ids([written], add_special_tokens=False)[0]

    def wrap(self, prompt: str) -> str:
        """The prompt as one user turn of the chat template, if there is one in use; to be shown."""
        return self._encoder.shown(self._wrapped(prompt)) if self.chat else prompt

    def _wrapped(self, prompt: str) -> str:
        turn = {"role": "user", "content": self._encoder.hidden(prompt)}
        return self._render([turn], opens=True)

    def marks(self, text: str) -> list[str]:
        """The control tokens that a text spells; the model reads them as text."""
        return self._encoder.marks(text)

    def _tell(self, prompts: Iterable[str]) -> None:
        for mark in (mark for prompt in prompts for mark in self.marks(prompt)):
            if mark not in self.spelt:
                log.warning("A prompt spells %r, a control token; it is read as text.", mark)
            self.spelt[mark] += 1

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
        messages = [{"role": role, "content": self._encoder.hidden(text)} for role, text in turns]
        return self._ids(self._encoder.written(self._render(messages, opens=True)))

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
        closing = self._ids(self._encoder.written(after)) if word else []
        return before, lead, closing[0] if closing else None

    def prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids per prompt: wrapped, with the tokenizer's own special tokens (BOS, or T5's EOS)."""
        self._tell(prompts)
        if self.chat:
            # A template writes BOS itself; adding it again would double it.
            rows = self._encoder.ids(
                # No text is no turn: an empty context keeps BOS alone.
                [
                    self._encoder.written(
                        self._wrapped(prompt) if prompt else self.tokenizer.bos_token or ""
                    )
                    for prompt in prompts
                ],
                add_special_tokens=False,
            )
        else:
            rows = self._encoder.ids(prompts, add_special_tokens=True)
        if self.decoder_only:
            # A decoder whose tokenizer closes every text with EOS would start after the end.
            return [row[:-1] if row and row[-1] in self.eos_ids else row for row in rows]
        return rows

    def answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Ids per answer, without EOS; an empty answer has no ids."""
        if not self.decoder_only:
            texts = list(answers)
        else:
            texts = [self._before + self._lead + answer for answer in answers]
        rows = self._encoder.ids(texts, add_special_tokens=False)
        return [
            row[self._anchor :] if answer else [] for row, answer in zip(rows, answers, strict=True)
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
