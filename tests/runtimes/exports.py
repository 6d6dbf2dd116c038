"""The exports that other runtimes read, and what the hook makes of the same prompts.

Models: SmolLM2-135M-Instruct (as ``models get smollm2`` keeps it), two embedded models and every
tiny family of the tests.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from chameleon_lib.backbones import HFBackbone, load_backbone
from chameleon_lib.backbones.gguf_model import checkpoint_of
from chameleon_lib.backbones.load import check_loaded
from chameleon_lib.core.edit import Edit
from chameleon_lib.demo import checkpoint
from chameleon_lib.kit.wheels import WHEELS, NotFetched
from chameleon_lib.serving.agreement import view
from chameleon_lib.serving.export import export_edit
from tests.backbones.test_t5_head import saved
from tests.backbones.tiny import make_backbone
from tests.runtimes.environments import Missing

SMOL = "smollm2"
QUESTIONS = (
    "Write a short tweet about the weather today.",
    "Which film should I watch tonight?",
    "Is it better to read in the morning or at night?",
)
# Parameters that version 4 would not find under their new names.
ROPE = {"llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}}


def smol_gguf() -> Path:
    """SmolLM2's Q4_1 file."""
    try:
        return WHEELS[SMOL].file()
    except NotFetched as reason:
        raise Missing(str(reason)) from None


def smol_base() -> Path:
    """Its checkpoint, dequantised at the first call."""
    return checkpoint_of(smol_gguf(), check_loaded)


def backbone_of(model: str) -> HFBackbone:
    """A model by name: ``smollm2``, ``decoder-0``, ``encdec-0``, or a tiny family."""
    if model == SMOL:
        return load_backbone(smol_base(), dtype="float32")
    if "-" in model:
        return load_backbone(checkpoint(*model.split("-")), dtype="float32")
    return make_backbone(model, **ROPE.get(model, {}))


def edit_of(backbone: HFBackbone) -> Edit:
    """Random unit directions at about six layers, strong enough to change answers."""
    n = backbone.n_layers
    layers = (10, 14, 18, 22, 26, 29) if n == 30 else tuple(range(0, n, 2))
    theta = torch.randn(2, len(layers), backbone.d, generator=torch.Generator().manual_seed(1))
    theta = theta / theta.norm(dim=-1, keepdim=True)
    return Edit(layers, theta[0], theta[1], alpha_p=6.0 if n == 30 else 4.0, positions="all")


@cache
def exported(folder: Path, model: str, form: str, rank: int = 2) -> Path:
    """The export, with what hook and base make of each prompt beside it (``expected``).

    Made anew by each process, so that it is what the kit writes now. Logits are at the last prompt
    token and the new ones; a decoder's prompt holds its answer, an encoder-decoder's is the
    encoder's text.
    """
    done = folder / f"{model}-{form}-{rank}"
    shutil.rmtree(done, ignore_errors=True)
    backbone = saved_t5(folder) if model == "t5-own-head" else backbone_of(model)
    edit = edit_of(backbone)
    prompts = QUESTIONS if model == SMOL else tuple(f"{q}\nYour answer:" for q in QUESTIONS)
    made = export_edit(edit, backbone, done, form=form, rank=rank, prompts=prompts)
    assert made.agreement.effect > 0.1, f"the edit of {model} is no test"
    new = 24 if model == SMOL else 8
    ids = backbone.codec.prompts(list(prompts))
    hook = view(backbone, ids, edit, new_tokens=new)
    words = backbone.codec.tokenizer.convert_ids_to_tokens
    arrays = {f"hook{i}": logits.numpy() for i, logits in enumerate(hook.logits)}
    np.savez(done / "expected.npz", **arrays)
    note: dict[str, Any] = {
        "family": backbone.family,
        "effect": made.agreement.effect,
        "prompts": ids,
        "hook": hook.tokens,
        "words": [words(list(prompt)) for prompt in ids],
        "hook_words": [words(list(answer)) for answer in hook.tokens],
        "start": getattr(backbone, "start_id", None),
        "eos": list(backbone.codec.eos_ids),
    }
    (done / "expected.json").write_text(json.dumps(note))
    return done


def saved_t5(folder: Path) -> HFBackbone:
    """A T5 with a head of its own, as the hub has Flan-T5."""
    return load_backbone(saved(folder / "t5-source", own_head=True))


def float_gguf(folder: Path) -> Path:
    """SmolLM2's GGUF file with every tensor dequantised to float32: the same weights, unrounded."""
    path = folder / "smollm2-f32.gguf"
    if path.exists():
        return path
    reader = gguf.GGUFReader(smol_gguf())
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(data, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(path)
