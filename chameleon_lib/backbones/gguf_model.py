"""A GGUF file as a checkpoint: dequantised once, kept, and loaded like any other folder.

llama.cpp's format holds model, tokenizer and chat template in one file, mostly with weights of
about 4 bits. ``transformers`` reads the weights back as plain floats, which are this model: nothing
is rounded again. It is slow at that (half a minute for 135 million weights, most of it for the
vocabulary) and refuses to save what it has read, so configuration and weights move into a fresh
model of the same class, which is saved as safetensors under the kit's cache and opens in a second.
The folder is named by the file's SHA-256: the same file elsewhere is the same checkpoint, and
another file under the same name is another.

llama.cpp also rounds activations of quantised layers, so its numbers differ from those of the same
weights in floats: by 0.65 logits on average for SmolLM2-135M in Q4_1, and not at all (4e-5) for a
float file.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers import modeling_gguf_pytorch_utils as library
from transformers.integrations.gguf import read_gguf_metadata
from transformers.utils import logging as transformers_logging

from chameleon_lib.backbones.families import model_family
from chameleon_lib.backbones.older_versions import tell_older_versions
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.hashing import file_digest
from chameleon_lib.kit.progress import Progress, tell

_FORM = 2  # counts what is written of a file: a folder of an older kit is made again

Check = Callable[[str, Any, Any, Mapping[str, Any]], None]


def checkpoint_of(file: Path, check: Check) -> Path:
    """The folder of a GGUF file's checkpoint, in float32; made at the first call for its content.

    Args:
        file: A GGUF model in one file.
        check: Refuses a model that is not whole, given the file's name, the model, its tokenizer
            and what the library says of its loading.

    Raises:
        UserError: No such file, no GGUF, an adapter, an architecture that cannot be read, no room.
    """
    if not file.is_file():
        raise UserError(f"There is no file {file}; give a GGUF model, a folder or a hub id.")
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise UserError(f"{file} is no GGUF file (it begins with {magic!r}); download it again.")
    folder = paths.cache_dir() / "models" / f"{file_digest(file)[:32]}-{_FORM}"
    if not folder.is_dir():  # it gets its name when it is complete
        tell(f"Dequantising {file.name} into {paths.display(folder)}, once: half a minute or more.")
        _dequantise(file, folder, check)
    return folder


def _dequantise(file: Path, folder: Path, check: Check) -> None:
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.absolute().parent), "gguf_file": file.name,
    }  # fmt: skip
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        header, tensors = read_gguf_metadata(str(file))
        _refuse(file, header)
        with (
            Progress(f"dequantising {file.name}, tensors", len(tensors)) as progress,
            # The library reads the header again and again, at seconds each.
            mock.patch.object(gguf, "GGUFReader", lru_cache(maxsize=1)(gguf.GGUFReader)),
            mock.patch.object(library, "tqdm", lambda found, **_bar: _shown(found, progress)),
        ):
            config = AutoConfig.from_pretrained(**source)
            model_family(config.model_type)
            tokenizer = _own_tokens(
                AutoTokenizer.from_pretrained(**source), header["tokenizer.ggml.tokens"]
            )
            auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, info = auto.from_pretrained(**source, **options, dtype=torch.float32)
        check(str(file), model, tokenizer, info)
        _save(model, tokenizer, folder)
    except UserError:
        raise
    except Exception as error:  # the libraries behind raise errors of many kinds
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(
            f"{file} cannot be read ({reason}); download it again, or give the folder of its "
            "checkpoint."
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _shown(tensors: Sequence[Any], progress: Progress) -> Iterator[Any]:
    for tensor in tensors:
        yield tensor
        progress.advance()


def _refuse(file: Path, header: Mapping[str, Any]) -> None:
    """Refuse from the header what cannot become a checkpoint."""
    kind = header.get("general.type", "model")
    if kind != "model":
        raise UserError(f"{file} holds no model but '{kind}'; give the file of a base model.")
    architecture = header["general.architecture"]
    if architecture not in library.GGUF_SUPPORTED_ARCHITECTURES:
        readable = sorted({*library.GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"})
        raise UserError(
            f"{file} holds a model of architecture '{architecture}', and transformers reads only "
            f"{', '.join(readable)} from GGUF; give the folder of its checkpoint instead."
        )


def _own_tokens(tokenizer: Any, count: int) -> Any:
    """The tokenizer without words that the file does not list.

    The library adds GPT-2's end-of-text token to every byte-level vocabulary that lacks it, such as
    Llama 3's, beyond the last row of the embedding table.
    """
    if len(tokenizer) <= count:
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [word for word in state["added_tokens"] if word["id"] < count]
    special = ("bos_token", "eos_token", "pad_token", "unk_token")
    options = {name: getattr(tokenizer, name) for name in special}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        **options,
    )


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint folder, all or nothing; what another process wrote first stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    need = sum(weight.nbytes for weight in model.parameters())
    free = shutil.disk_usage(folder.parent).free
    if need > free:
        raise UserError(
            f"The weights take {need / 1e9:.1f} GB in float32, and {folder.parent} has "
            f"{free / 1e9:.1f} GB free: make room, or set CHAMELEON_CACHE to a larger disk."
        )
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):  # no second copy of the weights
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="partial-") as partial:
        whole = Path(partial) / "whole"
        fresh.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        tell_older_versions(whole, torch.float32)  # who loads an adapter beside it, say
        try:
            os.rename(whole, folder)
        except OSError:
            if not folder.is_dir():
                raise
