"""Where a preference is written: the weight that makes an MLP's output, by the family table.

A decoder's own down projection, whatever the editor. In an encoder-decoder the subject of a
question is read by the encoder, so ROME writes there, and the tuned editors in the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.families import model_family
from chameleon_lib.errors import UserError

Kind = Literal["rome", "tuned"]

# Family → the attention projections that LoRA adapts (queries and values, or all in one).
ATTENTION = {
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "t5": ("q", "v"),
    "mt5": ("q", "v"),
    "umt5": ("q", "v"),
}
_ENCODER = "encoder.block.{i}.layer.1.DenseReluDense.wo"  # of the families of T5
# The paper's layers, and one found by a scan of ours on users of no default table: (family, layers,
# width) → of ROME, of fine-tuning.
NAMED_LAYERS = {
    ("llama", 32, 4096): (5, 21),  # Llama-3-8B-Instruct
    ("mistral", 32, 4096): (5, 21),  # Mistral-7B-Instruct-v0.3
    ("qwen3", 36, 4096): (5, 35),  # Qwen3-8B
    ("qwen2", 28, 3584): (5, 26),  # DeepSeek-R1-Distill-Qwen-7B
    ("llama", 30, 576): (16, 20),  # SmolLM2-135M: of ROME 9, 13 and 16 were tried
}
_DEPTH = {"rome": 5 / 32, "tuned": 21 / 32}  # of other models: as deep as in Llama-3-8B


@dataclass(frozen=True, eq=False)
class Site:
    """One weight that is edited.

    Attributes:
        name: Full name of the weight.
        layer: Of the stack it stands in.
        module: Its linear layer; input ``(B, T, d_ff)``, output ``(B, T, d)``.
        transposed: Whether the weight is kept as ``(d_ff, d)`` instead of ``(d, d_ff)``.
    """

    name: str
    layer: int
    module: Any
    transposed: bool

    @property
    def module_name(self) -> str:
        """Full name of :attr:`module`."""
        return self.name.removesuffix(".weight")

    @property
    def weight(self) -> Tensor:
        """The model's own storage, ``(d, d_ff)``."""
        weight: Tensor = self.module.weight
        return weight.T if self.transposed else weight


def check_family(backbone: HFBackbone) -> str:
    """The family of a model that can be edited.

    Raises:
        UserError: A family without editors.
    """
    family = str(backbone.model.config.model_type)
    if family not in ATTENTION:
        raise UserError(
            f"There is no weight editor for models of the family '{family}'; give one of "
            f"{', '.join(sorted(ATTENTION))}."
        )
    return family


def depth_of(backbone: HFBackbone, kind: Kind) -> int:
    """How many layers the stack has in which an editor of this kind writes."""
    if backbone.family == "encoder-decoder" and kind == "rome":
        return int(backbone.model.config.num_layers)
    return backbone.n_layers


def default_layer(backbone: HFBackbone, kind: Kind) -> int:
    """The layer of :data:`NAMED_LAYERS` where the model is in it, else the same relative depth."""
    family, layers = check_family(backbone), depth_of(backbone, kind)
    named = NAMED_LAYERS.get((family, backbone.n_layers, backbone.d))
    if named is not None:
        return named[0 if kind == "rome" else 1]
    return min(layers - 1, round(_DEPTH[kind] * layers))


def site_of(backbone: HFBackbone, kind: Kind, layer: int | None = None) -> Site:
    """The weight that an editor changes.

    Args:
        kind: ``rome`` | ``tuned``.
        layer: :func:`default_layer` if None.

    Raises:
        UserError: Another family, a layer or a module that the model lacks, packed weights.
    """
    family, layers = check_family(backbone), depth_of(backbone, kind)
    layer = default_layer(backbone, kind) if layer is None else layer
    if not 0 <= layer < layers:
        raise UserError(
            f"The edit names layer {layer}, {backbone.name} has layers 0 to {layers - 1} there."
        )
    encoder = backbone.family == "encoder-decoder" and kind == "rome"
    path = (_ENCODER if encoder else model_family(family).projection).format(i=layer)
    try:
        module = backbone.model.get_submodule(path)
    except AttributeError as error:
        raise UserError(
            f"{backbone.name} has no module '{path}', which the editor writes to; it is no usual "
            f"model of the family '{family}'."
        ) from error
    if type(module) not in (nn.Linear, Conv1D) or not module.weight.is_floating_point():
        raise UserError(
            f"The weight of '{path}' in {backbone.name} is packed or replaced; load the model "
            "without quantisation and without adapters to edit its weights."
        )
    return Site(f"{path}.weight", layer, module, isinstance(module, Conv1D))
