"""Token rows are the very ids that the kit scores; and the dialogues mixed into ALOE's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from chameleon_lib.backbones import HFBackbone, backbone_from
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import PAPER_TASKS, answer_prompt, unseen_prompt
from chameleon_lib.demo.world import WorldSettings, build_world
from chameleon_lib.errors import UserError
from chameleon_lib.rivals.rows import (
    Dialogue,
    GoldExample,
    answer_rows,
    choose_mix,
    dialogue_rows,
    gold_examples,
    load_mix,
    pair_rows,
)
from chameleon_lib.rivals.settings import AloeSettings
from tests.backbones.tiny import make_backbone, make_model, make_tokenizer
from tests.rivals.planted import FAMILIES, contrasts, examples, prompt

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


@pytest.mark.parametrize("task", PAPER_TASKS)
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


def test_a_dialogue_that_the_chat_template_refuses_is_named() -> None:
    backbone = chat_backbone()
    backbone.codec.tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(UserError, match="refuses dialogue d: no system turn"):
        dialogue_rows(backbone.codec, [TALK])


ROW = {
    "id": "a",
    "conversations": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ],
}


def codeact(path: Path) -> AloeSettings:
    return AloeSettings(mix="codeact", mix_path=str(path))


def test_the_stand_in_is_forty_short_dialogues_that_end_in_an_answer() -> None:
    found = load_mix(AloeSettings(mix="standin"))
    assert len(found) == 40 and len({dialogue.id for dialogue in found}) == 40
    assert len({dialogue.turns for dialogue in found}) == 40
    assert sum(len(dialogue.turns) > 2 for dialogue in found) > 30  # multi-turn
    for dialogue in found:
        roles = [role for role, _ in dialogue.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(text == text.strip() != "" for _, text in dialogue.turns)
    assert load_mix(AloeSettings(mix="none")) == []


def test_a_local_copy_is_read_from_json_lines_and_parquet(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.json", "a.jsonl", "a.parquet")]
    files[0].write_text(json.dumps([ROW]))
    files[1].write_text(json.dumps(ROW) + "\n\n")
    pd.DataFrame([ROW]).to_parquet(files[2])
    turns = (("system", "Be short."), ("user", "Hi"), ("assistant", "Hello"))
    for path in files:
        assert load_mix(codeact(path)) == [Dialogue("a", turns)]  # cut after the last answer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "must hold a list"),
        ('[{"id": "a"}]', "Record 0 of .* needs an id and conversations"),
        ('[{"id": "a", "conversations": [{"role": "bot", "content": ""}]}]', "has role 'bot'"),
        ('[{"id": "a", "conversations": [{"role": "user", "content": "x"}]}]', "no conversation"),
    ],
)
def test_a_file_that_is_no_mix_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mix.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_mix(codeact(path))
    with pytest.raises(UserError, match="no file"):
        load_mix(codeact(tmp_path / "absent.json"))


def test_a_fraction_or_a_count_of_dialogues_is_drawn_by_the_seed() -> None:
    settings = AloeSettings(mix="standin", share=0.25)
    everything = load_mix(settings)
    drawn = choose_mix(everything, settings, 7, 0)
    assert len(drawn) == 10 and len({dialogue.id for dialogue in drawn}) == 10
    assert choose_mix(everything, settings, 7, 0) == drawn
    assert choose_mix(everything, settings, 7, 1) != drawn
    count = settings.with_(mix_ratio="count")
    assert len(choose_mix(everything, count, 7, 0)) == 7
    assert choose_mix(everything, count, 400, 0) == everything
    assert choose_mix([], settings, 7, 0) == []
