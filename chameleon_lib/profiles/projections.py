"""The matrix behind the MLP output: its name, its weight and its bias, per family.

An edit ``x + U Z x`` of the MLP output is an update of the projection that makes this output, so
an export needs that matrix as it is really used: transposed where a family stores it so (GPT-2),
dequantised where the base is quantised, one per expert in a mixture (section 3.9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.errors import UserError

_PROBE_ROWS = 256  # rows of the identity sent through a quantised projection at a time


@dataclass(frozen=True, slots=True)
class ProjectionPath:
    """Where a family keeps the projection that makes its MLP output.

    Attributes:
        path: Module path, or for a mixture the path of the stacked parameter ``(E, d, d_ff)``;
            ``{i}`` is the decoder layer.
        experts: Whether ``path`` is such a stacked parameter.
        gguf: The family's architecture in llama.cpp, or None where its name table lacks one.
    """

    path: str
    experts: bool = False
    gguf: str | None = None


_DOWN = "model.layers.{i}.mlp.down_proj"
_WO = "decoder.block.{i}.layer.2.DenseReluDense.wo"

PROJECTIONS: dict[str, ProjectionPath] = {
    "mistral": ProjectionPath(_DOWN, gguf="llama"),
    "llama": ProjectionPath(_DOWN, gguf="llama"),
    "qwen2": ProjectionPath(_DOWN, gguf="qwen2"),
    "qwen3": ProjectionPath(_DOWN, gguf="qwen3"),
    "gemma2": ProjectionPath(_DOWN, gguf="gemma2"),
    "gemma3_text": ProjectionPath(_DOWN, gguf="gemma3"),
    "gemma3": ProjectionPath("model.language_model.layers.{i}.mlp.down_proj", gguf="gemma3"),
    "phi3": ProjectionPath(_DOWN, gguf="phi3"),
    "mixtral": ProjectionPath("model.layers.{i}.mlp.experts.down_proj", experts=True, gguf="llama"),
    "gpt2": ProjectionPath("transformer.h.{i}.mlp.c_proj", gguf="gpt2"),
    "opt": ProjectionPath("model.decoder.layers.{i}.fc2"),
    "t5": ProjectionPath(_WO, gguf="t5"),
    "mt5": ProjectionPath(_WO, gguf="t5"),
    "umt5": ProjectionPath(_WO, gguf="t5"),
}


@dataclass(frozen=True, eq=False)
class Projection:
    """The projection of one decoder layer.

    Attributes:
        name: Full module name (of a mixture: full parameter name).
        weight: ``(d, d_ff)``, or ``(E, d, d_ff)`` for E experts; the values in use, in the dtype
            the model computes in.
        bias: ``(d,)`` or None.
        transposed: Whether the model stores the weight as ``(d_ff, d)``.
        quantised: Whether the stored weight is not this matrix but a code of it.
    """

    name: str
    weight: Tensor
    bias: Tensor | None = None
    transposed: bool = False
    quantised: bool = False


def projection_path(family: str) -> ProjectionPath:
    """The entry of a ``config.model_type``.

    Raises:
        UserError: If the family is not in the table.
    """
    if family not in PROJECTIONS:
        raise UserError(
            f"Model family '{family}' has no known MLP output projection (known: "
            f"{', '.join(sorted(PROJECTIONS))}); add it to PROJECTIONS in "
            "chameleon_lib/profiles/projections.py and a test beside it."
        )
    return PROJECTIONS[family]


def projection(backbone: HFBackbone, layer: int) -> Projection:
    """The projection of decoder layer ``layer``, with its weight as the model uses it.

    Raises:
        UserError: Unknown family, or a layer the model lacks.
    """
    entry = projection_path(backbone.model.config.model_type)
    if layer >= backbone.n_layers:
        raise UserError(
            f"The edit names layer {layer}, {backbone.name} has layers 0 to "
            f"{backbone.n_layers - 1}; use directions made for this model."
        )
    name = entry.path.format(i=layer)
    if entry.experts:
        return Projection(name, backbone.model.get_parameter(name).detach())
    module = backbone.model.get_submodule(name)
    transposed = isinstance(module, Conv1D)
    bias = getattr(module, "bias", None)
    if _is_plain(module):
        weight = module.weight.detach()
        weight = weight.T if transposed else weight
        return Projection(name, weight, None if bias is None else bias.detach(), transposed)
    weight, offset = _probed(module, backbone.model.dtype, backbone.device)
    return Projection(name, weight, None if bias is None else offset, transposed, quantised=True)


def _is_plain(module: Any) -> bool:
    """Whether ``module.weight`` is the matrix itself; quantisers subclass the module or tensor."""
    weight = module.weight
    return (
        type(module) in (nn.Linear, Conv1D)
        and type(weight) in (nn.Parameter, Tensor)
        and weight.is_floating_point()
    )


@torch.no_grad()
def _probed(module: Any, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weight ``(d, d_ff)`` and bias ``(d,)`` of a quantised projection.

    Every format has its own unpacking; the product with the identity is what all of them compute.
    """
    width = int(module.in_features)
    offset = module(torch.zeros(1, width, dtype=dtype, device=device))[0]
    columns = []
    for start in range(0, width, _PROBE_ROWS):
        stop = min(start + _PROBE_ROWS, width)
        unit = torch.zeros(stop - start, width, dtype=dtype, device=device)
        unit[torch.arange(stop - start), torch.arange(start, stop)] = 1
        columns.append(module(unit) - offset)
    return torch.cat(columns).T.contiguous(), offset
