"""The exact commands that serve an exported folder.

Flags and their limits are those of vLLM 0.33.0, SGLang 0.5.23 and llama.cpp, as their sources state
them; the servers themselves are not run here.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from chameleon_lib.profiles.adapter_rules import SERVED_MODULE, VLLM_RANKS
from chameleon_lib.profiles.gguf_adapter import FILE

_IN_BATCH, _IN_MEMORY = 8, 64
_AUTO = {True: "AutoModelForCausalLM", False: "AutoModelForSeq2SeqLM"}


def vllm_command(folder: Path, base_model: str, rank: int, *, models: int) -> list[str]:
    """Lines that start vLLM on the folder and ask one model of it.

    ``--max-lora-rank`` takes few values, 8 being the cheapest that holds rank 2.
    """
    largest = next(allowed for allowed in VLLM_RANKS if allowed >= max(rank, 8))
    flags = (
        f"--enable-lora --max-lora-rank {largest} --lora-target-modules {SERVED_MODULE} "
        f"--max-loras {min(models, _IN_BATCH)} --max-cpu-loras {min(models, _IN_MEMORY)}"
    )
    return [
        "export VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_PLUGINS=lora_filesystem_resolver",
        f"export VLLM_LORA_RESOLVER_CACHE_DIR={shlex.quote(str(folder.absolute()))}",
        f"vllm serve {shlex.quote(base_model)} {flags}",
    ]


def vllm_request(model: str) -> str:
    """A request for one user."""
    return _post(8000, "/v1/completions", {"model": model, "prompt": "...", "temperature": 0})


def sglang_command(base_model: str, rank: int, *, models: int) -> list[str]:
    """Lines that start SGLang; it takes any rank, and adapters are loaded by request."""
    return [
        f"python -m sglang.launch_server --model-path {shlex.quote(base_model)} --enable-lora "
        f"--max-lora-rank {rank} --lora-target-modules {SERVED_MODULE} --lora-strict-loading "
        f"--max-loras-per-batch {min(models, _IN_BATCH)}",
    ]


def sglang_request(folder: Path, model: str) -> str:
    """The request that loads one adapter."""
    path = str((folder / model).absolute())
    return _post(30000, "/load_lora_adapter", {"lora_name": model, "lora_path": path})


def merged_lines(folder: Path, model: str, *, decoder: bool) -> list[str]:
    """One user's own model; it needs no adapter support."""
    path = str((folder / model).absolute())
    if decoder:
        return [f"vllm serve {shlex.quote(path)}"]
    return [f"model = {_AUTO[False]}.from_pretrained({path!r})"]


def gguf_lines(folder: Path, base_model: str, model: str, *, decoder: bool) -> list[str]:
    """llama.cpp with one adapter; its scale is no strength of the edit and stays 1."""
    path = shlex.quote(str((folder / model / FILE).absolute()))
    lines = [
        f"# BASE.gguf is {base_model} in f32, f16 or bf16: a quantised file holds other weights "
        "than this adapter was compiled from"
    ]
    if not decoder:
        lines.append("# llama-server has lacked full T5 support (ggml-org/llama.cpp#8993)")
    return [*lines, f"{'llama-server' if decoder else 'llama-cli'} -m BASE.gguf --lora {path}"]


def peft_line(folder: Path, base_model: str, model: str, *, decoder: bool) -> str:
    """Python that loads one adapter on the base."""
    path = str((folder / model).absolute())
    base = f"{_AUTO[decoder]}.from_pretrained({base_model!r})"
    return f"model = PeftModel.from_pretrained({base}, {path!r})"


def _post(port: int, route: str, body: dict[str, object]) -> str:
    data = shlex.quote(json.dumps(body))
    return f"curl http://localhost:{port}{route} -H 'Content-Type: application/json' -d {data}"
