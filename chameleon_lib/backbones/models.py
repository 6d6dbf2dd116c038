"""Loading a backbone: Hugging Face checkpoint, folder or hub id -> ``HFBackbone``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from chameleon_lib.backbones.backbone import HFBackbone
from chameleon_lib.backbones.families import DecoderBackbone, EncoderDecoderBackbone
from chameleon_lib.backbones.sites import site_paths
from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CHUNK = 1 << 20


def load_backbone(
    path_or_id: str | Path,
    *,
    name: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    prompts_chat: str = "template",
) -> HFBackbone:
    """Loads a frozen backbone.

    Args:
        path_or_id: Folder of a checkpoint, or a model id of the hub.
        name: Name for tables; the last part of the path by default.
        dtype: ``auto`` (float32 on the CPU, whatever the file holds; bfloat16 elsewhere, A22),
            ``float32``, ``bfloat16`` or ``float16``.
        device: Torch device.
        prompts_chat: ``template`` | ``raw`` (B8).

    Raises:
        UserError: Unknown family or dtype, fp16 for T5 (R25), or a checkpoint that cannot be read.
    """
    source = str(path_or_id)
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"model_dtype is '{dtype}'; use auto, {', '.join(DTYPES)}.")
    chosen = dtype
    if dtype == "auto":
        chosen = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    model: Any
    try:
        config = AutoConfig.from_pretrained(source)
        _check_family(config.model_type, chosen)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = auto.from_pretrained(source, dtype=DTYPES[chosen])
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"Backbone '{source}' cannot be loaded ({reason}); give a folder with a complete "
            "checkpoint, or a hub id while online."
        ) from error
    return backbone_from(
        model.to(torch.device(device)),
        tokenizer,
        name=name or Path(source).name,
        fingerprint=_fingerprint(Path(source), model, tokenizer, chosen),
        prompts_chat=prompts_chat,
    )


def backbone_from(
    model: Any,
    tokenizer: Any,
    *,
    name: str,
    fingerprint: str | None = None,
    prompts_chat: str = "template",
) -> HFBackbone:
    """A backbone around a model that is already in memory (training loops, tests).

    The model is frozen: evaluation mode, no gradients of its weights.
    """
    config = model.config
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    _check_family(config.model_type, dtype)
    model.eval().requires_grad_(False)
    stops = getattr(model.generation_config, "eos_token_id", None)
    stops = config.eos_token_id if stops is None else stops
    if stops is None:
        stops = []
    codec = TextCodec(
        tokenizer,
        decoder_only=not config.is_encoder_decoder,
        eos_ids=[stops] if isinstance(stops, int) else list(stops),
        prompts_chat=prompts_chat,
    )
    family = EncoderDecoderBackbone if config.is_encoder_decoder else DecoderBackbone
    digest = fingerprint or hash_state(model, tokenizer)
    if codec.chat:
        digest = hashlib.sha256(f"{digest} chat".encode()).hexdigest()
    return family(model, codec, name=name, fingerprint=digest)


def _check_family(family: str, dtype: str) -> None:
    site_paths(family)
    if family == "t5" and dtype == "float16":
        raise UserError(
            "T5 overflows in float16 in its feed-forward output (R25); "
            "set model_dtype to bfloat16 or float32."
        )


def _fingerprint(folder: Path, model: Any, tokenizer: Any, dtype: str) -> str:
    """SHA-256 of the files of a local folder, or of the weights in memory for a hub id."""
    if not folder.is_dir():
        return hash_state(model, tokenizer)
    digest = hashlib.sha256(dtype.encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(_CHUNK):
                    digest.update(block)
    return digest.hexdigest()


def hash_state(model: Any, tokenizer: Any) -> str:
    """SHA-256 of configuration, vocabulary and every weight in memory."""
    config = model.config.to_dict()
    config.pop("_name_or_path", None)  # where it came from is not what it is
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
