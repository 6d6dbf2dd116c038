"""The published rules for LoRA folders: what PEFT, vLLM 0.33 and SGLang 0.5 read and refuse.

Written down from the servers' loaders, not run in them. A folder that breaks a rule is refused
with the file, the entry and the fix, before a server ignores it in silence.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from chameleon_lib.errors import UserError
from chameleon_lib.profiles.peft_adapter import CONFIG, PREFIX, WEIGHTS

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # allowed values of --max-lora-rank
SERVED_MODULE = "down_proj"
_KEY = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<part>weight|bias)")


def check_adapter(
    folder: Path, *, server: str | None = None, base_model: str | None = None
) -> dict[str, Any]:
    """Checks an adapter folder against the rules.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        server: ``vllm`` | ``sglang`` for that server's rules on top of PEFT's; None for PEFT.
        base_model: What the server calls the base; compared letter by letter if given.

    Returns:
        The configuration.

    Raises:
        UserError: The first broken rule.
    """
    config = _read_config(folder / CONFIG)
    shapes = _read_shapes(folder / WEIGHTS)
    for broken, sentence in (
        *_config_rules(config),
        *(() if server is None else _server_rules(config, server)),
    ):
        if broken:
            raise UserError(f"{folder / CONFIG}: {sentence}; export the adapter again.")
    if base_model is not None and config["base_model_name_or_path"] != base_model:
        raise UserError(
            f"{folder / CONFIG} is for '{config['base_model_name_or_path']}', the server calls its "
            f"model '{base_model}'; export it with --served-model '{base_model}'."
        )
    _check_keys(folder / WEIGHTS, shapes, config, server)
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the adapter again.") from error
    needed = ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")
    missing = [name for name in needed if name not in config]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; export the adapter again.")
    return dict(config)


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except (OSError, SafetensorError, struct.error) as error:
        raise UserError(f"{path} cannot be read ({error}); export the adapter again.") from error


def _config_rules(config: dict[str, Any]) -> Sequence[tuple[bool, str]]:
    rank, targets = config["r"], config["target_modules"]
    return (
        (config["peft_type"] != "LORA", "peft_type must be LORA"),
        (not isinstance(rank, int) or rank < 1, f"r is {rank!r}, not a whole number of 1 or more"),
        (
            config["lora_alpha"] != rank,
            f"lora_alpha is {config['lora_alpha']}, r is {rank}; the strengths are in the factors, "
            "so their ratio must be 1",
        ),
        (bool(config.get("use_rslora")), "use_rslora would scale by alpha / sqrt(r)"),
        (bool(config.get("use_dora")), "use_dora would change the norm of the weights"),
        (bool(config.get("lora_dropout")), "lora_dropout must be 0"),
        (config.get("bias", "none") != "none", "bias must be none"),
        (bool(config.get("rank_pattern")), "rank_pattern would override r"),
        (bool(config.get("alpha_pattern")), "alpha_pattern would override lora_alpha"),
        (
            not isinstance(targets, list) or not all(isinstance(name, str) for name in targets),
            "target_modules must be a list of names; SGLang refuses a string",
        ),
        (not targets and not config.get("target_parameters"), "target_modules is empty"),
    )


def _server_rules(config: dict[str, Any], server: str) -> Sequence[tuple[bool, str]]:
    largest = VLLM_RANKS[-1]
    return (
        (bool(config.get("lora_bias")), f"lora_bias is not served by {server}"),
        (config.get("alora_invocation_tokens") is not None, f"aLoRA is not served by {server}"),
        (bool(config.get("modules_to_save")), f"modules_to_save is not served by {server}"),
        (bool(config.get("layer_replication")), f"layer_replication is not served by {server}"),
        (bool(config.get("target_parameters")), f"{server} takes modules, not target_parameters"),
        (server == "vllm" and config["r"] > largest, f"vllm takes ranks up to {largest}"),
        (
            any(name.rpartition(".")[2] != SERVED_MODULE for name in config["target_modules"]),
            f"the server is started for {SERVED_MODULE} alone",
        ),
    )


def _check_keys(
    path: Path, shapes: dict[str, tuple[int, ...]], config: dict[str, Any], server: str | None
) -> None:
    seen: dict[str, set[str]] = {}
    ranks: dict[str, list[int]] = {}
    for key, shape in shapes.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise UserError(
                f"{path}: the key '{key}' is not {PREFIX}<module>.lora_A.weight or lora_B.weight, "
                "and readers skip such keys in silence; export the adapter again."
            )
        part = f"{match['side']}.{match['part']}"
        seen.setdefault(match["module"], set()).add(part)
        if match["part"] == "weight":
            ranks.setdefault(match["module"], []).append(shape[0 if match["side"] == "A" else 1])
    parameters = config.get("target_parameters") or []
    wanted = {*config["target_modules"], *(name.rpartition(".")[0] for name in parameters)}
    if set(seen) != wanted:
        odd = sorted(set(seen) ^ wanted)
        raise UserError(
            f"{path}: target_modules and the tensors differ in {', '.join(odd)}; export the "
            "adapter again."
        )
    parts = {"A.weight", "B.weight"} | ({"B.bias"} if config.get("lora_bias") else set())
    for module, found in seen.items():
        if found != parts:
            raise UserError(
                f"{path}: {module} has {', '.join(sorted(found))} instead of "
                f"{', '.join(sorted(parts))}; export the adapter again."
            )
        # The experts' factors are stacked, so a mixture has r rows per expert.
        a, b = ranks[module]
        if a != b or (a % config["r"] if parameters else a != config["r"]):
            raise UserError(
                f"{path}: the factors of {module} have ranks {ranks[module]}, the configuration "
                f"says {config['r']}; export the adapter again."
            )
    served = re.compile(r"model\.(language_model\.)?layers\.\d+\.")
    odd = [name for name in seen if server is not None and not served.match(name)]
    if odd:
        raise UserError(f"{path}: {server} expects model.layers.N names, not {odd[0]}.")
