"""Many users in one batch: one adapter per row, over one base (PEFT's ``adapter_names``).

The twin of a per-row edit (``Edit.stack``): the same answers, from exported files. Users may edit
different layers, and a row without a user is the bare base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batching import pad
from chameleon_lib.errors import UserError
from chameleon_lib.profiles.export import check_weights
from chameleon_lib.profiles.peft_adapter import adapters
from chameleon_lib.profiles.projections import projection_path

BASE = "__base__"  # PEFT's name for a row without adapter


class MixedBatch:
    """Runs batches whose rows belong to different users; made by ``mixed_users``."""

    def __init__(self, backbone: HFBackbone, model: Any, users: Sequence[str]) -> None:
        self.backbone, self.model, self.users = backbone, model, tuple(users)

    def generate(
        self,
        prompts: Sequence[str],
        users: Sequence[str | None],
        *,
        max_new_tokens: int,
        num_beams: int = 1,
    ) -> list[str]:
        """Greedy or beam answers, in order; ``None`` is a row of the bare base."""
        ids, mask, names = self._batch(prompts, users, side="left")
        codec = self.backbone.codec
        own: dict[str, Any] = {}
        if self.backbone.family == "encoder-decoder":
            # The library's own cache counts encoder layers and fails where the decoder has more.
            own["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with torch.no_grad():
            tokens = self.model.generate(
                **own,
                input_ids=ids,
                attention_mask=mask,
                adapter_names=names,
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                do_sample=False,
                eos_token_id=list(codec.eos_ids),
                pad_token_id=codec.pad_id,
            )
        start = ids.shape[1] if self.backbone.family == "decoder" else 1
        return codec.decode(tokens[:, start:])

    def logits(
        self, prompts: Sequence[str], users: Sequence[str | None], *, side: str = "left"
    ) -> Tensor:
        """Logits ``(B, V)`` at each prompt's last token (of an encoder-decoder: at its start)."""
        ids, mask, names = self._batch(prompts, users, side=side)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.backbone.family == "decoder":
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
            last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        else:
            start = self.backbone.model.config.decoder_start_token_id
            inputs["decoder_input_ids"] = torch.full((len(ids), 1), start, device=ids.device)
            last = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        with torch.no_grad():
            out = self.model(**inputs, adapter_names=names)
        logits: Tensor = out.logits[torch.arange(len(ids), device=ids.device), last]
        return logits

    def _batch(
        self, prompts: Sequence[str], users: Sequence[str | None], *, side: str
    ) -> tuple[Tensor, Tensor, list[str]]:
        if len(prompts) != len(users):
            raise UserError(f"{len(prompts)} prompts but {len(users)} users; give one each.")
        unknown = sorted({user for user in users if user is not None} - set(self.users))
        if unknown:
            raise UserError(
                f"No adapter is loaded for {', '.join(unknown)}; loaded are "
                f"{', '.join(self.users)}."
            )
        ids, mask = pad(
            self.backbone.codec.prompts(list(prompts)),
            value=self.backbone.codec.pad_id,
            side=side,
            device=self.backbone.device,
        )
        return ids, mask, [BASE if user is None else user for user in users]


@contextmanager
def mixed_users(backbone: HFBackbone, folders: Mapping[str, Path]) -> Iterator[MixedBatch]:
    """Loads one exported adapter per user; leaving the block gives the bare base back.

    Args:
        backbone: The base.
        folders: PEFT export by user.

    Raises:
        UserError: An export of other weights, a user name PEFT keeps for itself, or a mixture of
            experts, for which PEFT has no mixed batches.
    """
    if projection_path(backbone.model.config.model_type).experts:
        raise UserError(
            f"PEFT has no mixed batches for the experts of {backbone.name}; run the users through "
            "one per-row edit (Edit.stack)."
        )
    for user, folder in folders.items():
        if user == BASE or "." in user or not user:
            raise UserError(f"'{user}' cannot name an adapter; use another name for this user.")
        check_weights(folder, backbone)
    if not folders:
        raise UserError("A mixed batch needs at least one user's adapter.")
    with adapters(backbone, folders) as model:
        yield MixedBatch(backbone, model, list(folders))
