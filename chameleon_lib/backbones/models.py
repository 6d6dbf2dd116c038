"""Loading a backbone: Hugging Face checkpoint, folder or hub id -> ``HFBackbone``."""

from __future__ import annotations

import hashlib
from importlib import util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from chameleon_lib.backbones import revisions
from chameleon_lib.backbones.backbone import HFBackbone
from chameleon_lib.backbones.families import DecoderBackbone, EncoderDecoderBackbone
from chameleon_lib.backbones.fingerprints import hash_folder, hash_state
from chameleon_lib.backbones.quantization import check_quantization, load_options, make_portable
from chameleon_lib.backbones.sites import site_paths
from chameleon_lib.backbones.soundness import check_loaded
from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_T5 = ("t5", "mt5", "umt5")

DeviceMap = str | dict[str, Any]


def load_backbone(
    path_or_id: str | Path,
    *,
    name: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    prompts_chat: str = "template",
    quantization: str = "none",
    device_map: DeviceMap | None = None,
    offload_folder: Path | None = None,
    revision: str | None = None,
    lock: Path | None = None,
) -> HFBackbone:
    """Loads a frozen backbone.

    Args:
        path_or_id: Folder of a checkpoint, or a model id of the hub.
        name: Name for tables; the last part of the path by default.
        dtype: ``auto`` (float32 on the CPU, whatever the file holds; bfloat16 elsewhere, A22),
            ``float32``, ``bfloat16`` or ``float16``.
        device: Torch device; with a device map only its kind counts, for ``dtype`` auto.
        prompts_chat: ``template`` | ``raw`` (B8).
        quantization: ``none`` | ``nf4``, 4-bit weights by bitsandbytes.
        device_map: ``auto`` or a map of modules to devices, for a model larger than one device;
            needs accelerate.
        offload_folder: Where weights that the map leaves on disk are kept.
        revision: Pins a commit, tag or branch of a hub model.
        lock: Lock file of the outputs (``revisions.json``), where the commit of a hub model is
            compared with earlier runs and written down; see ``revisions``.

    Raises:
        UserError: Unknown family or option, fp16 for T5 (R25), a missing package, a checkpoint
            that cannot be read, or a pinned revision that the earlier outputs do not have.
    """
    source = str(path_or_id)
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"model_dtype is '{dtype}'; use auto, {', '.join(DTYPES)}.")
    chosen = dtype
    if dtype == "auto":
        chosen = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    local = Path(source).is_dir()
    if local and revision is not None:
        raise UserError(
            f"'{source}' is a folder, which has no revisions; leave revision out, or give a hub id."
        )
    placed = _placement(device, device_map, quantization)
    if placed and offload_folder is not None:
        placed["offload_folder"] = str(offload_folder)
    found, folder = None, Path(source)
    model: Any
    try:
        if not local:
            found, folder = revisions.resolve(source, revision)
            if lock is not None:
                revisions.tell(lock, found)
        # One commit for all files, even if the branch moves meanwhile.
        commit = (found.commit if found else None) or revision or "main"
        config = AutoConfig.from_pretrained(source, revision=commit)
        _check_family(config.model_type, chosen)
        check_quantization(quantization, config.model_type, chosen)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(source, revision=commit)
        options = {"revision": commit, **placed, **load_options(quantization, DTYPES[chosen])}
        # Missing and misshapen tensors are refused below, where they can be named.
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = auto.from_pretrained(source, dtype=DTYPES[chosen], **options)
        model, info = loaded
    except UserError:
        raise
    except Exception as error:  # the libraries behind raise errors of many kinds, bare ones too
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        pinned = f" at revision '{revision}'" if revision else ""
        raise UserError(
            f"Backbone '{source}'{pinned} cannot be loaded ({reason}); give a folder with a "
            "complete checkpoint, or a hub id while online."
        ) from error
    check_loaded(source, model, tokenizer, info)
    if not placed:
        model = model.to(torch.device(device))
    make_portable(model)
    form = chosen if quantization == "none" else f"{chosen} {quantization}"
    digest = hash_folder(folder, form) if found is None else ""
    if found is not None:
        found = revisions.with_files(found, folder)
        digest = hashlib.sha256(f"{form} {found.files_sha256}".encode()).hexdigest()
        if lock is not None:
            revisions.record(lock, found)
    return backbone_from(
        model,
        tokenizer,
        name=name or Path(source).name,
        fingerprint=digest,
        prompts_chat=prompts_chat,
        dtype=chosen,
    )


def _placement(device: str, device_map: DeviceMap | None, quantization: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that place the weights; empty if ``to`` does."""
    if device_map is None:
        # 4-bit weights are packed on the device that runs them.
        return {} if quantization == "none" else {"device_map": {"": device}}
    if util.find_spec("accelerate") is None:
        raise UserError(
            "device_map needs the package accelerate, which spreads a model over devices; run "
            "'pip install accelerate' or leave device_map out."
        )
    return {"device_map": device_map}


def backbone_from(
    model: Any,
    tokenizer: Any,
    *,
    name: str,
    fingerprint: str | None = None,
    prompts_chat: str = "template",
    dtype: str | None = None,
) -> HFBackbone:
    """A backbone around a model that is already in memory (training loops, tests).

    The model is frozen: evaluation mode, no gradients of its weights. ``dtype`` is the precision
    it computes in, by default that of its first weight.
    """
    config = model.config
    found = dtype or str(next(model.parameters()).dtype).removeprefix("torch.")
    _check_family(config.model_type, found)
    model.eval().requires_grad_(False)
    stops = getattr(model.generation_config, "eos_token_id", None)
    stops = getattr(config.get_text_config(), "eos_token_id", None) if stops is None else stops
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
    if family in _T5 and dtype == "float16":
        raise UserError(
            "T5 overflows in float16 in its feed-forward output (R25); "
            "set model_dtype to bfloat16 or float32."
        )
