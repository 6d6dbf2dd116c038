"""HFBackbone: the ``Backbone`` protocol over a Hugging Face model.

Positions (A11) are realised by splitting the prompt. ``last``: everything before the last prompt
token is an unedited, cached prefix, and the hook is active from that token on. ``all``: the prefix
is recomputed inside the hook. ``generated``: the whole prompt stays unedited and its logits give
the first token. An encoder-decoder starts from one token, so ``last`` and ``all`` coincide there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chameleon_lib.backbones import activations, generation, scoring
from chameleon_lib.backbones.base import FrozenModel
from chameleon_lib.backbones.batching import plan_batches
from chameleon_lib.backbones.prefix import Prefix
from chameleon_lib.backbones.prepared import Batch, EditUsage, PreparedBatches
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.protocols import DecodeSettings, Pooling, Prepared, Reduce
from chameleon_lib.errors import UserError


class HFBackbone(FrozenModel):
    """Generates, scores and reads activations; see ``core.protocols.Backbone``."""

    def prompt_tokens(self, prompts: Sequence[str], new: int = 1) -> list[list[int]]:
        """Token ids of prompts that all hold text and leave room for ``new`` tokens.

        Raises:
            UserError: A prompt is empty or too long.
        """
        tokens = self.codec.prompts(prompts)
        for row, ids in enumerate(tokens):
            if not ids or not prompts[row].strip():
                raise UserError(f"Prompt {row} is empty; every prompt needs text.")
            self.check_length(len(ids), new, f"Prompt {row}")
        return tokens

    def _plan(self, prompts: Sequence[str], groups: Sequence[int] | None) -> list[Batch]:
        tokens = self.prompt_tokens(prompts)
        if groups is not None and len(groups) != len(prompts):
            raise UserError(f"{len(prompts)} prompts but {len(groups)} groups; give one each.")
        shared = list(groups) if groups is not None and self.family == "decoder" else None
        return [
            Batch(
                rows,
                [tokens[row] for row in rows],
                None if shared is None else [shared[row] for row in rows],
            )
            for rows in plan_batches([len(ids) for ids in tokens], groups=shared)
        ]

    def prefix_of(self, batch: Batch, edit: Edit | None) -> Prefix:
        """The prefix of a batch: stored, computed unedited, or (``all``) computed edited.

        ``edit`` is already cut to the rows of the batch.
        """
        if edit is not None and edit.positions == "all" and self.family == "decoder":
            with self.editing(edit if any(len(ids) > 1 for ids in batch.prompts) else None):
                # Members of a group share one edited start only if they share the edit.
                return self.prefill(batch.prompts, None if edit.per_row else batch.groups)
        if batch.prefix is not None:
            return batch.prefix
        # No inference mode: a stored prefix is used again with gradients.
        with torch.inference_mode(False), torch.no_grad():
            return self.prefill(batch.prompts, batch.groups)

    def prepare(
        self, prompts: Sequence[str], *, groups: Sequence[int] | None = None
    ) -> PreparedBatches:
        """Tokenises, buckets and computes the unedited prefix (decoder) or encoder states once.

        Raises:
            UserError: If a prompt is empty or longer than the context limit.
        """
        spent, batches = 0, []
        for batch in self._plan(prompts, groups):
            prefix = None
            if spent < self.prefix_bytes:
                prefix = self.prefix_of(batch, None)
                spent += prefix.nbytes
            batches.append(Batch(batch.rows, batch.prompts, batch.groups, prefix))
        return PreparedBatches(batches)

    def rows(self, prepared: Prepared, rows: Sequence[int]) -> PreparedBatches:
        """Prepared prompts by number, in this order; stored prefixes are copied, none is computed.

        Args:
            prepared: From ``prepare``.
            rows: Numbers of prompts; one may come more than once. A per-row edit has one row for
                each.

        Raises:
            IndexError: A number that no prompt has.
        """
        # No inference mode: a copied prefix, too, is used again with gradients.
        with torch.inference_mode(False), torch.no_grad():
            return self._own(prepared).take(rows)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        edit: Edit | None = None,
        groups: Sequence[int] | None = None,
        decode: DecodeSettings | None = None,
    ) -> list[str]:
        """Answers in the order of the prompts, stripped.

        Args:
            prompts: Prompts; each must leave room for the answer.
            max_new_tokens: Most tokens per answer (R7).
            edit: Shared or per-row edit.
            groups: Prompts of one group share their longest common token prefix, computed once;
                same results, less work. An encoder-decoder ignores it (bidirectional encoder).
            decode: Greedy if None.

        Raises:
            UserError: If a prompt is empty or too long.
            ValueError: Beams with an edit of the generated tokens alone.
        """
        self.usage = EditUsage()
        planned = PreparedBatches(self._plan(prompts, groups))
        return generation.generate(self, planned, max_new_tokens, edit, decode or DecodeSettings())

    def generate_prepared(
        self,
        prepared: Prepared,
        *,
        max_new_tokens: int,
        edit: Edit | None = None,
        decode: DecodeSettings | None = None,
    ) -> list[str]:
        """``generate`` from stored prefixes; an edit with positions ``all`` recomputes them."""
        self.usage = EditUsage()
        batches = self._own(prepared)
        return generation.generate(self, batches, max_new_tokens, edit, decode or DecodeSettings())

    def score(
        self,
        prepared: Prepared,
        answers: Sequence[str],
        *,
        edit: Edit | None = None,
        reduce: Reduce = "sum",
    ) -> Tensor:
        """Teacher-forced ``log p(answer + EOS | prompt)`` in nats.

        Args:
            prepared: From ``prepare``.
            answers: One per prompt.
            edit: Shared or per-row edit; gradients flow to its directions if grad is enabled.
            reduce: ``sum``, or ``mean`` over the answer's tokens and EOS.

        Returns:
            ``(B,)`` float32, in the order of the prompts.
        """
        self.usage = EditUsage()
        return scoring.score(self, self._own(prepared), answers, edit, reduce)

    def score_many(
        self,
        prepared: Prepared,
        answers: Sequence[Sequence[str]],
        *,
        edit: Edit | None = None,
        reduce: Reduce = "sum",
    ) -> list[Tensor]:
        """``score`` of several answers per prompt: one tensor ``(n_answers,)`` per prompt."""
        self.usage = EditUsage()
        return scoring.score_many(self, self._own(prepared), answers, edit, reduce)

    def activations(
        self,
        contexts: Sequence[str],
        answers: Sequence[str],
        *,
        pooling: Pooling = "last",
        site: str = "mlp_out",
    ) -> Tensor:
        """Pooled site outputs of context + answer, no edit active (section 3.5, A2).

        Args:
            contexts: Text before the answer (encoder text of an encoder-decoder); may be empty.
            answers: Answer texts, without EOS; may be empty where the context holds the text.
            pooling: ``last`` token | ``mean_answer`` tokens | ``mean_all`` tokens (of the decoder).
            site: ``mlp_out`` | ``gate_proj`` | ``block_out``.

        Returns:
            ``(n_layers, B, width)`` float32 on the CPU, in the order given.
        """
        return activations.read(self, contexts, answers, pooling, site)

    def _own(self, prepared: Prepared) -> PreparedBatches:
        if not isinstance(prepared, PreparedBatches):
            raise TypeError("This backbone uses only what its own prepare() returned.")
        return prepared
