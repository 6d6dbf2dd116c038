"""What version 4 of transformers asks for in a checkpoint folder that version 5 wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from chameleon_lib.kit.paths import replace_text


def tell_older_versions(folder: Path, dtype: torch.dtype) -> None:
    """Adds what transformers 4 asks for and transformers 5 no longer writes (5.23 to 4.57).

    Version 4 skips words it does not know and takes its defaults, so without this the model would
    be another one, and nobody would be told: rotary embeddings of another base, or the embedding
    table in place of a T5's own head (which version 5 calls tied beside both of them). Version 5
    reads the old words as well.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        part.update(_rotary(part.get("rope_parameters") or {}))
        if "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    names: set[str] = set()
    for weights in folder.glob("*.safetensors"):
        with safe_open(weights, framework="pt") as file:
            names |= set(file.keys())
    if "lm_head.weight" in names and config.get("tie_word_embeddings"):
        config["tie_word_embeddings"] = False
    replace_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("tokenizer_class") == "TokenizersBackend":  # the same class by its old name
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(config.get("extra_special_tokens"), list):  # version 4 asks for its keys
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        replace_text(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _rotary(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of rotary embeddings in the words of version 4."""
    full = dict(parameters.get("full_attention") or parameters)
    words = {
        name: full.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in full
    }
    if full.get("rope_type", "default") != "default":
        words["rope_scaling"] = full
    if local := parameters.get("sliding_attention"):
        words["rope_local_base_freq"] = local["rope_theta"]
    return words
