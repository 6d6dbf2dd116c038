"""The exports in other people's runtimes; each group that is skipped says why.

The environments take minutes and gigabytes to make, so they are made on request alone:
``CHAMELEON_RUNTIMES=DIR python -m tests.runtimes``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.demo import checkpoint
from tests.backbones.tiny import CONFIGS
from tests.runtimes import environments
from tests.runtimes.environments import Missing
from tests.runtimes.exports import SMOL, exported, float_gguf, smol_base, smol_gguf

pytestmark = pytest.mark.slow

# In version 5 an mT5 with one table for both is not scaled and in version 4 it is, whoever wrote
# it; a mixture's stacked experts are modules of their own in version 4.
MERGED = [name for name in CONFIGS if name not in ("mt5",)]
PEFT = [name for name in MERGED if name != "mixtral"]


def run(runtime: str, job: str, **words: Any) -> dict[str, Any]:
    """What a job of a runtime found; skips where the environment is missing."""
    try:
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in words.items()}
        return environments.run(runtime, job, **plain)
    except Missing as reason:
        pytest.skip(str(reason))


def export(runtime: str, *what: Any) -> Path:
    """An export, made once; skips before it is made where nobody would read it."""
    try:
        environments.python_of(runtime)
        folder = environments.home() / "exports"
        folder.mkdir(exist_ok=True)
        return exported(folder, *what)
    except Missing as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("runtime", ["transformers4", "transformers5"])
@pytest.mark.parametrize("model", [*MERGED, "t5-own-head", "decoder-0", "encdec-0", "smollm2"])
def test_a_merged_checkpoint_is_read_alike_by_old_and_new_versions(
    runtime: str, model: str
) -> None:
    found = run(runtime, "transformers", export=export(runtime, model, "merged"))
    assert found["error"] < 2e-4 and found["same"] == found["of"] == 3 and found["tokens"]


@pytest.mark.parametrize("runtime", ["transformers4", "transformers5"])
@pytest.mark.parametrize("rank", [2, 8])
def test_an_adapter_acts_in_old_and_new_versions(runtime: str, rank: int) -> None:
    folder = export(runtime, "smollm2", "peft", rank)
    found = run(runtime, "transformers", export=folder, base=smol_base())
    assert found["error"] < 2e-4 and found["same"] == found["of"]


def test_llama_cpp_gives_the_hooks_answers_on_a_float_base() -> None:
    folder = export("llama", "smollm2", "gguf")
    base = float_gguf(folder.parent)
    found = run("llama", "llama", model="smollm2", export=folder, base=base, tokens=24)
    assert found["edited"] < 5e-3 and found["edited_answers"] == found["prompts"] == 3
    assert found["correlation"] > 0.9999 and abs(found["slope"] - 1) < 1e-3
    assert "weights are those it was compiled from" in found["fit"]


def test_llama_cpp_stays_within_the_rounding_of_a_quantised_base() -> None:
    folder = export("llama", "smollm2", "gguf")
    found = run("llama", "llama", model="smollm2", export=folder, base=smol_gguf(), tokens=24)
    # llama.cpp rounds activations, so two readings of one Q4_1 file differ as well.
    assert found["edited"] < 1.5 * found["plain"] and found["correlation"] > 0.98
    assert abs(found["slope"] - 1) < 0.1


@pytest.mark.parametrize("model", ["decoder-0", "encdec-0", "smollm2"])
def test_ctranslate2_converts_a_merged_checkpoint(model: str) -> None:
    folder = export("ctranslate2", model, "merged")
    found = run("ctranslate2", "ctranslate2", export=folder, to=folder / "converted")
    assert found["error"] < 1e-3 and found["same"] == found["of"] == 3


def test_ctranslate2_converts_a_head_of_its_own_under_transformers_4() -> None:
    runtime = "ctranslate2-transformers4"
    folder = export(runtime, "t5-own-head", "merged")
    note = folder / "tokenizer_config.json"  # as the serving folder's page says
    words = json.loads(note.read_text())
    note.write_text(json.dumps({**words, "unk_token": words["pad_token"]}))
    found = run(runtime, "ctranslate2", export=folder, to=folder / "converted")
    assert found["error"] < 1e-3 and found["same"] == found["of"] == 3


@pytest.mark.parametrize(("model", "rank"), [("decoder-0", 2), ("smollm2", 2), ("smollm2", 8)])
def test_openvino_takes_the_adapter(model: str, rank: int) -> None:
    folder, base = export("openvino", model, "peft", rank), base_of(model)
    to = folder.parent / f"{model}-openvino"
    found = run("openvino", "openvino", export=folder, base=base, to=to)
    assert found["error"] < 1e-3 and found["same"] == found["of"] == 3


@pytest.mark.parametrize(("model", "rank"), [("decoder-0", 2), ("smollm2", 2), ("smollm2", 8)])
def test_onnx_takes_the_adapter(model: str, rank: int) -> None:
    folder, base = export("onnx", model, "peft", rank), base_of(model)
    found = run("onnx", "onnx", export=folder, base=base, to=folder / "converted")
    assert found["error"] < 1e-3 and found["same"] == found["of"] == 3


def base_of(model: str) -> Path:
    return smol_base() if model == SMOL else checkpoint(*model.split("-"))
