"""Decoding from a prefix: greedy, sampled, and beams.

One loop serves both families. Rows that ended are dropped from the batch once they are half of it,
so one rambling answer does not keep the others computing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from chameleon_lib.backbones.batches import EditUsage, PreparedBatches, own_batches
from chameleon_lib.backbones.frozen import FrozenModel, alone
from chameleon_lib.backbones.prefix import Prefix
from chameleon_lib.core.backbone import DecodeSettings, Prepared
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.errors import UserError

_SMALL = 4  # rows below which dropping finished ones costs more than it saves


class _Loop:
    """The decoding state of one batch; every tensor has one entry per row still running."""

    def __init__(
        self,
        backbone: FrozenModel,
        prefix: Prefix,
        keys: Tensor,
        max_new_tokens: int,
        decode: DecodeSettings,
    ) -> None:
        n, device = len(keys), backbone.device
        self.backbone, self.decode, self.limit = backbone, decode, max_new_tokens
        self.prefix, self.keys = prefix, keys
        self.cache: Cache = prefix.cache()
        self.ids = prefix.last  # (B, 1)
        self.positions = prefix.lengths[:, None]  # (B, 1)
        room = torch.ones(n, max_new_tokens, dtype=torch.long, device=device)
        self.mask = torch.cat([prefix.mask, room], dim=1)  # (B, P + max_new_tokens)
        self.eos = torch.tensor(backbone.codec.eos_ids, device=device)
        self.done = torch.zeros(n, dtype=torch.bool, device=device)
        self.at = torch.arange(n, device=device)  # place of each running row in the output
        self.out = torch.full((n, max_new_tokens), backbone.codec.eos_id, device=device)
        self.t = 0

    def run(self, edit: AnyEdit | None) -> Tensor:
        """Generated ids ``(B, max_new_tokens)``, filled with EOS after the end of a row."""
        if edit is not None and edit.positions == "generated":
            self._advance(1)  # the last prompt token, too, stays unedited
        while self.t < self.limit and len(self.at):
            with self.backbone.editing(None if edit is None else edit.rows(self.at)):
                self._advance(self.limit)
            self._drop_finished()
        return self.out

    def _advance(self, stop: int) -> None:
        """Steps until ``stop`` tokens, or until half of the rows have ended."""
        start = self.mask.shape[1] - self.limit  # P
        rows = len(self.at)
        while self.t < stop:
            mask = self.mask[:, : start + self.t + 1]
            logits = self.backbone.step(
                self.prefix, self.cache, self.ids, mask, self.positions, last_only=True
            )[:, -1]
            token = self._pick(logits).masked_fill(self.done, self.backbone.codec.eos_id)
            self.out[self.at, self.t] = token
            self.done = self.done | torch.isin(token, self.eos)
            self.ids, self.positions = token[:, None], self.positions + 1
            self.t += 1
            running = rows - int(self.done.sum())
            if running == 0 or (rows > _SMALL and 2 * running <= rows):
                return

    def _drop_finished(self) -> None:
        keep = (~self.done).nonzero()[:, 0]
        self.at, self.keys = self.at[keep], self.keys[keep]
        if len(keep) == 0 or self.t >= self.limit:
            return
        self.cache.batch_select_indices(keep)
        prefix = self.prefix
        if prefix.encoder is not None and prefix.encoder_mask is not None:
            encoder, mask = prefix.encoder[keep], prefix.encoder_mask[keep]
            self.prefix = Prefix(
                prefix.last[keep], (), prefix.mask[keep], prefix.lengths[keep], encoder, mask
            )
        self.ids, self.positions = self.ids[keep], self.positions[keep]
        self.mask, self.done = self.mask[keep], self.done[keep]

    def _pick(self, logits: Tensor) -> Tensor:
        """Next token per row ``(B,)`` from logits ``(B, V)``."""
        if not self.decode.do_sample:
            return logits.argmax(dim=-1)
        scaled = logits.float() / (self.decode.temperature or 1.0)
        noise = gumbel(self.keys, self.t, scaled.shape[-1], self.decode.seed)
        return (scaled + noise).argmax(dim=-1)


def noise_keys(prepared: PreparedBatches) -> list[int]:
    """What tells the noise of each prompt from that of others: 63 bits, in the caller's order.

    A hash of the prompt's tokens, so that its sample depends neither on its place in the call nor
    on how texts are divided into calls. Equal prompts of a call are counted, and so differ.
    """
    if prepared.noise is not None:
        return prepared.noise
    prompts = {
        row: ids for batch in prepared.batches
        for row, ids in zip(batch.rows, batch.prompts, strict=True)
    }  # fmt: skip
    keys, seen = [], Counter[str]()
    for row in range(len(prepared)):
        words = " ".join(map(str, prompts[row]))
        found = hashlib.sha256(f"{seen[words]}: {words}".encode()).digest()
        keys.append(int.from_bytes(found[:8], "big") >> 1)
        seen[words] += 1
    return keys


def gumbel(keys: Tensor, step: int, width: int, seed: int) -> Tensor:
    """Gumbel noise ``(B, width)`` float32 that depends on (seed, key, step, column) alone.

    Adding it to logits and taking the maximum samples from their softmax. A counter-based hash
    (the finalizer of SplitMix64) keeps a row's sample independent of how rows are batched.
    """
    columns = torch.arange(width, device=keys.device)
    state = _mix(_mix(keys.long() + (seed << 20)) + step)  # (B,)
    bits = _mix(state[:, None] + columns) & ((1 << 24) - 1)
    uniform = (bits.double() + 0.5) / (1 << 24)
    return (-(-uniform.log()).log()).float()


def _mix(x: Tensor) -> Tensor:
    # int64 multiplication wraps, which is what the hash wants; shifts are made logical by masks.
    x = x - 0x61C8864680B583EB
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _beams(
    backbone: FrozenModel,
    prefix: Prefix,
    max_new_tokens: int,
    edit: AnyEdit | None,
    decode: DecodeSettings,
) -> Tensor:
    """Beam search of the library, started from the prefix; ids ``(B, <= max_new_tokens)``."""
    if edit is not None and edit.positions == "generated":
        raise ValueError("Beam search starts at the last prompt token: use edit_positions last.")
    inputs: dict[str, Any] = backbone.beam_inputs(prefix, decode.num_beams)
    # The library runs the beams of a row side by side; an encoder is not among the edited modules.
    with backbone.editing(None if edit is None else edit.repeat_rows(decode.num_beams)):
        tokens: Tensor = backbone.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            num_beams=decode.num_beams,
            do_sample=False,
            eos_token_id=list(backbone.codec.eos_ids),
            pad_token_id=backbone.codec.pad_id,
        )
    # Decoders return the prompt as well, encoder-decoders their start token (R8).
    return tokens[:, prefix.mask.shape[1] + 1 :]


class GeneratingModel(FrozenModel):
    """What of ``core.backbone.Backbone`` writes answers."""

    @alone
    def generate_prepared(
        self,
        prepared: Prepared,
        *,
        max_new_tokens: int,
        edit: AnyEdit | None = None,
        decode: DecodeSettings | None = None,
    ) -> list[str]:
        """Answers in the order of the prompts, stripped; greedy if ``decode`` is None.

        Stored prefixes are used as they are; an edit with positions ``all`` recomputes them.

        Raises:
            UserError: If a prompt leaves no room for the answer (R7).
            ValueError: Beams with an edit of the generated tokens alone.
        """
        self.usage, batches = EditUsage(), own_batches(prepared)
        decode = decode or DecodeSettings()
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; give 1 or more.")
        batches.check_edit(edit)
        answers = [""] * len(batches)
        # Greedy decoding draws nothing.
        keys = noise_keys(batches) if decode.do_sample else [0] * len(batches)
        with torch.inference_mode():
            for batch in batches.batches:
                for row, ids in zip(batch.rows, batch.prompts, strict=True):
                    self.check_length(len(ids), max_new_tokens, f"Prompt {row}")
            for batch in batches.batches:
                own = None if edit is None else edit.rows(batch.rows)
                prefix = self.prefix_of(batch, own)
                if decode.num_beams > 1:
                    tokens = _beams(self, prefix, max_new_tokens, own, decode)
                else:
                    own_keys = torch.tensor([keys[row] for row in batch.rows], device=self.device)
                    tokens = _Loop(self, prefix, own_keys, max_new_tokens, decode).run(own)
                texts = self.codec.decode(tokens)
                for row, text in zip(batch.rows, texts, strict=True):
                    answers[row] = text
        return answers
