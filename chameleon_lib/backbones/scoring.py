"""Teacher-forced log-probabilities of answers, from a stored prefix.

The input of the one scored call is the last prompt token and the answer; its targets are the answer
and EOS. With positions ``last`` all positions of this call are edited, exactly those a greedy run
would edit while it writes the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chameleon_lib.backbones.batching import pad
from chameleon_lib.backbones.prefix import Prefix
from chameleon_lib.core.edit import Edit
from chameleon_lib.errors import UserError

if TYPE_CHECKING:
    from chameleon_lib.backbones.backbone import HFBackbone
    from chameleon_lib.backbones.prepared import PreparedBatches


def score(
    backbone: HFBackbone,
    prepared: PreparedBatches,
    answers: Sequence[str],
    edit: Edit | None,
    reduce: str,
) -> Tensor:
    """``log p(answer + EOS | prompt)`` per row, ``(B,)`` float32 in the caller's order."""
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce is '{reduce}'; use sum or mean.")
    if len(answers) != len(prepared):
        raise UserError(f"{len(prepared)} prompts but {len(answers)} answers; give one per prompt.")
    prepared.check_edit(edit)
    tokens = backbone.codec.answers(answers)
    parts, order = [], []
    for batch in prepared.batches:
        own = None if edit is None else edit.rows(batch.rows)
        ids = [tokens[row] for row in batch.rows]
        for row, prompt, answer in zip(batch.rows, batch.prompts, ids, strict=True):
            backbone.check_length(len(prompt), len(answer) + 1, f"Prompt {row}")
        logp = _batch(backbone, backbone.prefix_of(batch, own), ids, own)  # (B,)
        if reduce == "mean":
            logp = logp / torch.tensor([len(answer) + 1 for answer in ids], device=logp.device)
        parts.append(logp)
        order.extend(batch.rows)
    if not parts:
        return torch.zeros(0)
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[inverse.to(backbone.device)]


def score_many(
    backbone: HFBackbone,
    prepared: PreparedBatches,
    answers: Sequence[Sequence[str]],
    edit: Edit | None,
    reduce: str,
) -> list[Tensor]:
    """``score`` of several answers per prompt.

    Column by column: the prefix of all prompts is used as it is, instead of being repeated in
    memory for every answer.
    """
    if len(answers) != len(prepared):
        raise UserError(f"{len(prepared)} prompts but {len(answers)} answer lists; give one each.")
    width = max((len(row) for row in answers), default=0)
    if width == 0:
        return [torch.zeros(0) for _ in answers]
    columns = [
        score(
            backbone,
            prepared,
            [row[at] if at < len(row) else "" for row in answers],
            edit,
            reduce,
        )
        for at in range(width)
    ]
    table = torch.stack(columns, dim=1)  # (B, width)
    return [scores[: len(row)] for scores, row in zip(table, answers, strict=True)]


def _batch(
    backbone: HFBackbone, prefix: Prefix, answers: list[list[int]], edit: Edit | None
) -> Tensor:
    """Summed log-probabilities ``(B,)`` of one batch."""
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
    logp = torch.cat(logits, dim=1).float().log_softmax(dim=-1)  # (B, q, V)
    picked = logp.gather(-1, targets[..., None])[..., 0]  # (B, q)
    return (picked * real).sum(dim=1)
