"""Texts to ids and back, by tokenizers and templates like those of Mistral, T5, Qwen and Gemma."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chameleon_lib.backbones import HFBackbone, backbone_from
from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.core.task import answer_prompt
from chameleon_lib.errors import UserError
from tests.backbones import naive
from tests.backbones.tiny import (
    PROMPTS,
    make_backbone,
    make_edit,
    make_model,
    make_tokenizer,
    prepared_positions,
)
from tests.backbones.tokenizers_like import GEMMA, QWEN, byte_level_like, flan_like, mistral_like
from tests.core.method import train_users

N = 4


def codec_of(tokenizer: Any, **changes: Any) -> TextCodec:
    arguments = {"decoder_only": True, "eos_ids": [], "prompts_chat": "template"}
    return TextCodec(tokenizer, **{**arguments, **changes})


def turns(question: str, answer: str | None = None) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def around(tokenizer: Any, family: str, context: int = 1024) -> HFBackbone:
    """A tiny model of a family around a tokenizer."""
    changes: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    if family != "t5":
        changes |= {"max_position_embeddings": context, "bos_token_id": tokenizer.bos_token_id}
    return backbone_from(make_model(family, **changes), tokenizer, name=f"like-{family}")


@pytest.fixture(scope="module")
def mistral() -> HFBackbone:
    return around(mistral_like(), "mistral")


@pytest.fixture(scope="module")
def flan() -> HFBackbone:
    return around(flan_like(), "t5")


def prompts_of_both_agents(n: int = 3) -> tuple[list[str], list[int]]:
    """Personalised and neutral prompts of the same queries, and their groups."""
    prompts, groups = [], []
    for number, user in enumerate(train_users(n=n)):
        for role in ("P", "N"):
            query = user.queries[0].text
            prompts.append(
                answer_prompt(
                    user.task, user.history, query, role=role, insight="likes short texts"
                )
            )
            groups.append(number)
    return prompts, groups


def test_a_mistral_prompt_has_one_bos_and_its_control_tokens_once(mistral: HFBackbone) -> None:
    codec, tokenizer = mistral.codec, mistral.codec.tokenizer
    opening, closing = tokenizer.convert_tokens_to_ids(["[INST]", "[/INST]"])
    prompt = "1. 5 is the rating score for product: handy\nYour answer:"
    [ids] = codec.prompts([prompt])
    assert codec.chat and ids[:2] == [tokenizer.bos_token_id, opening] and ids[-1] == closing
    assert [ids.count(token) for token in (tokenizer.bos_token_id, opening, closing)] == [1, 1, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt
    raw = codec_of(tokenizer, prompts_chat="raw")
    [plain] = raw.prompts([prompt])
    assert plain.count(tokenizer.bos_token_id) == 1 and opening not in plain


@pytest.mark.parametrize("answer", ["comedy", "5", "a handy kettle", "élan"])
def test_answers_have_the_ids_of_the_templates_own_turn(mistral: HFBackbone, answer: str) -> None:
    codec, tokenizer = mistral.codec, mistral.codec.tokenizer
    whole = tokenizer.apply_chat_template(turns("rate it", answer), tokenize=False)
    expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
    found = codec.prompts(["rate it"])[0] + codec.answers([answer])[0] + [codec.eos_id]
    assert found == expected
    raw = codec_of(tokenizer, prompts_chat="raw")
    joined = raw.prompts(["Your answer:"])[0] + raw.answers([answer])[0]
    assert joined == tokenizer(f"Your answer: {answer}")["input_ids"]
    assert raw.decode(torch.tensor([raw.answers([answer])[0]])) == [answer]


@pytest.mark.parametrize(
    ("template", "control", "closes"),
    [
        (QWEN, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    ],
)
def test_after_a_line_break_the_answer_has_no_blank_and_the_turn_its_own_end(
    template: str, control: list[str], closes: str
) -> None:
    tokenizer = byte_level_like(template, control)
    end = tokenizer.convert_tokens_to_ids(closes)
    codec = codec_of(tokenizer, eos_ids=[tokenizer.eos_token_id, end])
    prompt = codec.wrap("rate it")
    assert prompt.endswith("\n") and prompt.count("rate it") == 1
    assert tokenizer.decode(codec.answers(["comedy"])[0]) == "comedy"
    assert codec.eos_id == end and set(codec.eos_ids) == {end, tokenizer.eos_token_id}
    text = prompt + "comedy" + closes
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert codec.prompts(["rate it"])[0] + codec.answers(["comedy"])[0] + [end] == expected
    # A model that does not stop at the token that closes a turn keeps the tokenizer's own end.
    other = codec_of(tokenizer)
    assert other.eos_id == tokenizer.eos_token_id


def test_a_template_that_thinks_aloud_is_told_not_to() -> None:
    tokenizer = byte_level_like(QWEN, ["<|im_start|>", "<|im_end|>"])
    codec = codec_of(tokenizer)
    assert codec.wrap("rate it").endswith("<think>\n\n</think>\n\n")


def test_a_template_that_refuses_the_models_turn_still_asks() -> None:
    tokenizer = byte_level_like(
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}"
        "{% endif %}[Q]{{ m.content }}[/Q]{% endfor %}",
        ["[Q]", "[/Q]"],
    )
    codec = codec_of(tokenizer)
    assert codec.wrap("hi") == "[Q]hi[/Q]" and codec.eos_id == tokenizer.eos_token_id
    assert tokenizer.decode(codec.answers(["comedy"])[0]) == " comedy"


def test_left_padded_chat_prompts_of_one_query_share_their_start_and_change_nothing(
    mistral: HFBackbone,
) -> None:
    prompts, groups = prompts_of_both_agents()
    assert prepared_positions(mistral, prompts, groups) < 0.8 * prepared_positions(mistral, prompts)
    edit = make_edit("last", rows=len(prompts))
    expected = [naive.greedy(mistral, prompt, N) for prompt in prompts]
    assert mistral.generate(prompts, max_new_tokens=N, groups=groups) == expected
    assert mistral.generate(
        prompts, max_new_tokens=N, edit=edit, groups=groups
    ) == mistral.generate(prompts, max_new_tokens=N, edit=edit)


def test_a_flan_prompt_closes_with_its_end_and_the_decoder_starts_from_padding(
    flan: HFBackbone,
) -> None:
    codec, tokenizer = flan.codec, flan.codec.tokenizer
    prompt = prompts_of_both_agents(1)[0][0]
    [ids] = codec.prompts([prompt])
    assert not codec.chat and ids[-1] == codec.eos_id == 1 and ids.count(1) == 1
    assert "\n" in prompt and tokenizer.unk_token_id not in ids  # line breaks are mere blanks
    assert codec.answers(["handy"])[0] == tokenizer("handy")["input_ids"][:-1]
    batch = flan.read_inputs(codec.prompts([prompt, "short"]), codec.answers(["handy", ""]))
    assert batch.inputs["decoder_input_ids"][:, 0].tolist() == [0, 0] == [codec.pad_id] * 2
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [
        flan.count_tokens(prompt), flan.count_tokens("short")
    ]  # fmt: skip
    expected = [naive.greedy(flan, text, N) for text in (prompt, "short")]
    assert flan.generate([prompt, "short"], max_new_tokens=N) == expected


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
    "{% if add_generation_prompt %} >{% endif %}"
)




def test_decoder_answers_follow_a_blank_and_carry_no_special_token() -> None:
    codec = codec_of(make_tokenizer(closes=False))
    ids = codec.answers(["comedy", ""])
    assert codec.tokenizer.decode(ids[0]) == " comedy"
    assert ids[1] == [] and not {0, 1, 2} & set(ids[0])
    assert codec.prompts(["a prompt"])[0][0] == 2


def test_a_decoder_prompt_never_ends_in_eos() -> None:
    assert codec_of(make_tokenizer(closes=True)).prompts(["a prompt"])[0][-1] != 1


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
