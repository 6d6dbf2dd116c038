"""The sizes of the models that are known, against their architectures and what autograd keeps."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    MistralConfig,
    Qwen2Config,
    T5Config,
)

from chameleon_lib.backbones import load_backbone
from chameleon_lib.demo import checkpoint
from chameleon_lib.kit.models import MODELS, way_back
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
        if name == "Qwen/Qwen2.5-0.5B-Instruct":
            return AutoModelForCausalLM.from_config(Qwen2Config(
                vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True))
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


def kept_for_the_way_back(
    family: str, layers: int, tokens: int, adapter: bool, checkpointing: bool
) -> int:
    """Bytes that autograd keeps of one row, of a model with the proportions of the paper's.

    A model that is trained whole is in float32 and computes in 16 bits; the copies of its weights
    are not counted.
    """
    torch.manual_seed(0)
    if family == "mistral":
        config: Any = MistralConfig(
            vocab_size=64, hidden_size=256, intermediate_size=896, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=1, head_dim=64, sliding_window=None,
        )  # fmt: skip
    else:
        config = T5Config(
            vocab_size=64, d_model=256, d_ff=640, d_kv=64, num_heads=4, num_layers=layers,
            num_decoder_layers=layers, feed_forward_proj="gated-gelu",
        )  # fmt: skip
    auto: Any = AutoModelForCausalLM if family == "mistral" else AutoModelForSeq2SeqLM
    model = auto.from_config(config, dtype=torch.bfloat16 if adapter else torch.float32)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if adapter:
        task = "CAUSAL_LM" if family == "mistral" else "SEQ_2_SEQ_LM"
        model.requires_grad_(False)
        lora = LoraConfig(
            r=16, lora_alpha=8, lora_dropout=0.05, target_modules="all-linear", task_type=task
        )
        model = get_peft_model(model, lora).get_base_model()
    model.train()
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    copied = () if adapter else {s for w in model.parameters() for s in (w.shape, w.shape[::-1])}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.shape not in copied:
            held[storage.data_ptr()] = storage
        return tensor

    row, answer = torch.zeros(1, tokens, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=not adapter)
    with mixed, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if family == "mistral":
            kept: Any = model.model(input_ids=row, use_cache=False)
        else:
            states = model.get_encoder()(input_ids=row).last_hidden_state
            kept = model.get_decoder()(
                input_ids=answer, encoder_hidden_states=states, use_cache=False
            )
    total = sum(storage.nbytes() for storage in held.values())
    del kept
    return total


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_the_way_back_of_the_formula_is_what_autograd_keeps(family: str, adapter: bool) -> None:
    profile, tokens, layers = PROFILES["paper"], 192, 3
    width = 256
    inner, keys = (896, 64) if family == "mistral" else (640, 256)
    state = 2 * keys + (width if family == "t5" else 0)
    shape = {"layers": 1, "width": width, "inner": inner, "state": state}
    model = replace(MISTRAL, **shape, encoder=family == "t5")

    def measured(checkpointing: bool) -> int:
        few, more = (
            kept_for_the_way_back(family, n, tokens, adapter, checkpointing) for n in (1, layers)
        )
        return (more - few) // (layers - 1)

    whole = replace(profile, checkpointing=False)
    layer = way_back(whole, model, 1, tokens, adapter)
    assert layer == pytest.approx(measured(False), rel=0.2)
    inputs = way_back(profile, model, 1, tokens, adapter) - layer
    # T5's layers share some of their position biases; the formula counts one for each.
    assert (0.5 if model.encoder else 0.8) * inputs < measured(True) < 1.2 * inputs
