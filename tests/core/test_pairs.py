"""Insights, both answers, pair texts, and the hash of their wording."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from chameleon_lib.backbones import backbone_from
from chameleon_lib.core import pairs as module
from chameleon_lib.core.pairs import (
    ROLES,
    PreferencePair,
    PreparedUser,
    answer_pairs,
    check_pair_count,
    decode_settings,
    fit_context,
    keep_different,
    max_new_tokens,
    pair_texts,
    prompts_digest,
    within,
    write_insights,
    write_query_insights,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import (
    ANSWER_CUE,
    PAPER_TASKS,
    HistoryItem,
    Query,
    User,
    answer_prompt,
    history_block,
    query_line,
    unseen_prompt,
)
from chameleon_lib.demo.world import WorldSettings, build_world
from chameleon_lib.errors import UserError
from tests.backbones.tiny import make_backbone
from tests.core.scripted import by_role, scripted

SETTINGS = EditSettings(decode_insight_tokens=8, decode_max_new_tokens=4)


def users_of(task: str, queries: int = 2) -> list[User]:
    settings = WorldSettings(users=(3, 0, 0), queries=queries, history=(4, 6))
    return build_world(task, settings).users["train"]


def prepared_users(task: str, queries: int = 2) -> list[PreparedUser]:
    return [
        PreparedUser(user, user.history, f"taste of {user.id}", f"style for {user.id}")
        for user in users_of(task, queries)
    ]


def pair(answer_p: str, answer_n: str, query_id: str = "q") -> PreferencePair:
    items = (HistoryItem("1", "A robot meets a clown", "comedy"),)
    return PreferencePair("u", query_id, "A duke hides a monk", items, answer_p, answer_n, "LaMP_2")


@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_the_two_prompts_of_a_query_are_one_text_up_to_the_agent(task: str) -> None:
    backbone = scripted(by_role("a", "b"))
    users = prepared_users(task)
    pairs = answer_pairs(backbone, users, SETTINGS)
    prompts = iter(zip(backbone.prompts[::2], backbone.prompts[1::2], strict=True))
    for user in users:
        for query in user.user.queries:
            p, n = next(prompts)
            shared = os.path.commonprefix([p, n])
            start = f"{history_block(task, user.items)}\n{query_line(task, query.text)}\nQuestion:"
            assert shared.startswith(start) and shared.endswith("\nYou are a ")
            assert user.insight_p in p and user.insight_p not in n
            assert user.insight_n in n and user.insight_n not in p
            assert p.endswith(ANSWER_CUE) and n.endswith(ANSWER_CUE)
    assert [(x.answer_p, x.answer_n) for x in pairs] == [("a", "b")] * 6
    assert backbone.groups == [0] * 4 + [1] * 4 + [2] * 4  # a user's prompts share their start


def test_pairs_keep_user_query_and_answers_together() -> None:
    backbone = scripted(lambda prompt: f"answer to {hash(prompt)}")
    users = prepared_users("LaMP_2")
    pairs = answer_pairs(backbone, users, SETTINGS)
    expected = [(u.user.id, q.id, q.text, u.items) for u in users for q in u.user.queries]
    assert [(x.user_id, x.query_id, x.query, x.items) for x in pairs] == expected
    said = [f"answer to {hash(prompt)}" for prompt in backbone.prompts]
    assert [text for x in pairs for text in (x.answer_p, x.answer_n)] == said
    assert answer_pairs(backbone, [], SETTINGS) == []


@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_golds_are_out_of_reach(task: str) -> None:
    def told(gold: str | None) -> tuple[list[str], list[PreferencePair]]:
        backbone = scripted(lambda prompt: f"{len(prompt)} {sum(prompt.encode())}")
        users = [
            replace(u, user=replace(u.user, queries=tuple(
                replace(query, gold=gold or query.gold) for query in u.user.queries
            )))
            for u in prepared_users(task)
        ]  # fmt: skip
        return backbone.prompts, answer_pairs(backbone, users, SETTINGS)

    assert told(None) == told("RUBBISH")
    assert not any("RUBBISH" in text for text in told("RUBBISH")[0])


def test_identical_outputs_leave_as_whole_records_and_are_counted() -> None:
    pairs = [
        pair("comedy", "classic", "1"),
        pair("comedy", "comedy", "2"),
        pair("Dark  Comedy", "dark comedy", "3"),
        pair("", "classic", "4"),
        pair("classic", "  ", "5"),
        pair("classic", "comedy", "6"),
    ]
    kept, identical = keep_different(pairs, SETTINGS)
    assert kept == [pairs[0], pairs[5]] and identical == pairs[1:5]
    exact, same = keep_different(pairs, SETTINGS.with_(pairs_drop_identical="exact"))
    assert exact == [pairs[0], pairs[2], pairs[5]] and len(exact) + len(same) == len(pairs)


LAYOUTS = {
    "history_query_answer": "{h}\n{q}\nYour answer:",
    "history_answer": "{h}\nYour answer:",
    "query_answer": "{q}\nYour answer:",
    "answer_only": "",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pair_texts_differ_in_the_answer_alone(layout: str) -> None:
    one = pair("comedy", "classic")
    texts = pair_texts("LaMP_2", one, SETTINGS.with_(pairs_text=layout))
    block, line = history_block("LaMP_2", one.items), query_line("LaMP_2", one.query)
    context = LAYOUTS[layout].format(h=block, q=line)
    assert texts == [(context, "comedy"), (context, "classic")]


def test_the_layout_with_the_history_last_puts_it_behind_the_answer() -> None:
    one = pair("comedy", "classic")
    settings = SETTINGS.with_(pairs_text="answer_history", embed_pooling="mean_all")
    block = history_block("LaMP_2", one.items)
    assert pair_texts("LaMP_2", one, settings) == [
        ("", f"comedy\n{block}"),
        ("", f"classic\n{block}"),
    ]


def test_a_user_is_asked_with_the_insights_of_the_scope() -> None:
    [user] = prepared_users("LaMP_2")[:1]
    own, first, second = (user.insight_p, user.insight_n), ("p1", "n1"), ("p2", "n2")
    rich = replace(user, query_insights=(first, second))
    assert user.insights_for("user") == rich.insights_for("user") == [own, own]
    assert rich.insights_for("query") == [first, second]
    with pytest.raises(ValueError, match=f"User {user.user.id} was prepared without an insight"):
        user.insights_for("query")


@pytest.mark.parametrize(
    "empty",
    [{"insight_p": ""}, {"insight_n": ""}, {"query_insights": (("p", "n"), ("p", ""))}],
)
def test_one_empty_insight_makes_a_user_incomplete(empty: dict[str, Any]) -> None:
    [user] = prepared_users("LaMP_2")[:1]
    whole = replace(user, query_insights=(("p", "n"), ("p", "n")))
    assert user.complete and whole.complete
    assert not replace(whole, **empty).complete


def test_the_insights_of_a_query_stand_in_its_own_prompts() -> None:
    def rich(user: PreparedUser) -> PreparedUser:
        own = tuple((f"p of {query.id}", f"n of {query.id}") for query in user.user.queries)
        return replace(user, query_insights=own)

    users = [rich(user) for user in prepared_users("LaMP_2")]
    backbone = scripted(by_role("a", "b"))
    answer_pairs(backbone, users, SETTINGS.with_(insight_scope="query"))
    queries = [query for user in users for query in user.user.queries]
    assert len(backbone.prompts) == 2 * len(queries)
    for at, query in enumerate(queries):
        p, n = backbone.prompts[2 * at : 2 * at + 2]
        assert query.text in p and f"p of {query.id}." in p and f"n of {query.id}." in n
    assert not any(user.insight_p in prompt for user in users for prompt in backbone.prompts)


def test_the_pair_limit_has_a_sharp_edge_and_none_is_never_enough() -> None:
    check_pair_count(32, SETTINGS.with_(pairs_k_min=32))
    with pytest.raises(UserError, match="31 pairs .* or set pairs_on_too_few to 'warn'"):
        check_pair_count(31, SETTINGS.with_(pairs_k_min=32))
    with pytest.raises(UserError, match="0 pairs .*: pool more users[.]$"):
        check_pair_count(0, SETTINGS.with_(pairs_on_too_few="warn"))


def test_few_pairs_are_warned_about_once_in_the_same_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = SETTINGS.with_(pairs_on_too_few="warn", pairs_k_min=4321)  # no other test's words
    for n_pairs in (7, 8, 7, 8, 7):
        check_pair_count(n_pairs, settings)
    said = [record.getMessage() for record in caplog.records]
    assert [sentence.split()[0] for sentence in said] == ["7", "8"]
    assert all(sentence.endswith("pairs_k_min = 4321: pool more users.") for sentence in said)


def words_needed(user: User, n_items: int, query: str) -> int:
    """Words of the longer of the two prompts, with room for insight and answer."""
    prompts = [
        answer_prompt(user.task, user.history[:n_items], query, role=role, insight="-")
        for role in ("P", "N")
    ]
    return max(len(prompt.split()) for prompt in prompts) + 8 + 4


@pytest.mark.parametrize("task", list(PAPER_TASKS))
@pytest.mark.parametrize("room", [1, 3])
def test_what_does_not_fit_is_dropped_from_the_end_of_the_history(task: str, room: int) -> None:
    user = users_of(task)[0]
    longest = max((query.text for query in user.queries), key=lambda text: len(text.split()))
    limit = words_needed(user, room, longest)
    for more, n in ((0, room), (-1, room - 1)):
        backbone = scripted(str, limit=limit + more)
        kept = fit_context(backbone, user, user.history, SETTINGS)
        # Where not even the first fits, a shorter one behind it may.
        assert kept == user.history[:n] or (n == 0 and len(kept) == 1 and kept != user.history[:1])
    assert fit_context(scripted(str), user, user.history, SETTINGS) == user.history
    assert fit_context(scripted(str, limit=5), user, user.history, SETTINGS) == ()


@pytest.mark.parametrize("places", [(1,), (0,), (0, 2), (0, 1, 2)])
def test_a_long_item_takes_no_place_of_those_behind_it(places: tuple[int, ...]) -> None:
    user = users_of("LaMP_3")[0]
    items = list(user.history[:6])
    for at in places:
        items[at] = replace(items[at], text="word " * 5000)
    room = words_needed(user, 6, max((query.text for query in user.queries), key=len))
    kept = fit_context(scripted(str, limit=room + 20), user, items, SETTINGS)
    assert kept == tuple(item for at, item in enumerate(items) if at not in places)
    # One that fits beside the others stays.
    items[places[0]] = replace(items[places[0]], text="word " * 20)
    kept = fit_context(scripted(str, limit=room + 30), user, items[:6], SETTINGS)
    assert items[places[0]] in kept


def test_a_long_item_is_cut_before_any_is_dropped_and_a_short_one_is_left_as_it_is() -> None:
    user = users_of("LaMP_3")[0]
    long = replace(user.history[0], text="one two\nthree  four five six")
    short = replace(user.history[1], text="one two\nthree  four")
    kept = fit_context(scripted(str), user, [long, short], SETTINGS.with_(prompts_item_words=4))
    assert kept == (replace(long, text="one two three four …"), short) and kept[1] is short
    limit = words_needed(replace(user, history=kept), 2, max(q.text for q in user.queries))
    tight = scripted(str, limit=limit)
    huge = replace(long, text="word " * 500)
    assert len(fit_context(tight, user, [huge, short], SETTINGS)) == 1
    assert len(fit_context(tight, user, [huge, short], SETTINGS.with_(prompts_item_words=4))) == 2


def test_the_query_with_most_tokens_decides_not_the_one_with_most_letters() -> None:
    """Many short words cost more tokens than few long ones."""
    user = users_of("LaMP_7")[0]
    texts = ("a b c d e f g h i j k l", "extraordinarily long-winded conversationalists")
    assert len(texts[0]) < len(texts[1])
    asked = tuple(Query(str(i), text, text, None) for i, text in enumerate(texts))
    crowded = replace(user, queries=asked)
    backbone = scripted(str, limit=words_needed(user, 2, texts[0]))
    kept = fit_context(backbone, crowded, user.history, SETTINGS)
    assert kept == user.history[:2]
    users = [PreparedUser(crowded, kept, "eight words " * 4, "eight words " * 4)]
    answer_pairs(backbone, users, SETTINGS)
    assert all(backbone.fits(prompt, 4) for prompt in backbone.prompts)
    assert all(any(text in prompt for text in texts) for prompt in backbone.prompts)


def test_overflow_can_be_an_error_that_names_the_user() -> None:
    user = users_of("LaMP_2")[0]
    with pytest.raises(UserError, match=f"user {user.id} .* scripted"):
        settings = SETTINGS.with_(prompts_overflow="error")
        fit_context(scripted(str, limit=40), user, user.history, settings)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [({}, 16), ({"decode_max_new_tokens": 5}, 5)],
)
def test_one_decoding_object_comes_from_the_settings(changes: dict[str, Any], tokens: int) -> None:
    settings = EditSettings(
        decode_do_sample=True, decode_temperature=0.7, decode_seed=3, **changes
    )
    assert max_new_tokens("LaMP_2", settings) == tokens
    decode = decode_settings(settings)
    assert (decode.do_sample, decode.temperature, decode.seed) == (True, 0.7, 3)
    assert decode.num_beams == 1
    backbone = scripted(by_role("a", "b"))
    answer_pairs(backbone, prepared_users("LaMP_2"), settings)
    assert backbone.decodes == [(tokens, decode)]


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


@pytest.mark.parametrize("task", PAPER_TASKS)
@pytest.mark.parametrize("baseline", ["drop_insight_sentence", "drop_agent_block"])
def test_the_prompt_of_an_unseen_user_is_hashed_in_the_wording_of_the_settings(
    task: str, baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def listening(*args: Any, **rest: Any) -> str:
        written.append(unseen_prompt(*args, **rest))
        return written[-1]

    monkeypatch.setattr(module, "unseen_prompt", listening)
    prompts_digest(task, EditSettings(prompts_baseline=baseline))
    assert written == [unseen_prompt(task, "<query>", baseline=baseline)]  # type: ignore[arg-type]


def test_the_digest_repeats_and_changes_with_task_baseline_and_pair_text() -> None:
    choices: tuple[dict[str, Any], ...] = (
        {},
        {"prompts_baseline": "drop_agent_block"},
        {"prompts_fix_typos": True},
        {"pairs_text": "query_answer"},
    )
    found = [prompts_digest("LaMP_2", EditSettings(**changes)) for changes in choices]
    assert found == [prompts_digest("LaMP_2", EditSettings(**changes)) for changes in choices]
    assert len({*found, prompts_digest("LaMP_3", EditSettings())}) == len(choices) + 1
