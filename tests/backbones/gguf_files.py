"""Tiny GGUF models, written as llama.cpp's converter lays them out: one file with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tests.backbones.tiny import make_model, make_tokenizer

TEMPLATE = (
    "{% for message in messages %}<bos>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>{% endif %}"
)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROUNDED = gguf.GGMLQuantizationType.Q4_1


def write_model(
    path: Path, *, architecture: str = "llama", kind: str = "model", drop: str = "", seed: int = 0
) -> Any:
    """A Llama with tied embeddings, its MLP in 4 bits.

    Args:
        path: Target.
        architecture: What the header says.
        kind: Likewise.
        drop: Name of a tensor that the file lacks.
        seed: Of the weights.

    Returns:
        The model in floats, as the file says it.
    """
    model, tokenizer = make_model("llama", seed, **SHAPE), make_tokenizer(closes=False)
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    writer.add_type(kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    stored = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = [f"<unused{at}>" for at in range(config.vocab_size)]
    for word, at in stored["vocab"].items():
        words[at] = word
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3 if at < 3 else 1 for at in range(len(words))])
    writer.add_token_merges([" ".join(pair) for pair in stored["merges"]])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _add(writer, name, weight, config, drop)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add(writer: gguf.GGUFWriter, name: str, weight: Any, config: Any, drop: str) -> None:
    array = weight.numpy()
    if ".mlp." in name:
        packed = gguf.quants.quantize(array, ROUNDED)
        weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, ROUNDED)))
    words = name.split(".")
    if name in ("model.embed_tokens.weight", "model.norm.weight"):
        target = "token_embd" if words[1] == "embed_tokens" else "output_norm"
    else:
        target = f"blk.{words[2]}.{_NAMES['.'.join(words[3:-1])]}"
    if target == drop:
        return
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    turned = heads.get(target.rpartition(".")[2])
    if turned:  # llama.cpp keeps the halves of a rotated head side by side
        halves = array.reshape(turned, 2, array.shape[0] // turned // 2, array.shape[1])
        array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
    if ".mlp." in name:
        writer.add_tensor(f"{target}.weight", packed, raw_dtype=ROUNDED)
    else:
        writer.add_tensor(f"{target}.weight", array.copy())
