"""Small tokenizers of the real classes, with special tokens and templates of known models.

The templates are written anew to the shape that the models' own templates produce.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, T5Tokenizer

from chameleon_lib.core.task import answer_prompt
from chameleon_lib.demo.world import WorldSettings, build_world
from tests.backbones.tiny import LINES, make_tokenizer

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN = (
    "<|im_start|>system\nYou give a short answer.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def _texts() -> list[str]:
    world = build_world("LaMP_3", WorldSettings(users=(20, 0, 0)))
    users = world.users["train"]
    prompts = [
        answer_prompt(user.task, user.history, query.text, role=role, insight="likes short texts")
        for user in users
        for query in user.queries
        for role in ("P", "N")
    ]
    return [*LINES, *prompts, *(item.text for user in users for item in user.history)]


def mistral_like() -> Any:
    """SentencePiece-like BPE with byte fallback; BOS 1, EOS 2, control tokens [INST], [/INST]."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    core.decoder = decoders.Metaspace()
    control = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*control, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    core.train_from_iterator(_texts(), trainer)
    state = _state(core)["model"]
    tokenizer = LlamaTokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        legacy=False,
        add_bos_token=True,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    tokenizer.chat_template = MISTRAL
    return tokenizer


def flan_like() -> Any:
    """SentencePiece-like unigram; padding 0, EOS 1, unknown 2, sentinels at the end."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    sentinels = [f"<extra_id_{number}>" for number in range(9, -1, -1)]
    trainer = trainers.UnigramTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    core.train_from_iterator(_texts(), trainer)
    pieces = [(piece, score) for piece, score in _state(core)["model"]["vocab"]]
    return T5Tokenizer(vocab=[*pieces, *((name, 0.0) for name in sentinels)], extra_ids=10)


def byte_level_like(template: str, control: list[str]) -> Any:
    """The byte-level tokenizer of the tiny models with further control tokens and a template."""
    tokenizer = make_tokenizer(closes=False)
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    tokenizer.chat_template = template
    return tokenizer


def _state(core: Tokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(core.to_str())
    return state
