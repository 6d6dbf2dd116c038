"""What a frozen model makes of given texts: log-probabilities of answers, and site outputs.

The input of the one scored call is the last prompt token and the answer; its targets are the answer
and EOS. With positions ``last`` all positions of this call are edited, exactly those a greedy run
would edit while it writes the answer. Site outputs of all decoder layers are read in one forward
pass, unedited (section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chameleon_lib.backbones.batches import (
    EditUsage,
    PreparedBatches,
    ReadInputs,
    own_batches,
    pad,
    plan_batches,
)
from chameleon_lib.backbones.frozen import FrozenModel, alone
from chameleon_lib.backbones.prefix import Prefix
from chameleon_lib.core.backbone import Pooling, Prepared, Reduce
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.errors import UserError


def _score_batch(
    backbone: FrozenModel, prefix: Prefix, answers: list[list[int]], edit: AnyEdit | None
) -> Tensor:
    """Summed log-probabilities ``(B,)`` of one batch."""
    logp, targets, real = _log_probs(backbone, prefix, answers, edit)
    picked = logp.gather(-1, targets[..., None])[..., 0]  # (B, q)
    return (picked * real).sum(dim=1)


def _log_probs(
    backbone: FrozenModel, prefix: Prefix, answers: list[list[int]], edit: AnyEdit | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Next-token log-probabilities ``(B, q, V)`` along answers and EOS, targets, and their mask."""
    codec, device = backbone.codec, backbone.device
    # Right padding: later positions cannot reach back, so the mask of the answer part is all ones.
    ids, _ = pad(answers, value=codec.pad_id, side="right", device=device)
    targets, real = pad(
        [[*answer, codec.eos_id] for answer in answers],
        value=codec.pad_id,
        side="right",
        device=device,
    )
    inputs = torch.cat([prefix.last, ids], dim=1)  # (B, q)
    mask = torch.cat([prefix.mask, torch.ones_like(inputs)], dim=1)
    positions = prefix.lengths[:, None] + torch.arange(inputs.shape[1], device=device)
    limit = backbone.context_limit
    if limit is not None:
        # Padding after a short answer may point past the position table; it is never read.
        positions = positions.clamp_max(limit - 1)
    cache = prefix.cache()
    logits: list[Tensor] = []
    start = 0
    if edit is not None and edit.positions == "generated":
        first = mask[:, : prefix.mask.shape[1] + 1]
        logits.append(
            backbone.step(prefix, cache, inputs[:, :1], first, positions[:, :1], last_only=False)
        )
        start = 1
    if start < inputs.shape[1]:
        with backbone.editing(edit):
            rest = (inputs[:, start:], mask, positions[:, start:])
            logits.append(backbone.step(prefix, cache, *rest, last_only=False))
    return torch.cat(logits, dim=1).float().log_softmax(dim=-1), targets, real


def _read_batch(
    backbone: FrozenModel, modules: Sequence[nn.Module], batch: ReadInputs, pooling: str
) -> Tensor:
    weights = _weights(batch, pooling).to(backbone.device)  # (b, T)
    seen: list[Tensor | None] = [None] * len(modules)

    def hook_of(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            out: Tensor = output[0] if isinstance(output, tuple) else output
            out = out.reshape(*weights.shape, -1).float()  # OPT joins rows and tokens
            own = weights.to(out.device)  # layers of a large model lie on several devices
            if pooling == "last":
                rows = torch.arange(len(own), device=out.device)
                values = out[rows, own.argmax(dim=1)]
            else:
                values = (own[..., None] * out).sum(dim=1)
            seen[layer] = values.to(backbone.device)

        return hook

    handles: list[RemovableHandle] = []
    try:
        for layer, module in enumerate(modules):
            handles.append(module.register_forward_hook(hook_of(layer)))
        backbone.read(batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    read_layers = [values for values in seen if values is not None]
    if len(read_layers) != len(modules):
        raise RuntimeError("A site was not reached by the forward pass; the site table is wrong.")
    return torch.stack(read_layers)


def _weights(batch: ReadInputs, pooling: str) -> Tensor:
    """Pooling weights ``(b, T)`` that sum to 1 per row."""
    ends = torch.tensor(batch.lengths)[:, None]
    counts = torch.tensor(batch.answer_lengths)[:, None]
    places = torch.arange(int(ends.max()))[None]
    if pooling == "last":
        inside = places == ends - 1
    elif pooling == "mean_answer":
        inside = (places < ends) & (places >= ends - counts)
    else:
        inside = places < ends
    weights = inside.float()
    return weights / weights.sum(dim=1, keepdim=True)


class ReadingModel(FrozenModel):
    """What of ``core.backbone.Backbone`` reads given texts."""

    @alone
    def score(
        self,
        prepared: Prepared,
        answers: Sequence[str],
        *,
        edit: AnyEdit | None = None,
        reduce: Reduce = "sum",
    ) -> Tensor:
        """Teacher-forced ``log p(answer + EOS | prompt)`` in nats, ``(B,)`` float32.

        Gradients flow to the edit's directions if they are enabled; ``mean`` is over the answer's
        tokens and EOS.
        """
        self.usage = EditUsage()
        return self._scores(own_batches(prepared), answers, edit, reduce)

    def _scores(
        self,
        prepared: PreparedBatches,
        answers: Sequence[str],
        edit: AnyEdit | None,
        reduce: Reduce,
    ) -> Tensor:
        if reduce not in ("sum", "mean"):
            raise ValueError(f"reduce is '{reduce}'; use sum or mean.")
        if len(answers) != len(prepared):
            raise UserError(
                f"{len(prepared)} prompts but {len(answers)} answers; give one per prompt."
            )
        prepared.check_edit(edit)
        tokens = self.codec.answers(answers)
        parts, order = [], []
        for batch in prepared.batches:
            own = None if edit is None else edit.rows(batch.rows)
            ids = [tokens[row] for row in batch.rows]
            for row, prompt, answer in zip(batch.rows, batch.prompts, ids, strict=True):
                self.check_length(len(prompt), len(answer) + 1, f"Prompt {row}")
            logp = _score_batch(self, self.prefix_of(batch, own), ids, own)  # (B,)
            if reduce == "mean":
                logp = logp / torch.tensor([len(answer) + 1 for answer in ids], device=logp.device)
            parts.append(logp)
            order.extend(batch.rows)
        if not parts:
            return torch.zeros(0)
        inverse = torch.empty(len(order), dtype=torch.long)
        inverse[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[inverse.to(self.device)]

    @alone
    def score_many(
        self,
        prepared: Prepared,
        answers: Sequence[Sequence[str]],
        *,
        edit: AnyEdit | None = None,
        reduce: Reduce = "sum",
    ) -> list[Tensor]:
        """``score`` of several answers per prompt: one tensor ``(n_answers,)`` per prompt.

        Column by column: the prefix of all prompts is used as it is, instead of being repeated in
        memory for every answer.
        """
        self.usage, batches = EditUsage(), own_batches(prepared)
        if len(answers) != len(batches):
            raise UserError(
                f"{len(batches)} prompts but {len(answers)} answer lists; give one each."
            )
        width = max((len(row) for row in answers), default=0)
        if width == 0:
            return [torch.zeros(0) for _ in answers]
        asked = ([row[at] if at < len(row) else "" for row in answers] for at in range(width))
        columns = [self._scores(batches, column, edit, reduce) for column in asked]
        table = torch.stack(columns, dim=1)  # (B, width)
        return [scores[: len(row)] for scores, row in zip(table, answers, strict=True)]

    @alone
    def divergence(
        self, prepared: Prepared, answers: Sequence[str], *, edit: AnyEdit, tokens: int
    ) -> Tensor:
        """What an edit does to the next token at the first ``tokens`` of each answer and its EOS.

        Returns:
            ``(B, 2)`` float32: KL(unedited || edited) in nats, and the share of the tokens at which
            the likeliest token is another one; means over the tokens that there are.
        """
        self.usage, batches = EditUsage(), own_batches(prepared)
        batches.check_edit(edit)
        ids = [tokens_of[: tokens - 1] for tokens_of in self.codec.answers(answers)]
        found = torch.zeros(len(batches), 2, device=self.device)
        for batch in batches.batches:
            own, some = edit.rows(batch.rows), [ids[row] for row in batch.rows]
            before, _, real = _log_probs(self, self.prefix_of(batch, None), some, None)
            after, _, _ = _log_probs(self, self.prefix_of(batch, own), some, own)
            kl = (before.exp() * (before - after)).sum(dim=-1)  # (B, q)
            moved = (before.argmax(dim=-1) != after.argmax(dim=-1)).float()
            means = [(part * real).sum(dim=1) / real.sum(dim=1) for part in (kl, moved)]
            found[batch.rows] = torch.stack(means, dim=1)
        return found

    @alone
    def activations(
        self,
        contexts: Sequence[str],
        answers: Sequence[str],
        *,
        pooling: Pooling = "last",
        site: str = "mlp_out",
    ) -> Tensor:
        """Pooled site outputs of context + answer, no edit active (section 3.2, A2).

        Args:
            contexts: Text before the answer (encoder text of an encoder-decoder); may be empty.
            answers: Answer texts, without EOS; may be empty where the context holds the text.

        Returns:
            ``(n_layers, B, width)`` float32 on the CPU, in the order given.
        """
        if pooling not in ("last", "mean_answer", "mean_all"):
            raise UserError(f"embed_pooling is '{pooling}'; use last, mean_answer or mean_all.")
        if len(contexts) != len(answers):
            raise UserError(f"{len(contexts)} contexts but {len(answers)} answers; give one each.")
        modules = self.sites(site)
        if not contexts:
            return torch.zeros(len(modules), 0, self.d)
        before = self.codec.prompts(contexts)
        after = self.codec.answers(answers)
        if pooling == "mean_answer" and not all(after):
            row = [bool(ids) for ids in after].index(False)
            raise UserError(
                f"Answer {row} is empty, so embed_pooling=mean_answer has nothing to read."
            )
        lengths = [len(ids) + len(answer) for ids, answer in zip(before, after, strict=True)]
        for row, length in enumerate(lengths):
            self.check_length(length, 0, f"Pair text {row}")
        pooled: Tensor | None = None
        with torch.inference_mode():
            for rows in plan_batches(lengths, token_budget=self.token_budget):
                batch = self.read_inputs(
                    [before[row] for row in rows], [after[row] for row in rows]
                )
                values = _read_batch(self, modules, batch, pooling).cpu()  # (n_layers, b, width)
                if pooled is None:
                    pooled = torch.empty(len(modules), len(lengths), values.shape[-1])
                pooled[:, rows] = values
        assert pooled is not None
        # Leave inference mode behind: callers fit probes on these with gradients.
        return pooled.clone()
