"""Small helpers of the export tests: backbones, edits and adapters of every family, made once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.serving.adapter import write_adapter
from chameleon_lib.serving.agreement import PROBES, View, view
from chameleon_lib.serving.factors import compile_edit
from tests.backbones.tiny import CONFIGS, make_backbone, make_edit

FAMILIES = tuple(CONFIGS)
EXPERTS = tuple(name for name in FAMILIES if name == "mixtral")
DENSE = tuple(name for name in FAMILIES if name not in EXPERTS)
T5 = tuple(name for name in FAMILIES if name.endswith("t5"))
BIASED = ("gpt2", "opt")
WITH_GGUF = tuple(name for name in DENSE if name not in BIASED)
PROMPTS = PROBES[:2]


@cache
def backbone_of(family: str) -> HFBackbone:
    """One backbone per family for all tests: an export leaves it bit for bit unchanged."""
    return make_backbone(family)


def double_backbone(family: str) -> HFBackbone:
    """A backbone that computes in float64."""
    backbone = make_backbone(family)
    backbone.model.double()
    backbone.stored_dtype = torch.float64  # as if its files were
    return backbone


def edit_of(seed: int = 1, layers: tuple[int, ...] = (0, 2), **changes: Any) -> Edit:
    """A strong random edit of all positions; another user for every seed."""
    return replace(make_edit("all", seed=seed), layers=layers, **changes)


def ids_of(backbone: HFBackbone) -> list[list[int]]:
    return backbone.codec.prompts(list(PROMPTS))


def hook_view(backbone: HFBackbone, edit: Edit, n: int = 4) -> View:
    return view(backbone, ids_of(backbone), edit, new_tokens=n)


def form_view(backbone: HFBackbone, hook: View) -> View:
    """The model as it stands, under the tokens of the hook."""
    return view(backbone, ids_of(backbone), None, forced=hook.tokens)


def write_plain(folder: Path, edit: Edit, backbone: HFBackbone) -> Path:
    """An adapter straight from its two files, without the comparison (to be spoiled)."""
    write_adapter(folder, compile_edit(edit, backbone).updates, backbone, base_model="tiny")
    return folder


class Int4Linear(nn.Linear):
    """A linear layer that keeps 4-bit codes and a scale per row, as quantised bases do."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        weight = plain.weight.detach()
        self.scale = weight.abs().amax(dim=1, keepdim=True) / 7
        codes = (weight / self.scale).round().clamp(-8, 7).to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = plain.bias

    def dequantised(self) -> Tensor:
        return self.weight.float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantised(), self.bias)


def quantise(backbone: HFBackbone, layers: tuple[int, ...] = (0, 1, 2)) -> None:
    """Replaces a Llama-like model's down projections by 4-bit ones."""
    for layer in layers:
        mlp = backbone.model.model.layers[layer].mlp
        mlp.down_proj = Int4Linear(mlp.down_proj)
