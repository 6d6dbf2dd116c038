"""How much an edit changes what it touches: edit ratios (method reference, section 12).

An edit that hardly changes an activation cannot help, and one that replaces it cannot be a nudge:
without its size, neither a null result nor a gain says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreparedUser, max_new_tokens
from chameleon_lib.errors import UserError
from chameleon_lib.studies.answering import decode_settings, edit_key, prompt_texts
from chameleon_lib.studies.study import Study

ASKED = 8  # users: the ratio hardly differs between them
PARTS = ("edit", "boost", "removal")

Log = dict[str, Any]


def edit_size(study: Study, users: Sequence[PreparedUser], edit: Edit) -> Log:
    """``||x̂ - x|| / ||x||`` at every edited layer, while the first queries are answered.

    Queries are asked one by one, for padding would count as edited tokens.

    Args:
        study: Backbone, task, settings and store.
        users: The first :data:`ASKED` of them are asked in the Instruct prompt.
        edit: An edit that all users share.

    Returns:
        ``users``, one entry per query; ``layers``; and for the whole change (``edit``) and its two
        parts (``boost``, ``removal``) the mean over edited tokens, per query and layer.

    Raises:
        UserError: A backbone without diagnostics, or an edit that changes nothing at any layer.
    """
    some = users[:ASKED]
    texts = prompt_texts(study.task, some, "instruct", study.settings)
    limit = max_new_tokens(study.task, study.settings)

    def compute() -> dict[str, Any]:
        found = [_ratios(study, text, limit, edit) for text in texts]
        return {name: [row[name] for row in found] for name in PARTS}

    record = study.store.get_or_compute(
        "edit_size",
        {
            **study.inputs("decode_", "model_"),
            "max_new_tokens": limit,
            "prompts": texts,
            "edit": edit_key(edit),
        },
        compute,
        modules=("chameleon_lib.core.edit", "chameleon_lib.backbones"),
        about=[user.user.id for user in some],
    )
    owners = [user.user.id for user in some for _ in user.user.queries]
    return {"users": owners, "layers": list(edit.layers), **record}


def _ratios(study: Study, text: str, limit: int, edit: Edit) -> dict[str, list[float]]:
    """Part → mean ratio per edited layer of one answered prompt."""
    backbone = study.backbone
    if not isinstance(backbone, HFBackbone):
        raise UserError(f"{study.backbone_id} does not tell how much an edit changes.")
    backbone.diagnostics = True
    try:
        with torch.no_grad():
            backbone.generate(
                [text], max_new_tokens=limit, edit=edit, decode=decode_settings(study.settings)
            )
        ratios = backbone.usage.mean_ratios()
    finally:
        backbone.diagnostics = False
    return {name: [ratios[layer][name] for layer in edit.layers] for name in PARTS}
