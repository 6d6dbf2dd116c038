"""The edit as a GGUF LoRA for llama.cpp, as its public converter lays one out.

Tensors are float32 and named after the base tensor (``blk.N.ffn_down.weight.lora_a`` and
``.lora_b``); three keys say that the file is a LoRA and what its alpha is. llama.cpp's ``scale``
multiplies the update as a whole and is not a strength of the edit: leave it at 1. The file notes
a fingerprint of the matrices it was compiled from (``gguf_base`` compares it with a base file). On
a base in float the answers are the hook's; on a quantised one they can differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.families import model_family
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.serving.factors import LowRank, projection

FILE = "adapter.gguf"
WEIGHTS_KEY = "chameleon.base_weights"


def _names(backbone: HFBackbone) -> dict[str, str]:
    """GGUF tensor name of every decoder layer's projection, by module name."""
    import gguf

    entry = model_family(backbone.model.config.model_type)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == entry.gguf)
    table = gguf.get_tensor_name_map(arch, backbone.n_layers)
    names = {}
    for layer in range(backbone.n_layers):
        module = entry.projection.format(i=layer)
        # The converter drops the wrapper that multimodal checkpoints have around their text model.
        found = table.get_name(module.replace("model.language_model.", "model."))
        if found is None:
            raise UserError(
                f"gguf {entry.gguf} has no tensor for {module}; export the edit as peft or merged."
            )
        names[module] = f"{found}.weight"
    return names


def write_gguf(path: Path, updates: Sequence[LowRank], backbone: HFBackbone) -> None:
    """Writes the adapter; the edit must be one that ``forms.check_form`` lets through."""
    import gguf

    entry, names = model_family(backbone.model.config.model_type), _names(backbone)
    writer = gguf.GGUFWriter(path, str(entry.gguf))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp scales by alpha / r; r is the number of rows it finds.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(updates[0].rank))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    edited = {update.name for update in updates}
    found = (projection(backbone, at) for at, module in enumerate(names) if module in edited)
    writer.add_string(WEIGHTS_KEY, weights_digest({names[w.name]: w.weight for w in found}))
    for update in updates:
        name = names[update.name]
        for side, factor in (("a", update.a), ("b", update.b)):
            writer.add_tensor(f"{name}.lora_{side}", factor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Fingerprint of matrices ``(d, d_ff)`` by GGUF name, as float32."""
    return digest({name: weights[name].float().contiguous() for name in sorted(weights)})


def open_gguf(path: Path) -> Any:
    """A reader of a GGUF file.

    Raises:
        UserError: There is none, or it is something else.
    """
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} cannot be read as GGUF ({error}); give a whole file.") from error


def gguf_value(reader: Any, key: str) -> Any:
    """A value of the header, or None."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def read_gguf(path: Path, backbone: HFBackbone) -> list[tuple[str, Tensor, Tensor, float]]:
    """Module name, A ``(r, d_ff)``, B ``(d, r)`` and scale of every update in the file.

    Raises:
        UserError: A file that is no LoRA for this family, or one with half an update.
    """
    reader = open_gguf(path)
    entry = model_family(backbone.model.config.model_type)
    expected = {"general.architecture": entry.gguf, "general.type": "adapter"}
    for key, value in {**expected, "adapter.type": "lora"}.items():
        if gguf_value(reader, key) != value:
            raise UserError(f"{path}: {key} is not '{value}'; export the adapter again.")
    alpha = gguf_value(reader, "adapter.lora.alpha")
    if alpha is None:
        raise UserError(f"{path} has no adapter.lora.alpha; export the adapter again.")
    tensors = {tensor.name: torch.tensor(np.array(tensor.data)) for tensor in reader.tensors}
    updates = []
    for module, name in _names(backbone).items():
        a, b = tensors.pop(f"{name}.lora_a", None), tensors.pop(f"{name}.lora_b", None)
        if a is None and b is None:
            continue
        if a is None or b is None:
            raise UserError(f"{path} holds half of the update of {name}; export it again.")
        updates.append((module, a, b, float(alpha) / a.shape[0]))
    if tensors or not updates:
        raise UserError(f"{path} holds {sorted(tensors) or 'no tensors'}; export it again.")
    return updates


@contextmanager
def gguf_active(path: Path, backbone: HFBackbone) -> Iterator[None]:
    """The file's updates act on the backbone inside the block, as llama.cpp would add them."""
    handles = []

    def adding(a: Tensor, b: Tensor, scale: float) -> Any:
        def hook(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            change = (inputs[0].to(a.dtype) @ a.T) @ b.T
            return output + scale * change.to(output.dtype)

        return hook

    try:
        for name, a, b, scale in read_gguf(path, backbone):
            module = backbone.model.get_submodule(name)
            own = a.to(backbone.device), b.to(backbone.device)
            handles.append(module.register_forward_hook(adding(*own, scale)))
        yield
    finally:
        while handles:
            handles.pop().remove()
