from __future__ import annotations

from dataclasses import replace

import pytest

from chameleon_lib.backbones import backbone_from
from chameleon_lib.backbones.demo.world import WorldSettings, build_world
from chameleon_lib.core.insights import (
    with_query_insights,
    within,
    write_insights,
    write_query_insights,
)
from chameleon_lib.core.preferences import ROLES, PreparedUser, answer_pairs, fit_context
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import answer_prompt, history_block
from chameleon_lib.lamp.records import User
from tests.backbones.tiny import make_backbone
from tests.core.scripted import scripted

SETTINGS = EditSettings(decode_insight_tokens=8, decode_max_new_tokens=4)


@pytest.fixture(scope="module")
def users() -> list[User]:
    settings = WorldSettings(users=(3, 0, 0), queries=2, history=(4, 6))
    return build_world("LaMP_2", settings).users["train"]


def prepared(users: list[User]) -> list[PreparedUser]:
    return [PreparedUser(user, user.history, "own p", "own n") for user in users]


def test_insights_come_back_in_order_and_close_no_sentence(users: list[User]) -> None:
    replies = {"Conclude the user's": "  likes\n comedy. ", "Do not consider": "be brief..."}
    backbone = scripted(
        lambda prompt: next(text for key, text in replies.items() if key in prompt)
    )
    histories = [user.history for user in users]
    insights = write_insights(backbone, "LaMP_2", histories, SETTINGS)
    assert insights == [("likes comedy", "be brief")] * 3
    assert backbone.groups == [0, 0, 1, 1, 2, 2] and backbone.decodes[0][0] == 8
    for prompt, items in zip(backbone.prompts[::2], histories, strict=True):
        assert prompt.startswith(history_block("LaMP_2", items))
    assert write_insights(backbone, "LaMP_2", [], SETTINGS) == []


@pytest.mark.parametrize("text", ["", "  \n", ".", " . .", "..."])
def test_an_insight_without_content_comes_back_empty(text: str, users: list[User]) -> None:
    histories = [user.history for user in users]
    insights = write_insights(scripted(lambda _: text), "LaMP_2", histories, SETTINGS)
    assert insights == [("", "")] * 3
    per_query = write_query_insights(
        scripted(lambda _: text), "LaMP_2", prepared(users), SETTINGS
    )
    assert per_query == [[("", "")] * 2] * 3


def test_insights_per_query_are_asked_with_the_query(users: list[User]) -> None:
    def reply(prompt: str) -> str:
        role = "P" if "Conclude the user's" in prompt else "N"
        query = prompt.splitlines()[-2].removeprefix("Now, given a new description: ")
        return f"{role} minds {query}"

    backbone = scripted(reply)
    settings = SETTINGS.with_(decode_insight_tokens=32)
    found = write_query_insights(backbone, "LaMP_2", prepared(users), settings)
    assert found == [
        [(f"P minds {q.text}".rstrip(". "), f"N minds {q.text}".rstrip(". ")) for q in u.queries]
        for u in users
    ]
    assert backbone.groups == [0] * 4 + [1] * 4 + [2] * 4  # a user's prompts share their start
    for prompt, user in zip(backbone.prompts[::4], users, strict=True):
        assert prompt.startswith(history_block("LaMP_2", user.history))


def test_a_user_keeps_everything_else_and_gets_the_insights_of_each_query(
    users: list[User],
) -> None:
    stored = [[[f"p{at}", "n"], [f"P{at}", "N"]] for at in range(3)]  # as JSON brings them back
    found = with_query_insights(prepared(users), stored)  # type: ignore[arg-type]
    assert [user.query_insights for user in found] == [
        ((f"p{at}", "n"), (f"P{at}", "N")) for at in range(3)
    ]
    assert [(u.user, u.items, u.insight_p) for u in found] == [
        (user, user.history, "own p") for user in users
    ]


def test_an_insight_keeps_to_the_budget_of_the_prompt_and_ends_at_a_word(users: list[User]) -> None:
    words = "one two three four five six seven eight. nine ten"
    [pair] = write_insights(scripted(lambda _: words), "LaMP_2", [users[0].history], SETTINGS)
    assert pair == ("one two three four five six seven eight",) * 2
    assert within(scripted(str), words, 100) == words
    assert within(scripted(str), "  seven eight.  ", 2) == "seven eight"


@pytest.mark.parametrize("family", ["mistral", "t5"])
@pytest.mark.parametrize("chat", [False, True])
def test_an_insight_that_grows_when_it_is_read_again_still_leaves_a_prompt_that_fits(
    family: str, chat: bool, users: list[User]
) -> None:
    """Half a character is one token when it is written, and three when its mark is read."""
    backbone = make_backbone(family)
    if chat:
        tokenizer = backbone.codec.tokenizer
        tokenizer.chat_template = "{% for m in messages %}<bos> {{ m.content }} {% endfor %}"
        backbone = backbone_from(backbone.model, tokenizer, name="chat")
    user = replace(users[0], history=users[0].history[:1], queries=users[0].queries[:1])
    broken = "\ufffd" * 8 + " a quiet film " * 9
    assert backbone.count_tokens(broken) > 24
    for text in (broken, "\ufffd" * 40, "quiet films " * 40):
        line = within(backbone, text, 8)
        assert 0 < len(line) < len(text.strip()) and text.startswith(line)
        added = backbone.count_tokens(f"- {line}") - backbone.count_tokens("-")
        assert added <= 8
        assert within(backbone, text, 400) == " ".join(text.split())
    settings = SETTINGS.with_(prompts_overflow="error")
    asked = [
        answer_prompt("LaMP_2", user.history, user.queries[0].text, role=role, insight="-")
        for role in ROLES
    ]
    room = settings.decode_insight_tokens + settings.decode_max_new_tokens
    limit = max(map(backbone.count_tokens, asked)) + room  # not a token more than is asked for
    small = type("Small", (type(backbone),), {"context_limit": limit})(
        backbone.model, backbone.codec, name="small", fingerprint="x"
    )
    items = fit_context(small, user, user.history, settings)
    insight = within(small, broken, settings.decode_insight_tokens)
    ready = PreparedUser(user, items, insight, insight)
    [pair] = answer_pairs(small, [ready], settings)
    assert pair.user_id == user.id
    whole = replace(ready, insight_p=" ".join(broken.split()))
    with pytest.raises(UserError, match="reads at most"):
        answer_pairs(small, [whole], settings)
