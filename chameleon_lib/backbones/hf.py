"""HFBackbone: the ``Backbone`` protocol over a Hugging Face model, and its two kinds.

How each kind turns prompts into a prefix and tokens into logits is here; decoding, scoring and
reading are shared (``generation``, ``reading``).

Positions (A11) are realised by splitting the prompt. ``last``: everything before the last prompt
token is an unedited, cached prefix, and the hook is active from that token on. ``all``: the prefix
is recomputed inside the hook. ``generated``: the whole prompt stays unedited and its logits give
the first token. An encoder-decoder starts from one token, so ``last`` and ``all`` coincide there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from chameleon_lib.backbones.batches import (
    Batch,
    PreparedBatches,
    ReadInputs,
    common_prefix,
    own_batches,
    pad,
    plan_batches,
)
from chameleon_lib.backbones.counting import CountingBackbone
from chameleon_lib.backbones.filed import FiledPrefix, has_room
from chameleon_lib.backbones.frozen import alone
from chameleon_lib.backbones.generation import GeneratingModel, noise_keys
from chameleon_lib.backbones.prefix import (
    KeyValues,
    Prefix,
    take_rows,
    unwrap_cache,
    wrap_cache,
)
from chameleon_lib.backbones.reading import ReadingModel
from chameleon_lib.core.backbone import DecodeSettings, Family, Prepared
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.errors import UserError


class HFBackbone(ReadingModel, GeneratingModel):
    """Generates, scores and reads activations; see ``core.backbone.Backbone``."""

    def counting(self) -> CountingBackbone:
        """This backbone, with a count of the answer tokens that it scores."""
        return CountingBackbone(self)

    def _plan(self, prompts: Sequence[str], groups: Sequence[int] | None) -> list[Batch]:
        tokens = self.codec.prompts(prompts)
        for row, ids in enumerate(tokens):
            if not ids or not prompts[row].strip():
                raise UserError(f"Prompt {row} is empty; every prompt needs text.")
            self.check_length(len(ids), 1, f"Prompt {row}")
        if groups is not None and len(groups) != len(prompts):
            raise UserError(f"{len(prompts)} prompts but {len(groups)} groups; give one each.")
        shared = list(groups) if groups is not None and self.family == "decoder" else None
        return [
            Batch(
                rows,
                [tokens[row] for row in rows],
                None if shared is None else [shared[row] for row in rows],
            )
            for rows in plan_batches(
                [len(ids) for ids in tokens], groups=shared, token_budget=self.token_budget
            )
        ]

    @alone
    def prepare(
        self,
        prompts: Sequence[str],
        *,
        groups: Sequence[int] | None = None,
        filed: bool = False,
    ) -> PreparedBatches:
        """Tokenises, buckets and computes the unedited prefix (decoder) or encoder states once.

        What has no room in memory is computed at each use, or once and kept in a file (``filed``)
        where the disk has room: for who comes back to a few of the prompts many times.

        Raises:
            UserError: If a prompt is empty or longer than the context limit.
        """
        spent, room, batches = 0, self.room, []
        for batch in self._plan(prompts, groups):
            prefix: Prefix | FiledPrefix | None = None
            if spent < room:
                prefix = self.prefix_of(batch, None)
                spent += prefix.nbytes
            elif filed:
                states = self.prefix_of(batch, None)
                folder = has_room(states.nbytes)
                prefix = FiledPrefix(states, folder) if folder else None
            batches.append(replace(batch, prefix=prefix))
        return PreparedBatches(batches)

    def in_turn(self, prepared: Prepared) -> Iterator[tuple[list[int], PreparedBatches]]:
        """Batch after batch, for who asks all of a prompt at once: its numbers, and itself read.

        Of a batch that ``prepare`` had no room for nothing is kept when the next one comes, so that
        prompts of any number are read once.
        """
        batches = own_batches(prepared)
        noise = noise_keys(batches)
        for batch in batches.batches:
            with self.lock:
                prefix = self.prefix_of(batch, None)
            own = replace(batch, rows=list(range(len(batch.rows))), prefix=prefix)
            yield batch.rows, PreparedBatches([own], [noise[row] for row in batch.rows])

    def rows(self, prepared: Prepared, rows: Sequence[int]) -> PreparedBatches:
        """Prepared prompts by number, in this order; stored prefixes are copied, none is computed.

        A number may come more than once.

        Raises:
            IndexError: A number that no prompt has.
        """
        # No inference mode: a copied prefix, too, is used again with gradients.
        with torch.inference_mode(False), torch.no_grad():
            return own_batches(prepared).take(rows)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        edit: AnyEdit | None = None,
        groups: Sequence[int] | None = None,
        decode: DecodeSettings | None = None,
    ) -> list[str]:
        """``generate_prepared`` from the prompts themselves.

        Prompts of one group share their longest common token prefix, computed once: the same
        results with less work. An encoder-decoder ignores groups (its encoder is bidirectional).

        Raises:
            UserError: If a prompt is empty.
        """
        planned = PreparedBatches(self._plan(prompts, groups))
        return self.generate_prepared(
            planned, max_new_tokens=max_new_tokens, edit=edit, decode=decode
        )


class DecoderBackbone(HFBackbone):
    """A decoder-only model: the prefix is the prompt without its last token."""

    family: Family = "decoder"

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.text_config.num_hidden_layers)

    def prefill(self, prompts: Sequence[list[int]], groups: Sequence[int] | None) -> Prefix:
        """Computes ``prompt[:-1]``; the shared start of every group is computed once.

        Left padding with explicit position ids, so a row does not depend on its neighbours.
        """
        bodies = [prompt[:-1] for prompt in prompts]
        last = torch.tensor([prompt[-1:] for prompt in prompts], device=self.device)
        nothing = torch.zeros(len(prompts), 0, dtype=torch.long, device=self.device)
        start = Prefix(last, (), nothing, nothing.sum(dim=1))
        if groups is None or self._slides(prompts):
            return self._extended(start, bodies)
        members: dict[int, list[int]] = {}
        for row, group in enumerate(groups):
            members.setdefault(group, []).append(row)
        shared = {
            group: common_prefix([bodies[row] for row in rows]) for group, rows in members.items()
        }
        order = list(members)
        heads = [bodies[members[group][0]][: shared[group]] for group in order]
        first = torch.tensor([members[group][0] for group in order], device=self.device)
        head = self._extended(start.take(first), heads)
        number = {group: at for at, group in enumerate(order)}
        spread = torch.tensor([number[group] for group in groups], device=self.device)
        key_values = take_rows(head.key_values, spread)
        joined = Prefix(last, key_values, head.mask[spread], head.lengths[spread])
        rest = [body[shared[group] :] for body, group in zip(bodies, groups, strict=True)]
        return self._extended(joined, rest)

    def _slides(self, prompts: Sequence[list[int]]) -> bool:
        # Padding between a shared start and its rest would shorten a sliding window, which counts
        # cache slots and not tokens; such batches are computed whole.
        window = getattr(self.text_config, "sliding_window", None)
        return window is not None and 2 * max(len(prompt) for prompt in prompts) > window

    def _extended(self, prefix: Prefix, tokens: Sequence[list[int]]) -> Prefix:
        """The prefix after these further tokens per row."""
        if not any(tokens):
            return prefix
        ids, new = pad(tokens, value=self.codec.pad_id, side="left", device=self.device)
        mask = torch.cat([prefix.mask, new], dim=1)
        positions = (prefix.lengths[:, None] + new.cumsum(dim=1) - 1).clamp_min(0)
        cache = wrap_cache(prefix.key_values, growing=False)
        self.step(prefix, cache, ids, mask, positions, last_only=True)
        return Prefix(prefix.last, unwrap_cache(cache), mask, prefix.lengths + new.sum(dim=1))

    def step(
        self,
        prefix: Prefix,  # noqa: ARG002  (the encoder-decoder needs it)
        cache: Cache,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        *,
        last_only: bool,
    ) -> Tensor:
        """Logits ``(B, q, V)`` of ``ids`` ``(B, q)``, or of the last one only."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1 if last_only else 0,
        )
        logits: Tensor = output.logits
        return logits

    def read_inputs(self, contexts: list[list[int]], answers: list[list[int]]) -> ReadInputs:
        """One sequence, context then answer, right padded."""
        rows = [context + answer for context, answer in zip(contexts, answers, strict=True)]
        if not all(rows):
            raise UserError(
                f"Pair text {[bool(row) for row in rows].index(False)} is empty: give a context "
                "or an answer to read activations from."
            )
        ids, mask = pad(rows, value=self.codec.pad_id, side="right", device=self.device)
        positions = torch.arange(ids.shape[1], device=self.device).expand_as(ids)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return ReadInputs(inputs, [len(row) for row in rows], [len(row) for row in answers])

    def read(self, inputs: dict[str, Tensor]) -> None:
        """One forward pass without the language-model head."""
        self.model.base_model(**inputs, use_cache=False)

    def beam_inputs(self, prefix: Prefix, num_beams: int) -> dict[str, Any]:
        """Arguments of the library's ``generate`` that start from the prefix."""
        width = prefix.mask.shape[1]
        ids = torch.full((len(prefix.last), width), self.codec.pad_id, device=self.device)
        cache = wrap_cache(prefix.key_values, growing=False)
        if width:
            cache.batch_repeat_interleave(num_beams)
        return {
            # Only the last token is run; the library wants ids for the cached ones too.
            "input_ids": torch.cat([ids, prefix.last], dim=1),
            "attention_mask": torch.cat([prefix.mask, torch.ones_like(prefix.last)], dim=1),
            "past_key_values": cache,
        }


class EncoderDecoderBackbone(HFBackbone):
    """An encoder-decoder: the prefix is the encoder's output, the decoder starts from one token.

    ``groups`` bring nothing here: the encoder is bidirectional, so prompts with a common start do
    not share its states.
    """

    family: Family = "encoder-decoder"

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        config = self.model.config
        return int(getattr(config, "num_decoder_layers", None) or config.num_hidden_layers)

    @property
    def start_id(self) -> int:
        """The token a decoder starts from; T5 starts from its padding token."""
        for config in (self.model.config, self.model.generation_config):
            start = getattr(config, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        return self.codec.pad_id

    def prefill(
        self,
        prompts: Sequence[list[int]],
        groups: Sequence[int] | None,  # noqa: ARG002  (see the class docstring)
    ) -> Prefix:
        """Encoder states, and the cross-attention keys and values made from them."""
        ids, mask = pad(prompts, value=self.codec.pad_id, side="right", device=self.device)
        states = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        encoder = states.to(self.device)  # its last layer may lie on another device
        last = torch.full((len(prompts), 1), self.start_id, dtype=torch.long, device=self.device)
        nothing = mask[:, :0]
        bare = Prefix(last, (), nothing, nothing.sum(dim=1), encoder, mask)
        cache: Any = bare.cache()
        # Projecting the encoder states costs as much as a short answer; do it once per prompt.
        self.step(bare, cache, last, torch.ones_like(last), torch.zeros_like(last), last_only=True)
        cross: KeyValues = unwrap_cache(cache.cross_attention_cache)
        return Prefix(last, (), nothing, nothing.sum(dim=1), encoder, mask, cross)

    def step(
        self,
        prefix: Prefix,
        cache: Cache,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,  # noqa: ARG002  (relative positions come from the cache length)
        *,
        last_only: bool,
    ) -> Tensor:
        """Logits ``(B, q, V)`` of the decoder ids ``(B, q)``, or of the last one only."""
        output = self.model(
            encoder_outputs=(prefix.encoder,),
            attention_mask=prefix.encoder_mask,
            decoder_input_ids=ids,
            decoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        logits: Tensor = output.logits
        return logits[:, -1:] if last_only else logits

    def read_inputs(self, contexts: list[list[int]], answers: list[list[int]]) -> ReadInputs:
        """Context in the encoder, start token and answer in the decoder (A21)."""
        value = self.codec.pad_id
        # A tokenizer without special tokens leaves nothing of an empty context; EOS stands in.
        filled = [context or [self.codec.eos_id] for context in contexts]
        ids, mask = pad(filled, value=value, side="right", device=self.device)
        rows = [[self.start_id, *answer] for answer in answers]
        own, own_mask = pad(rows, value=value, side="right", device=self.device)
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "decoder_input_ids": own,
            "decoder_attention_mask": own_mask,
        }
        return ReadInputs(inputs, [len(row) for row in rows], [len(row) for row in answers])

    def read(self, inputs: dict[str, Tensor]) -> None:
        """One forward pass."""
        self.model(**inputs, use_cache=False)

    def beam_inputs(self, prefix: Prefix, num_beams: int) -> dict[str, Any]:  # noqa: ARG002
        """Arguments of the library's ``generate``; it repeats the encoder states itself."""
        return {
            # Its own cache would count encoder layers and fail where the decoder has more.
            "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
            "encoder_outputs": BaseModelOutput(last_hidden_state=prefix.encoder),
            "attention_mask": prefix.encoder_mask,
        }
