"""A frozen language model that reads soft prompts: embeddings, loss, and decoding.

The model is never changed: placeholders and markers have rows of their own beside its embedding,
frozen like it. What is trained is the module that makes the soft prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.difference.layout import Layout
from chameleon_lib.difference.reviews import Corpus, Sample
from chameleon_lib.difference.vectors import Vectors
from chameleon_lib.errors import UserError

MARKERS = 4
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Example:
    """One sample, ready for the model.

    Attributes:
        ids: Tokens of the prompt.
        answer: Tokens of the review, with EOS.
        x: Vectors, history then differences, ``(2 slots, d)``; zeros where there is none.
        mask: ``(2 slots,)`` bool, true where a placeholder stands in the prompt.
    """

    ids: list[int]
    answer: list[int]
    x: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples side by side, padded on the left.

    Attributes:
        ids: ``(B, L)``.
        attention: ``(B, L)`` long.
        labels: ``(B, L)``, :data:`IGNORED` in prompts and padding.
        x: ``(B, 2 slots, d)``.
        mask: ``(B, 2 slots)`` bool.
    """

    ids: Tensor
    attention: Tensor
    labels: Tensor
    x: Tensor
    mask: Tensor


def make_example(
    backbone: HFBackbone,
    layout: Layout,
    corpus: Corpus,
    sample: Sample,
    vectors: Vectors,
    *,
    told: str = "",
) -> Example:
    """A sample with its vectors in its prompt; without kinds or eligible reviews it has none.

    Args:
        backbone: Gives the tokens of the review.
        layout: Of the prompt.
        corpus: Where the items are.
        sample: The review and its profile.
        vectors: Of the sample.
        told: What is known of the user in words.
    """
    slots = layout.slots
    blocks = vectors.blocks if layout.kinds else ()
    prompt = layout.prompt(corpus, sample.review, blocks, told=told)
    mask = torch.zeros(2 * slots, dtype=torch.bool)
    mask[list(prompt.rows)] = True
    found = (vectors.history, vectors.difference)
    if layout.released.unguarded and layout.kinds:  # no padding
        x = torch.from_numpy(np.concatenate(found)).float()
    else:
        x = torch.zeros(2 * slots, vectors.history.shape[1])
        for which, rows in enumerate(found):
            x[which * slots : which * slots + len(rows)] = torch.from_numpy(rows[:slots]).float()
        x *= mask[:, None]
    answer = [*backbone.codec.answers([sample.review.text])[0], backbone.codec.eos_id]
    return Example(prompt.ids, answer, x, mask)


def collate(examples: Sequence[Example], *, with_answers: bool = True, pad: int = 0) -> Batch:
    """Pads on the left; without answers the batch is for decoding."""
    rows = [e.ids + (e.answer if with_answers else []) for e in examples]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for at, (row, example) in enumerate(zip(rows, examples, strict=True)):
        ids[at, width - len(row) :] = torch.tensor(row)
        attention[at, width - len(row) :] = 1
        if with_answers:
            labels[at, width - len(example.answer) :] = torch.tensor(example.answer)
    x, mask = (torch.stack([getattr(e, name) for e in examples]) for name in ("x", "mask"))
    return Batch(ids, attention, labels, x, mask)


class SoftPrompted(nn.Module):
    """A frozen decoder under soft prompts.

    Args:
        backbone: A decoder with weights in memory; it stays as it is.
        soft: Makes soft prompts ``(B, 2 slots, hidden)`` and its own loss from vectors and mask.
        slots: Placeholders of each kind.
        weight: Of the module's own loss.
        seed: Of the untrained marker rows.

    Raises:
        UserError: An encoder-decoder.
    """

    def __init__(
        self, backbone: HFBackbone, soft: nn.Module, *, slots: int, weight: float, seed: int = 0
    ) -> None:
        super().__init__()
        if backbone.family != "decoder":
            raise UserError(f"{backbone.name} is no decoder; soft prompts need one.")
        self.backbone, self.slots, self.weight = backbone, slots, weight
        table = backbone.model.get_input_embeddings().weight
        drawn = torch.randn(
            2 * slots + MARKERS, table.shape[1], generator=torch.Generator().manual_seed(seed)
        )
        # As transformers makes rows of added tokens: the mean of all, hardly told apart. Frozen.
        mean, spread = table.float().mean(dim=0), table.float().std(dim=0)
        rows = mean + 3e-5 * spread * drawn.to(table.device)
        self.rows = nn.Parameter(rows.to(table.dtype), requires_grad=False)
        self.soft = soft.to(table.device)

    @property
    def vocabulary(self) -> int:
        """Rows of the model's own embedding; the first new id."""
        return int(self.backbone.model.get_input_embeddings().weight.shape[0])

    def embeds(self, ids: Tensor, soft: Tensor, mask: Tensor) -> Tensor:
        """Input embeddings with every placeholder overwritten.

        Args:
            ids: ``(B, L)``.
            soft: ``(B, 2 slots, hidden)``.
            mask: ``(B, 2 slots)`` bool, true where a placeholder must stand.

        Raises:
            ValueError: A placeholder is missing, stands twice, or has no soft prompt.
        """
        first = self.vocabulary
        wanted = first + torch.arange(2 * self.slots, device=ids.device)
        hit = ids[..., None] == wanted  # (B, L, 2 slots)
        if not torch.equal(hit.sum(dim=1), mask.long()) or soft.shape[1] != 2 * self.slots:
            raise ValueError("every placeholder must stand once, and have one soft prompt")
        own = self.backbone.model.get_input_embeddings()(ids.clamp(max=first - 1))
        new = self.rows[(ids - first).clamp(min=0)]
        given = torch.where((ids >= first)[..., None], new, own)
        return torch.where(
            hit.any(dim=-1)[..., None], hit.to(own.dtype) @ soft.to(own.dtype), given
        )

    def read(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """What the model is called with, and the loss of the soft prompts' module."""
        device = self.rows.device
        ids, attention = batch.ids.to(device), batch.attention.to(device)
        soft, own = self.soft(batch.x.to(device), batch.mask.to(device))
        inputs = {
            "inputs_embeds": self.embeds(ids, soft, batch.mask.to(device)),
            "attention_mask": attention,
        }
        return inputs, own

    def nll(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """−log p of the answers per token, nats ``(B,)``, and the module's own loss."""
        inputs, own = self.read(batch)
        attention = inputs["attention_mask"]
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        labels = batch.labels.to(attention.device)
        keep = int((labels != IGNORED).sum(dim=1).max()) + 1
        out = self.backbone.model(
            **inputs, position_ids=positions, use_cache=False, logits_to_keep=keep
        )
        logits, targets = out.logits[:, -keep:-1].float(), labels[:, 1 - keep :]
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
        return losses.sum(dim=1) / (targets != IGNORED).sum(dim=1), own

    def forward(self, batch: Batch) -> Tensor:
        """``L_LM + weight * (loss of the soft prompts' module)``, a scalar."""
        nll, own = self.nll(batch)
        return nll.mean() + self.weight * own

    @torch.no_grad()
    def write(
        self,
        batch: Batch,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> list[str]:
        """Answers to a batch without answers; greedy at temperature 0."""
        inputs, _ = self.read(batch)
        codec = self.backbone.codec
        how: dict[str, Any] = {"do_sample": False}
        if temperature:
            torch.manual_seed(seed)
            how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        new: Tensor = self.backbone.model.generate(
            **inputs, **how, max_new_tokens=max_new_tokens, eos_token_id=list(codec.eos_ids),
            pad_token_id=codec.pad_id,
        )  # fmt: skip
        return codec.decode(new)

