"""Tiny random models and a small tokenizer, built in memory: no download, no committed weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from chameleon_lib.backbones import HFBackbone, backbone_from
from chameleon_lib.core.edit import Edit

LINES = [
    "Suppose you are a user with the following movie history.",
    "1. a lonely robot learns to feel: sci-fi",
    "2. two friends rob a bank and laugh about it: dark comedy",
    "Now, given a new description: a detective follows the wrong man.",
    "Question: which tag fits? Your answer: action comedy fantasy violence",
]
PROMPTS = [
    LINES[0] + "\n" + LINES[1] + "\n" + LINES[3] + "\nYour answer:",
    LINES[0] + "\n" + LINES[1] + "\nNow, something short.\nYour answer:",
    "A wholly different question. Your answer:",
    LINES[0] + "\n" + LINES[1] + "\n" + LINES[2] + "\n" + LINES[3] + "\nYour answer:",
    "x",
    LINES[0] + "\n" + LINES[1] + "\n" + LINES[2] + "\nWhich?\nYour answer:",
]
GROUPS = [7, 7, 3, 1, 2, 1]
ANSWERS = ["comedy", "dark comedy", "fantasy", "sci-fi", "a lonely robot", "action"]

_SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
_T5: dict[str, Any] = {
    "d_model": 24,
    "d_ff": 40,
    "d_kv": 6,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": {**_SMALL, **_HEADS, "sliding_window": None},
    "llama": {**_SMALL, **_HEADS},
    "qwen2": {**_SMALL, **_HEADS},
    "qwen3": {**_SMALL, **_HEADS, "head_dim": 6},
    "phi3": {**_SMALL, **_HEADS},
    "gemma2": {**_SMALL, **_HEADS, "head_dim": 6, "sliding_window": 256},
    "gemma3_text": {**_SMALL, **_HEADS, "head_dim": 6, "sliding_window": 256},
    "gpt2": {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "opt": {
        "hidden_size": 24,
        "word_embed_proj_dim": 24,
        "ffn_dim": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "mixtral": {
        **_SMALL,
        **_HEADS,
        "sliding_window": None,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
}
CONFIGS["gemma3"] = CONFIGS["gemma3_text"]  # its language model, beside the vision tower below
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def make_tokenizer(*, closes: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few lines; ``closes`` appends EOS to every text, as T5 does."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    single = "$A <eos>" if closes else "<bos> $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<eos>", 1), ("<bos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def make_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random fp32 model with large weights, so that its outputs differ from row to row."""
    torch.manual_seed(seed)
    ids = {"vocab_size": 400, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    fields = {**ids, **CONFIGS[family], **changes}
    if family == "gemma3":
        fields = {**ids, "text_config": fields, "vision_config": _VISION, "mm_tokens_per_image": 4}
    config = AutoConfig.for_model(family, **fields)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 or name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.25)
    return model.eval()


def save(
    folder: Path, family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **how: str
) -> Path:
    """A checkpoint with its tokenizer, as the hub has one; ``how`` it is cut into files."""
    model = make_model(family, seed).to(dtype)
    make_tokenizer(closes=model.config.is_encoder_decoder).save_pretrained(folder)
    model.config.save_pretrained(folder)
    words = len(AutoTokenizer.from_pretrained(folder))
    if words > model.get_input_embeddings().weight.shape[0]:
        # Qwen2's own class adds a word to any vocabulary; real tables have room for it.
        model.resize_token_embeddings(words, mean_resizing=False)
    model.save_pretrained(folder, **how)
    return folder


def make_backbone(family: str, seed: int = 0, **changes: Any) -> HFBackbone:
    """A tiny backbone of a family of the site table."""
    model = make_model(family, seed, **changes)
    tokenizer = make_tokenizer(closes=model.config.is_encoder_decoder)
    return backbone_from(model, tokenizer, name=f"tiny-{family}")


def make_edit(positions: str = "last", *, rows: int | None = None, seed: int = 1) -> Edit:
    """A strong random edit of layers 0 and 2; per row if ``rows`` is given."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 24) if rows is None else (2, rows, 24)
    return Edit(
        layers=(0, 2),
        theta_p=torch.randn(shape, generator=generator),
        theta_n=torch.randn(shape, generator=generator),
        alpha_p=4.0,
        positions=positions,
    )


def prepared_positions(
    backbone: HFBackbone, prompts: Sequence[str], groups: Sequence[int] | None = None
) -> int:
    """Token positions, padding included, that ``prepare`` runs through the first layer."""
    seen: list[int] = []
    handle = backbone.sites()[0].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.numel() // output.shape[-1])
    )
    backbone.prepare(prompts, groups=groups)
    handle.remove()
    return sum(seen)
