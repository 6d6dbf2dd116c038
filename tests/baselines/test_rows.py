"""Token rows: the prompts of the kit, and the very ids that it scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chameleon_lib.backbones import HFBackbone, backbone_from
from chameleon_lib.backbones.demo.world import WorldSettings, build_world
from chameleon_lib.baselines.mix import Dialogue
from chameleon_lib.baselines.rows import (
    GoldExample,
    answer_rows,
    dialogue_rows,
    gold_examples,
    pair_rows,
)
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import answer_prompt, unseen_prompt
from chameleon_lib.lamp.tasks import TASKS
from tests.backbones.tiny import make_backbone, make_model, make_tokenizer
from tests.baselines.planted import FAMILIES, contrasts, examples, prompt

EOS, BOS = 1, 2
TALK = Dialogue("d", (("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye"), ("assistant", "So")))
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)


def users(task: str) -> list[PreparedUser]:
    world = build_world(task, WorldSettings(users=(3, 1, 1)))
    return [PreparedUser(user, user.history[:2], "p", "n") for user in world.users["train"]]


def chat_backbone() -> HFBackbone:
    tokenizer = make_tokenizer(closes=False)
    tokenizer.chat_template = CHAT
    return backbone_from(make_model("mistral"), tokenizer, name="chat")


@pytest.mark.parametrize("task", TASKS)
def test_gold_examples_are_the_plain_prompt_and_the_gold_answer(task: str) -> None:
    group, settings = users(task), EditSettings()
    found = gold_examples(group, settings)
    queries = [(user, query) for user in group for query in user.user.queries]
    assert len(found) == len(queries)
    for example, (user, query) in zip(found, queries, strict=True):
        plain = answer_prompt(task, user.items, query.text, role="P", insight=None)
        assert example == GoldExample(plain, str(query.gold), user.user.id)
    bare = gold_examples(group, settings, history="none")
    assert [e.prompt for e in bare] == [unseen_prompt(task, query.text) for _, query in queries]
    assert all(user.items[0].text not in e.prompt for e in bare for user in group)
    short = gold_examples(group, settings.with_(prompts_baseline="drop_agent_block"))
    assert len(short[0].prompt) < len(found[0].prompt)


def test_gold_examples_refuse_users_without_gold() -> None:
    group = users("LaMP_2")
    blind = tuple(replace(query, gold=None) for query in group[0].user.queries)
    hidden = [replace(group[0], user=replace(group[0].user, queries=blind))]
    with pytest.raises(UserError, match="has no gold answer"):
        gold_examples(hidden, EditSettings())
    with pytest.raises(UserError, match="history is 'all'"):
        gold_examples(group, EditSettings(), history="all")


@pytest.mark.parametrize("family", [*FAMILIES, "chat"])
def test_rows_hold_the_ids_that_score_reads_with_one_bos_and_one_eos(family: str) -> None:
    backbone = chat_backbone() if family == "chat" else make_backbone(family)
    codec = backbone.codec
    pairs = contrasts(3)
    for row, pair in zip(pair_rows(backbone, pairs), pairs, strict=True):
        assert row.prompt == codec.prompts([pair.prompt])[0]
        assert row.chosen == [*codec.answers([pair.chosen])[0], EOS]
        assert row.rejected == [*codec.answers(["action"])[0], EOS]
        assert row.chosen.count(EOS) == row.rejected.count(EOS) == 1
        assert row.prompt.count(BOS) == (0 if family == "t5" else 1)
        assert row.prompt.count(EOS) == (1 if family == "t5" else 0)  # T5 closes its encoder text
    for found, example in zip(answer_rows(backbone, examples(3)), examples(3), strict=True):
        assert found.prompt == codec.prompts([example.prompt])[0]
        assert found.answer == [*codec.answers([example.answer])[0], EOS]


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_log_probabilities_of_a_row_are_those_of_score(family: str) -> None:
    backbone = make_backbone(family)
    pairs = contrasts(3)
    prepared = backbone.prepare([pair.prompt for pair in pairs])
    expected = backbone.score(prepared, [pair.chosen for pair in pairs])
    for row, value in zip(pair_rows(backbone, pairs), expected, strict=True):
        ids = torch.tensor([[*row.prompt, *row.chosen]])
        logp = backbone.model(ids).logits.log_softmax(-1)[0]
        start = len(row.prompt)
        total = sum(logp[start - 1 + at, token] for at, token in enumerate(row.chosen))
        assert float(total) == pytest.approx(float(value), abs=1e-4)


def test_a_row_beyond_the_context_is_refused_and_never_cut() -> None:
    backbone = make_backbone("mistral", max_position_embeddings=16)
    with pytest.raises(UserError, match="reads at most 16"):
        answer_rows(backbone, examples(1))
    with pytest.raises(UserError, match="reads at most 16"):
        pair_rows(backbone, [Contrast(prompt(0), "a", "b", "u")])


def test_a_dialogue_is_named_turns_or_the_models_own_chat_format() -> None:
    plain = make_backbone("mistral")
    row = dialogue_rows(plain.codec, [TALK])[0]
    text = plain.codec.tokenizer.decode(row.prompt)
    assert text == "<bos>User: Hi\nAssistant: Yes?\nUser: Bye\nAssistant:"
    assert row.answer == [*plain.codec.answers(["So"])[0], EOS]
    chat = chat_backbone()
    row = dialogue_rows(chat.codec, [TALK])[0]
    text = chat.codec.tokenizer.decode(row.prompt)
    assert text == "<bos><user>Hi<assistant>Yes?<user>Bye<reply>"
    assert row.prompt.count(BOS) == 1


def test_a_dialogue_keeps_a_model_from_thinking_aloud_as_every_other_prompt_does() -> None:
    backbone = chat_backbone()
    backbone.codec.tokenizer.chat_template = (
        CHAT + "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    )
    row = dialogue_rows(backbone.codec, [TALK])[0]
    text = backbone.codec.tokenizer.decode(row.prompt)
    assert text == "<bos><user>Hi<assistant>Yes?<user>Bye<reply>"


def test_a_failure_that_is_not_the_templates_own_is_not_taken_for_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = chat_backbone()

    def broken(*_: object, **__: object) -> str:
        raise MemoryError("gone")

    monkeypatch.setattr(backbone.codec.tokenizer, "apply_chat_template", broken)
    with pytest.raises(MemoryError, match="gone"):
        dialogue_rows(backbone.codec, [TALK])


def test_without_a_chat_template_the_codec_renders_no_dialogue() -> None:
    with pytest.raises(ValueError, match="no chat template in use"):
        make_backbone("mistral").codec.dialogue(TALK.turns)


def test_a_dialogue_that_the_chat_template_refuses_is_named() -> None:
    backbone = chat_backbone()
    backbone.codec.tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(UserError, match="refuses dialogue d: no system turn"):
        dialogue_rows(backbone.codec, [TALK])
