"""Requests in tokens, and the losses that editors minimise.

A prompt is what :class:`~chameleon_lib.backbones.text.TextCodec` makes of a question (one turn of
the chat template where there is one). The place of the subject is found by character offsets in
that very text, so that no count of tokens at a seam can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batches import pad
from chameleon_lib.editors.request import Request
from chameleon_lib.errors import UserError


@dataclass(frozen=True)
class Asked:
    """A prompt and its target.

    Attributes:
        prompt: Token ids, chat template and special tokens included.
        target: Token ids of the answer, without its end.
        at: Place of the subject's last token in ``prompt``; -1 where nobody asked.
    """

    prompt: list[int]
    target: list[int]
    at: int = -1


def asked(backbone: HFBackbone, request: Request, prefix: str = "") -> Asked:
    """A request in tokens, with the place of its subject; ``prefix`` is said before the question.

    Raises:
        UserError: A tokenizer that does not tell which letters a token stands for, a question that
            spells a control token, a target without tokens, or a prompt beyond the context limit.
    """
    text = f"{prefix}{request.question}"
    at = subject_place(backbone, text, request.subject)
    target = backbone.codec.answers([request.target])[0]
    if not target:
        raise UserError(f"The target {request.target!r} has no tokens in {backbone.name}.")
    prompt = backbone.codec.prompts([text])[0]
    backbone.check_length(len(prompt), len(target) + 1, f"The question {request.question!r}")
    return Asked(prompt, target, at)


def subject_place(backbone: HFBackbone, text: str, subject: str) -> int:
    """Place of the last token of the subject's last occurrence in the prompt of ``text``.

    Raises:
        UserError: As :func:`asked`, or no subject in the text.
    """
    codec = backbone.codec
    found = text.lower().rfind(subject.lower())
    if found < 0:
        raise UserError(f"The subject {subject!r} does not stand in {text!r}.")
    if not codec.tokenizer.is_fast:
        raise UserError(
            f"The tokenizer of {backbone.name} does not tell which letters a token stands for; "
            "give a model with a tokenizer.json."
        )
    shown = codec.wrap(text)
    start = shown.rfind(text.strip())
    end = start + found - (len(text) - len(text.lstrip())) + len(subject)
    coded = codec.tokenizer(
        shown, return_offsets_mapping=True, add_special_tokens=not codec.chat, truncation=False
    )
    prompt = codec.prompts([text])[0]
    if start < 0 or coded["input_ids"][: len(prompt)] != prompt:
        raise UserError(
            f"The question {text!r} is changed by the template or spells a control token of "
            f"{backbone.name}; word it without."
        )
    places = [at for at, (low, high) in enumerate(coded["offset_mapping"]) if low < end <= high]
    return places[-1]


def wide(values: Tensor) -> Tensor:
    """In float32 at least: what losses and changes are computed in."""
    return values if values.dtype == torch.float64 else values.float()


def next_logits(backbone: HFBackbone, one: Asked, *, last_only: bool) -> Tensor:
    """Logits ``(q, V)`` from which the target's tokens follow, or the first of them only.

    One whole pass of the model, with gradients to whatever of it wants them.
    """
    device, count = backbone.device, 1 if last_only else len(one.target)
    behind = one.target[: count - 1]
    model: Any = backbone.model
    if backbone.family == "encoder-decoder":
        start = [backbone.start_id, *behind]  # type: ignore[attr-defined]  # of its kind
        output = model(
            input_ids=torch.tensor([one.prompt], device=device),
            decoder_input_ids=torch.tensor([start], device=device),
            use_cache=False,
        )
        return wide(output.logits[0])
    ids = torch.tensor([[*one.prompt, *behind]], device=device)
    output = model(input_ids=ids, use_cache=False, logits_to_keep=count)
    return wide(output.logits[0])


def forced_loss(backbone: HFBackbone, one: Asked) -> Tensor:
    """Mean NLL of the target's tokens, teacher-forced: the loss of FT-M and LoRA, in nats."""
    wanted = torch.tensor(one.target, device=backbone.device)
    return torch.nn.functional.cross_entropy(next_logits(backbone, one, last_only=False), wanted)


def last_token_loss(backbone: HFBackbone, one: Asked) -> Tensor:
    """Mean NLL of all target tokens at the prompt's last place: the loss of FT-L, in nats.

    All tokens compete for one place, so it is never below the entropy of their frequencies.
    """
    logits = next_logits(backbone, one, last_only=True)
    wanted = torch.tensor(one.target, device=backbone.device)
    return -logits.log_softmax(dim=-1)[0, wanted].mean()


class SubjectRows:
    """Prompts whose pass begins at their subject's last token; what is before it is read once.

    A change at the subject's token in one layer reaches no token before it, in a decoder. An
    encoder reads in both directions, so there the whole pass is made every time.

    Args:
        rows: With the subject's place; a row without target is asked for what follows its subject.

    Attributes:
        places: ``(B,)``, where the subject's token stands in the input of :meth:`logits`.
    """

    def __init__(self, backbone: HFBackbone, rows: Sequence[Asked]) -> None:
        self.backbone, self.rows = backbone, list(rows)
        device, value = backbone.device, backbone.codec.pad_id
        if backbone.family == "encoder-decoder":
            self.places = torch.tensor([row.at for row in rows], device=device)
            ids, mask = pad([row.prompt for row in rows], value=value, side="right", device=device)
            start = backbone.start_id  # type: ignore[attr-defined]  # of its kind
            behind = [[start, *row.target[:-1]] for row in rows]
            own, _ = pad(behind, value=value, side="right", device=device)
            self._inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": own}
            self._first = [0] * len(self.rows)
            return
        self.places = torch.zeros(len(self.rows), dtype=torch.long, device=device)
        with torch.no_grad():
            # What all begin with, such as a template's system turn, is read once.
            begun = [row.prompt[: row.at + 1] for row in rows]
            self._prefix = backbone.prefill(begun, [0] * len(begun))
        behind = [
            (row.prompt[row.at + 1 :] + row.target[:-1]) if row.target else [] for row in rows
        ]
        ids, _ = pad(behind, value=value, side="right", device=device)
        ids = torch.cat([self._prefix.last, ids], dim=1)
        limit = backbone.context_limit
        positions = self._prefix.lengths[:, None] + torch.arange(ids.shape[1], device=device)
        self._inputs = {
            "input_ids": ids,
            # Padding is on the right, where no real token looks.
            "attention_mask": torch.cat([self._prefix.mask, torch.ones_like(ids)], dim=1),
            "position_ids": positions if limit is None else positions.clamp_max(limit - 1),
        }
        self._first = [len(row.prompt) - 1 - row.at if row.target else 0 for row in rows]

    def logits(self) -> list[Tensor]:
        """Per row logits ``(T, V)`` from which its target follows; one where it has none.

        Of a row without target: after its subject (decoder), or of the answer's first token.
        """
        model: Any = self.backbone.model
        counts = [max(1, len(row.target)) for row in self.rows]
        if self.backbone.family == "encoder-decoder":
            out = model(**self._inputs, use_cache=False).logits
            return [wide(out[at, :count]) for at, count in enumerate(counts)]
        inner = model.base_model(
            **self._inputs, past_key_values=self._prefix.cache(), use_cache=True
        ).last_hidden_state
        wanted = torch.cat(
            [
                inner[at, first : first + count]
                for at, (first, count) in enumerate(zip(self._first, counts, strict=True))
            ]
        )
        out = wide(model.get_output_embeddings()(wanted))
        return list(out.split(counts))


@contextmanager
def read_once(backbone: HFBackbone, layer: int) -> Iterator[Callable[[int], None]]:
    """Decoder layers before ``layer`` run once per row; their weights, and so they, never change.

    Yields:
        What says which row comes next. In an encoder-decoder every layer runs every time.
    """
    modules = backbone.sites("block_out")[:layer] if backbone.family == "decoder" else []
    kept: dict[tuple[int, int], Any] = {}
    current = 0

    def of_row(row: int) -> None:
        nonlocal current
        current = row

    def once(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            key = (current, number)
            if key not in kept:
                with torch.no_grad():
                    kept[key] = forward(*args, **named)
            return kept[key]

        return run

    own = [module.__dict__.get("forward") for module in modules]
    try:
        for number, module in enumerate(modules):
            module.forward = once(number, module.forward)
        yield of_row
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is not None:
                module.forward = forward
            elif "forward" in module.__dict__:
                del module.forward
