"""The two embedded architectures, freshly initialised, and the optimisers of their training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from chameleon_lib.backbones.demo.lessons import EditLessons
from chameleon_lib.backbones.demo.recipe import TrainSettings

CONTEXT = 2048  # tokens; the training prompts have up to 200, real reviews need more


def build_model(settings: TrainSettings, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialised model of the family (about 1.1 M and 1.9 M parameters)."""
    torch.manual_seed(settings.seed)
    common: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1}
    if settings.family == "decoder":
        return MistralForCausalLM(
            MistralConfig(
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=CONTEXT,
                sliding_window=None,
                bos_token_id=2,
                tie_word_embeddings=False,
                **common,
            )
        )
    config: dict[str, Any] = {
        "decoder_start_token_id": 0,
        "tie_word_embeddings": True,
        "max_position_embeddings": CONTEXT,
    }
    model = T5ForConditionalGeneration(
        T5Config(
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=4,
            num_decoder_layers=4,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            **common,
            **config,
        )
    )
    # With unit embeddings the first logits are far too sure of themselves for so small a model.
    nn.init.normal_(model.shared.weight, std=0.5)
    return model


def build_optimizers(
    model: PreTrainedModel, lr: float, lessons: EditLessons | None = None
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = [] if lessons is None else list(lessons.parameters())
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and not any(
            part in name for part in ("embed", "shared", "lm_head", "relative_attention_bias")
        )
        (matrices if inner else others).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=lr, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]
