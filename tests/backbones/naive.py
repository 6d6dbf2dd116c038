"""The same quantities without batches, caches or prefixes: one row, one full forward per step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit, apply_edit


class NaiveEdit:
    """Edits chosen positions of the full sequence: from ``start`` on (0 = all)."""

    def __init__(self, backbone: HFBackbone, edit: Edit, start: int) -> None:
        self.handles = []
        modules = backbone.sites(edit.site)
        for at, layer in enumerate(edit.layers):
            hook = self._make(edit, at, start)
            self.handles.append(modules[layer].register_forward_hook(hook))

    @staticmethod
    def _make(edit: Edit, at: int, start: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            flat = output.dim() == 2
            wide = output[None] if flat else output
            changed = apply_edit(
                wide[:, start:],
                edit.theta_p[at],
                edit.theta_n[at],
                alpha_p=edit.alpha_p,
                alpha_n=edit.alpha_n,
                order=edit.order,
            )
            result = torch.cat([wide[:, :start], changed], dim=1)
            return result[0] if flat else result

        return hook

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def logits_of(
    backbone: HFBackbone, prompt: str, tokens: list[int], edit: Edit | None = None
) -> Tensor:
    """Logits that predict token 1 .. n+1 of an answer, from one uncached forward ``(n+1, V)``."""
    ids = backbone.codec.prompts([prompt])[0]
    if backbone.family == "decoder":
        first = len(ids) - 1
        inputs = {"input_ids": torch.tensor([ids + tokens])}
    else:
        first = 0
        inputs = {
            "input_ids": torch.tensor([ids]),
            "decoder_input_ids": torch.tensor([[0, *tokens]]),
        }
    start = {"all": 0, "last": first, "generated": first + 1}
    with torch.no_grad():
        if edit is None:
            return backbone.model(**inputs, use_cache=False).logits[0, first:]
        with NaiveEdit(backbone, edit, start[edit.positions]):
            return backbone.model(**inputs, use_cache=False).logits[0, first:]


def greedy(backbone: HFBackbone, prompt: str, n: int, edit: Edit | None = None) -> str:
    """Greedy answer by a full forward per token."""
    tokens: list[int] = []
    while len(tokens) < n:
        token = int(logits_of(backbone, prompt, tokens, edit)[-1].argmax())
        if token == backbone.codec.eos_id:
            break
        tokens.append(token)
    row = torch.tensor([tokens], dtype=torch.long).view(1, -1)
    return backbone.codec.decode(row)[0]


def score(backbone: HFBackbone, prompt: str, answer: str, edit: Edit | None = None) -> Tensor:
    """Sum of log-probabilities of the answer and EOS."""
    tokens = backbone.codec.answers([answer])[0]
    logp = logits_of(backbone, prompt, tokens, edit).log_softmax(dim=-1)
    targets = torch.tensor([*tokens, backbone.codec.eos_id])
    return logp[torch.arange(len(targets)), targets].sum()
