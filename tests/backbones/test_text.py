from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chameleon_lib.backbones import backbone_from
from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.errors import UserError
from tests.backbones.tiny import LINES, PROMPTS, make_backbone, make_model, make_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
    "{% if add_generation_prompt %} >{% endif %}"
)


def codec_of(tokenizer: Any, **changes: Any) -> TextCodec:
    arguments = {"decoder_only": True, "eos_ids": [1], "prompts_chat": "template"}
    return TextCodec(tokenizer, **{**arguments, **changes})


def test_decoder_answers_follow_a_blank_and_carry_no_special_token() -> None:
    codec = codec_of(make_tokenizer(closes=False))
    ids = codec.answers(["comedy", ""])
    assert codec.tokenizer.decode(ids[0]) == " comedy"
    assert ids[1] == [] and not {0, 1, 2} & set(ids[0])
    assert codec.prompts(["a prompt"])[0][0] == 2


def test_encoder_decoder_prompts_end_in_eos_and_answers_have_no_blank() -> None:
    codec = codec_of(make_tokenizer(closes=True), decoder_only=False)
    assert codec.prompts(["a prompt"])[0][-1] == 1
    assert codec.tokenizer.decode(codec.answers(["comedy"])[0]) == "comedy"


def test_a_decoder_prompt_never_ends_in_eos() -> None:
    assert codec_of(make_tokenizer(closes=True)).prompts(["a prompt"])[0][-1] != 1


def test_word_mark_tokenizers_give_the_ids_that_follow_a_prompt() -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 5, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    codec = codec_of(fast)
    assert fast.convert_tokens_to_ids(":") is not None
    joined = codec.prompts(["Your answer:"])[0] + codec.answers(["action"])[0]
    assert fast.decode(joined) == "Your answer: action"


def test_generated_text_is_cut_at_the_first_eos_and_stripped() -> None:
    codec = codec_of(make_tokenizer(closes=False))
    ids = codec.answers(["comedy"])[0]
    rows = torch.tensor([[*ids, 1, *ids], [*ids, *ids, ids[0]]])
    assert codec.decode(rows)[0] == "comedy"
    assert codec.decode(rows)[1].startswith("comedy comedy")


def test_every_stop_token_of_the_model_ends_an_answer() -> None:
    codec = codec_of(make_tokenizer(closes=False), eos_ids=[7, 9])
    assert codec.eos_ids == (1, 7, 9)
    assert codec.decode(torch.tensor([[50, 9, 51]])) == codec.decode(torch.tensor([[50, 1, 1]]))


def test_a_tokenizer_without_eos_and_unknown_chat_modes_are_refused() -> None:
    tokenizer = make_tokenizer(closes=False)
    with pytest.raises(UserError, match="prompts_chat"):
        codec_of(tokenizer, prompts_chat="maybe")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="end-of-sequence"):
        codec_of(tokenizer, eos_ids=[])


def test_generation_scores_and_activations_all_use_the_template() -> None:
    tokenizer = make_tokenizer(closes=False)
    tokenizer.chat_template = TEMPLATE
    chat = backbone_from(make_model("mistral"), tokenizer, name="chat")
    plain = make_backbone("mistral")
    assert chat.fingerprint != plain.fingerprint
    wrapped = [chat.codec.wrap(prompt).removeprefix("<bos>") for prompt in PROMPTS]
    answers = ["comedy"] * len(PROMPTS)
    assert chat.generate(PROMPTS, max_new_tokens=6) == plain.generate(wrapped, max_new_tokens=6)
    one = chat.score(chat.prepare(PROMPTS), answers)
    assert torch.equal(one, plain.score(plain.prepare(wrapped), answers))
    assert torch.equal(chat.activations(PROMPTS, answers), plain.activations(wrapped, answers))
    assert chat.count_tokens(PROMPTS[0]) == plain.count_tokens(wrapped[0])
