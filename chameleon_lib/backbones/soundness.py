"""Whether a checkpoint that could be loaded is whole: nothing missing, nothing that is no number.

The library fills missing tensors with random values and says so in a log line; NaN goes through
every layer in silence; a token beyond the embedding table is an index error hours later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from chameleon_lib.errors import UserError

_SHOWN = 3


def check_loaded(source: str, model: Any, tokenizer: Any, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is not whole.

    Args:
        source: Folder or hub id.
        model: The loaded model.
        tokenizer: The loaded tokenizer.
        info: What ``from_pretrained(output_loading_info=True)`` returned beside the model.

    Raises:
        UserError: Missing or misshapen tensors, weights that are not finite, or a vocabulary that
            is larger than the embedding table.
    """
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise UserError(
            f"Backbone '{source}' lacks {len(missing)} of its tensors ({_some(missing)}); take the "
            "whole checkpoint again."
        )
    # (name, shape in the file, shape of the model) each
    shapes = sorted(str(entry[0]) for entry in info.get("mismatched_keys") or ())
    if shapes:
        raise UserError(
            f"Backbone '{source}' holds tensors of another shape than its config.json says "
            f"({_some(shapes)}); take weights and configuration from one checkpoint."
        )
    for name, weight in model.named_parameters():
        # Packed 4-bit weights are whole numbers, and what a device map left on disk is not here.
        if weight.is_floating_point() and weight.device.type != "meta" and not _finite(weight):
            raise UserError(
                f"Backbone '{source}' has values in {name} that are no finite numbers; take the "
                "checkpoint again, or load it with another model_dtype."
            )
    rows, words = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if words > rows:
        raise UserError(
            f"The tokenizer of backbone '{source}' knows {words} tokens, its model {rows}; take "
            "both from one checkpoint."
        )


def _finite(weight: torch.Tensor) -> bool:
    return bool(torch.isfinite(weight).all())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
