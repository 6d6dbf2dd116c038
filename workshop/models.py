"""The tokenizer of the embedded models, and their two architectures, freshly initialised.

A unigram tokenizer whose pieces are written down, not learned: every word of the world is one
piece, every fixed sentence of the paper's A.3 templates is one added token, and everything else
falls back to letter pairs, characters and bytes. Prompts of ~900 characters so become ~150 tokens,
which is what lets models of about a million weights learn the tasks on a CPU. Text round-trips.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from chameleon_lib.core.task import (
    PAPER_TASKS,
    HistoryItem,
    Query,
    answer_prompt,
    insight_prompt,
    official_input,
    official_prompt,
    unseen_prompt,
)
from chameleon_lib.demo import lexicon as lx
from chameleon_lib.demo.world import NEUTRAL_INSIGHT, Taste, insight_text

PAD, EOS, BOS = "<pad>", "</s>", "<s>"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(16))
# Frequent English letter pairs: real tweets and reviews cost fewer tokens with them.
PAIRS = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le "
    "ve co me de hi ri ro ic ne ea ra ce li ch ll be ma si om ur"
).split()
_MARK = "\x00"
_SPACE = "\u2581"


def template_segments() -> list[str]:
    """The fixed sentences of all prompts, one string each, a leading newline included."""
    pieces: set[str] = set()
    for task in PAPER_TASKS:
        item = HistoryItem(id="0", text=_MARK, label=None if task == "LaMP_7" else _MARK)
        query = Query(id="0", text=_MARK, input=official_input(task, _MARK), gold=None)
        prompts = [
            insight_prompt(task, [item], "P"),
            insight_prompt(task, [item], "N"),
            answer_prompt(task, [item], _MARK, role="P", insight=_MARK),
            answer_prompt(task, [item], _MARK, role="N", insight=_MARK),
            answer_prompt(task, [item], _MARK, role="P", insight=None),
            unseen_prompt(task, _MARK),
            official_prompt(task, [item, item], query),
            official_prompt(task, [], query),
        ]
        for prompt in prompts:
            for part in re.split(f"{_MARK}|(?=\n)|(?<= 1\\.)", prompt):
                segment = part.removesuffix(" 1.").rstrip(" ")
                if len(segment) > 1:
                    pieces.add(segment)
    numbers = [f"{before}{n}." for n in range(1, 31) for before in " \n"]
    return sorted(pieces) + numbers


def _words() -> list[str]:
    sentences = [*lx.MOVIE_LINKS, *lx.PLACES, *lx.PRODUCTS, *lx.REVIEW_STARTS, *lx.REVIEW_ENDS]
    sentences += [*lx.TWEET_SUBJECTS, *lx.SLANG, *lx.SLANG.values(), *lx.TWEET_NOUNS]
    sentences += [*lx.OPENERS, *(o.capitalize() for o in lx.OPENERS), *lx.CLOSERS]
    sentences += [cue for cues in lx.CUES.values() for cue in cues]
    sentences += [word for words in lx.SENTIMENT.values() for word in words]
    sentences += ["A a and in the was my movie", *NEUTRAL_INSIGHT.values()]
    for task, taste in (
        ("LaMP_2", Taste(tag="x")),
        ("LaMP_3", Taste(shift=2)),
        ("LaMP_3", Taste(shift=-1)),
        ("LaMP_7", Taste(slang=True, short=True)),
        ("LaMP_7", Taste()),
    ):
        sentences.append(insight_text(task, taste))
    words = {word for sentence in sentences for word in re.findall(r"[^\s,]+", sentence)}
    return sorted(words | {tag for tag in lx.CUES if re.fullmatch(r"\w+", tag)})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer both embedded models share (``<pad>`` 0, ``</s>`` 1, ``<s>`` 2)."""
    phrases = [tag for tag in lx.CUES if not re.fullmatch(r"\w+", tag)]
    added = [*template_segments(), *phrases, *(f" {phrase}" for phrase in phrases)]
    return word_tokenizer(_words(), added)


def word_tokenizer(words: Sequence[str], added: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with these words as pieces and these texts as added tokens."""
    vocab: list[tuple[str, float]] = [(PAD, 0.0), (EOS, 0.0), (BOS, 0.0)]
    vocab += [(sentinel, 0.0) for sentinel in SENTINELS]
    vocab += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    # A longer piece must always beat its parts, hence scores that fall by kind.
    characters = [chr(code) for code in range(33, 127)] + ["\n", _SPACE]
    scored = dict.fromkeys(characters, -12.0)
    scored |= dict.fromkeys(PAIRS, -11.0) | {_SPACE + pair: -11.0 for pair in PAIRS}
    for word in words:
        scored[word] = -4.0
        scored[_SPACE + word] = -4.0
    for digit in "12345":
        scored[_SPACE + digit] = -4.0
    scored["10"] = -4.0
    vocab += sorted(scored.items())

    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme="never", split=True
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([PAD, EOS, BOS, *SENTINELS])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=BOS,  # as ``unk_id`` says: converters ask for its name (never met: bytes are)
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


CONTEXT = 2048  # tokens; the training prompts have up to 200, real reviews need more


def build_model(family: str, seed: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialised model of the family (about 1.1 M and 1.9 M parameters)."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1}
    if family == "decoder":
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
