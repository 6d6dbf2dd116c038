"""The sizes of the models that are known, against their architectures and what autograd keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    T5Config,
)

from chameleon_lib.backbones import load_backbone
from chameleon_lib.demo import checkpoint
from chameleon_lib.kit.models import MODELS
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.studies.s04_training import weights_of

MISTRAL = MODELS["mistralai/Mistral-7B-Instruct-v0.3"]


def built(name: str) -> object:
    """A published architecture, without memory."""
    shape = {"vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    with torch.device("meta"):
        if name == "mistralai/Mistral-7B-Instruct-v0.3":
            return AutoModelForCausalLM.from_config(MistralConfig(
                vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False))
        if name == "smollm2":
            return AutoModelForCausalLM.from_config(LlamaConfig(
                vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True))
        if name == "Qwen/Qwen2.5-0.5B-Instruct":
            return AutoModelForCausalLM.from_config(Qwen2Config(
                vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True))
        if name == "Qwen/Qwen2.5-7B-Instruct":
            return AutoModelForCausalLM.from_config(Qwen2Config(
                vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False))
        large = name == "google/flan-t5-xxl"
        sizes = (4096, 10240, 24, 64) if large else (768, 2048, 12, 12)
        names = ("d_model", "d_ff", "num_layers", "num_heads")
        return AutoModelForSeq2SeqLM.from_config(
            T5Config(**shape, **dict(zip(names, sizes, strict=True)), d_kv=64))  # fmt: skip


@pytest.mark.parametrize("name", [m for m in MODELS if "sentence" not in m])
def test_the_numbers_of_a_model_are_those_of_its_architecture(name: str) -> None:
    entry = MODELS[name]
    if name.startswith("demo:"):
        _, family, seed = name.split(":")
        model: object = load_backbone(checkpoint(family, seed)).model
    else:
        model = built(name)
    config = model.config  # type: ignore[attr-defined]
    family = "encoder-decoder" if entry.encoder else "decoder"
    found = weights_of(SimpleNamespace(model=model, family=family))  # type: ignore[arg-type]
    assert (entry.weights.read, entry.weights.written) == (found.read, found.written)
    total = sum(weight.numel() for weight in model.parameters())  # type: ignore[attr-defined]
    # The library always ties T5's head; Flan-T5's checkpoints store one of their own.
    head = config.vocab_size * entry.width if entry.encoder and "google" in name else 0
    assert entry.weights.total == total + head
    assert (entry.width, entry.vocabulary) == (config.hidden_size, config.vocab_size)
    linear = sum(
        layer.in_features + layer.out_features
        for part, layer in model.named_modules()  # type: ignore[attr-defined]
        if isinstance(layer, torch.nn.Linear) and "lm_head" not in part
    )
    assert entry.linear == linear


def test_every_model_of_a_profile_is_known() -> None:
    for profile in PROFILES.values():
        assert {*profile.backbones, *profile.studied} <= MODELS.keys()
        assert profile.offline or profile.embedder in MODELS
