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
from chameleon_lib.backbones.batches import pad
from chameleon_lib.backbones.families import model_family
from chameleon_lib.errors import UserError
from chameleon_lib.serving.adapter import BASE, adapter_name, adapters, no_hook_stays
from chameleon_lib.serving.export import check_export


class MixedBatch:
    """Runs batches whose rows belong to different users; made by ``mixed_users``.

    ``model`` is the ``PeftModel`` around the base, ``users`` are in the order of their adapters.
    """

    def __init__(self, backbone: HFBackbone, model: Any, users: Sequence[str]) -> None:
        self.backbone, self.model = backbone, model
        self.names = {user: adapter_name(number) for number, user in enumerate(users)}

    def generate(
        self,
        prompts: Sequence[str],
        users: Sequence[str | None],
        *,
        max_new_tokens: int,
        num_beams: int = 1,
    ) -> list[str]:
        """Greedy or beam answers, in order; ``None`` is a row of the bare base."""
        ids, mask, names = self.batch(prompts, users)
        codec = self.backbone.codec
        own: dict[str, Any] = {}
        if self.backbone.family == "encoder-decoder":
            # The library's own cache counts encoder layers and fails where the decoder has more.
            own["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with self.backbone.lock, torch.no_grad(), no_hook_stays(self.backbone.model):
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

    def batch(
        self, prompts: Sequence[str], users: Sequence[str | None], *, side: str = "left"
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Token ids and mask, both ``(B, T)``, and what PEFT calls the adapter of every row.

        Raises:
            UserError: Not one user per prompt, or a user without an adapter.
        """
        if len(prompts) != len(users):
            raise UserError(f"{len(prompts)} prompts but {len(users)} users; give one each.")
        unknown = sorted({user for user in users if user is not None} - set(self.names))
        if unknown:
            raise UserError(
                f"No adapter is loaded for {', '.join(unknown)}; loaded are "
                f"{', '.join(self.names)}."
            )
        codec = self.backbone.codec
        rows = codec.prompts(list(prompts))
        ids, mask = pad(rows, value=codec.pad_id, side=side, device=self.backbone.device)
        return ids, mask, [BASE if user is None else self.names[user] for user in users]


@contextmanager
def mixed_users(backbone: HFBackbone, folders: Mapping[str, Path]) -> Iterator[MixedBatch]:
    """Loads one exported adapter per user; leaving the block gives the bare base back.

    Args:
        backbone: The base.
        folders: PEFT export by user.

    Raises:
        UserError: An export of other weights, a damaged one, or a mixture of experts, for which
            PEFT has no mixed batches.
    """
    if model_family(backbone.model.config.model_type).experts:
        raise UserError(
            f"PEFT has no mixed batches for the experts of {backbone.name}; run the users through "
            "one per-row edit (Edit.stack)."
        )
    if not folders:
        raise UserError("A mixed batch needs at least one user's adapter.")
    for folder in folders.values():
        check_export(folder, backbone)
    with adapters(backbone, list(folders.values())) as model:
        yield MixedBatch(backbone, model, list(folders))
