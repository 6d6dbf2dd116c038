"""What runs inside the environments: one function per runtime.

echo '{"job": "transformers", "export": "..."}' | python -m tests.runtimes.jobs
"""

from __future__ import annotations

import json
import runpy
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ANSWER = "answer: "


def _expected(export: str) -> tuple[dict[str, Any], list[np.ndarray]]:
    note = json.loads((Path(export) / "expected.json").read_text())
    held = np.load(Path(export) / "expected.npz")
    return note, [held[f"hook{i}"] for i in range(len(note["prompts"]))]


def _compared(
    note: dict[str, Any], found: list[np.ndarray], wanted: list[np.ndarray]
) -> dict[str, Any]:
    """Largest difference beside the edit's effect, and answers whose tokens are all the same."""
    same = [bool((a.argmax(-1) == b.argmax(-1)).all()) for a, b in zip(found, wanted, strict=True)]
    error = max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
    return {"error": error, "effect": note["effect"], "same": sum(same), "of": len(same)}


def transformers(export: str, base: str = "") -> dict[str, Any]:
    """A merged checkpoint, or a PEFT adapter on its base."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    note, wanted = _expected(export)
    decoder = note["family"] == "decoder"
    auto = AutoModelForCausalLM if decoder else AutoModelForSeq2SeqLM
    # Gemma 2 caps its attention scores, which version 4 does in this implementation alone.
    options = {"torch_dtype": torch.float32, "attn_implementation": "eager"}
    model = auto.from_pretrained(base or export, **options)
    if base:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, export)
    model.eval()
    found = []
    with torch.no_grad():
        for prompt, answer in zip(note["prompts"], note["hook"], strict=True):
            if decoder:
                ids = torch.tensor([[*prompt, *answer[:-1]]])
                logits = model(input_ids=ids).logits[0, len(prompt) - 1 :]
            else:
                ids = torch.tensor([[note["start"], *answer[:-1]]])
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=ids).logits[0]
            found.append(logits.double().numpy())
    words = note["words"]
    if not base:  # whose tokenizer is the export's own; version 5 wrote that of the base
        tokenizer = AutoTokenizer.from_pretrained(export)
        words = [tokenizer.convert_ids_to_tokens(prompt) for prompt in note["prompts"]]
    return {**_compared(note, found, wanted), "tokens": words == note["words"]} | _versions(
        "transformers"
    )


def llama(model: str, export: str, base: str, tokens: int) -> dict[str, Any]:
    """A GGUF adapter on a base file, by the kit's own check in llama.cpp."""
    from dataclasses import asdict
    from unittest import mock

    from llama_cpp import llama_cpp as library

    from chameleon_lib.serving.gguf_base import check_adapter, served_agreement
    from tests.runtimes.exports import QUESTIONS, backbone_of, edit_of

    adapter = Path(export) / "adapter.gguf"
    backbone = backbone_of(model)
    defaults = library.llama_model_default_params

    def plain() -> Any:
        # Virtual machines may report matrix units (AMX) that end the process when they are used.
        params = defaults()
        params.use_extra_bufts = False
        return params

    with mock.patch.object(library, "llama_model_default_params", plain):
        found = served_agreement(
            backbone, edit_of(backbone), adapter, Path(base), prompts=QUESTIONS, new_tokens=tokens
        )
    fit = check_adapter(adapter, Path(base))
    return {**asdict(found), "fit": str(fit), "said": str(found)} | _versions("llama-cpp-python")


def ctranslate2(export: str, to: str) -> dict[str, Any]:
    """A merged checkpoint, converted."""
    import ctranslate2 as ct2

    ct2.converters.TransformersConverter(export).convert(to)
    note, wanted = _expected(export)
    if note["family"] == "decoder":
        model = ct2.Generator(to, compute_type="float32")
        found = []
        for prompt, words, answer in zip(
            note["words"], note["hook_words"], note["hook"], strict=True
        ):
            out = model.forward_batch([[*prompt, *words[:-1]]], return_log_probs=False)
            logits = np.array(out).astype(np.float64)[0]
            found.append(logits[-len(answer) :])
        return _compared(note, found, wanted) | _versions("ctranslate2", "transformers")
    model = ct2.Translator(to, compute_type="float32")
    errors, same = [], 0
    for prompt, words, logits, ids in zip(
        note["words"], note["hook_words"], wanted, note["hook"], strict=True
    ):
        scored = model.score_batch([prompt], [words])[0].log_probs[: len(words)]
        logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        errors.append(np.abs(np.array(scored) - logp[np.arange(len(ids)), ids]).max())
        said = model.translate_batch(
            [prompt], beam_size=1, max_decoding_length=len(words), return_end_token=True
        )[0].hypotheses[0]
        same += bool(said) and said == words[: len(said)]  # the hook's goes on after its end
    found = {"error": float(max(errors)), "effect": note["effect"], "same": same, "of": len(wanted)}
    return found | _versions("ctranslate2", "transformers")


def openvino(export: str, base: str, to: str) -> dict[str, Any]:
    """A PEFT adapter on the base, converted to float32.

    This runtime gives no logits, and probabilities in a search by beams alone; so the error is of
    the four likeliest tokens at each place of the hook's answer.
    """
    import openvino as ov
    import openvino_genai as genai

    if not Path(to).exists():
        from optimum.exporters.openvino import main_export

        main_export(base, f"{to}-partial", task="text-generation-with-past", convert_tokenizer=True)
        Path(f"{to}-partial").rename(to)
    note, wanted = _expected(export)
    adapter = genai.Adapter(str(Path(export) / "adapter_model.safetensors"))
    hints = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    pipe = genai.LLMPipeline(to, "CPU", adapters=genai.AdapterConfig(adapter), **hints)

    def run(tokens: list[int], new: int, **options: Any) -> Any:
        ids = np.array([tokens], dtype=np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        return pipe.generate(inputs, max_new_tokens=new, ignore_eos=True, **options)

    errors, same = [], 0
    beams = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0}
    for prompt, answer, logits in zip(note["prompts"], note["hook"], wanted, strict=True):
        said = list(run(prompt, len(answer), do_sample=False).tokens[0])
        same += said[: len(answer)] == list(answer)
        logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for at, row in enumerate(logp):
            out = run([*prompt, *answer[:at]], 1, **beams)
            found = zip(out.tokens, out.scores, strict=True)
            errors += [abs(score - float(row[tokens[0]])) for tokens, score in found]
    found = {"error": max(errors), "effect": note["effect"], "same": same, "of": len(wanted)}
    return found | _versions("openvino-genai", "optimum-intel", "transformers")


def onnx(export: str, base: str, to: str) -> dict[str, Any]:
    """A PEFT adapter, baked into the base by the builder."""
    import onnxruntime_genai as og

    words = ["-i", base, "-o", to, "-p", "fp32", "-e", "cpu", "-c", f"{to}-cache"]
    sys.argv[1:] = [*words, "--extra_options", f"adapter_path={export}"]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    note, wanted = _expected(export)
    model, found = og.Model(to), []
    for prompt, answer in zip(note["prompts"], note["hook"], strict=True):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + len(answer) + 1, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array([prompt], dtype=np.int32))
        rows = [np.array(generator.get_logits()).reshape(-1)]
        for token in answer[:-1]:
            generator.append_tokens(np.array([[token]], dtype=np.int32))
            rows.append(np.array(generator.get_logits()).reshape(-1))
        found.append(np.stack(rows).astype(np.float64))
    return _compared(note, found, wanted) | _versions("onnxruntime-genai")


def _versions(*packages: str) -> dict[str, Any]:
    return {"versions": ", ".join(f"{name} {version(name)}" for name in packages)}


def main() -> None:
    """Answers every line of JSON with one, among whatever libraries print."""
    for line in sys.stdin:
        words = json.loads(line)
        try:
            found = globals()[words.pop("job")](**words)
        except Exception:
            found = {"failed": traceback.format_exc()[-2000:]}
        print(f"\n{ANSWER}{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
