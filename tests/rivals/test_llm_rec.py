"""LLM-REC on LaMP: what its prompts show, and what becomes of a summary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chameleon_lib.core.backbone import DecodeSettings
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import (
    ANSWER_CUE,
    PAPER_TASKS,
    answer_prompt,
    history_block,
    query_line,
)
from chameleon_lib.core.task import unseen_prompt as unseen
from chameleon_lib.demo.world import WorldSettings, build_world
from chameleon_lib.errors import UserError
from chameleon_lib.rivals.llm_rec import SUMMARY_CUE, LlmRec, summary_tokens
from chameleon_lib.rivals.registry import prompted
from tests.core.scripted import scripted
from tests.demo.small import small_backbone

SETTINGS = EditSettings(decode_insight_tokens=8, decode_max_new_tokens=4)
VARIANTS = {rival.id: rival for rival in prompted() if isinstance(rival, LlmRec)}
CASES = [(task, name) for task in PAPER_TASKS for name, v in VARIANTS.items() if v.suits(task)]


def prepared_users(task: str, queries: int = 2, n: int = 3) -> list[PreparedUser]:
    """Users with four selected items; their insights would be noticed in a prompt."""
    settings = WorldSettings(users=(n, 0, 0), queries=queries, history=(5, 6))
    return [
        PreparedUser(user, user.history[:4], "INSIGHT P", "INSIGHT N")
        for user in build_world(task, settings).users["train"]
    ]


def numbered(prompt: str) -> str:
    """A reply that tells its prompt from every other."""
    return f"reply {len(prompt)} {sum(prompt.encode())}"


def asked(name: str, users: list[PreparedUser]) -> tuple[list[str], list[str]]:
    """Summary prompts and answer prompts, the summaries numbered."""
    backbone, rival = scripted(numbered), VARIANTS[name]
    written = rival.write(backbone, users, SETTINGS)
    assert written == [numbered(prompt) for prompt in backbone.prompts]
    return backbone.prompts, rival.prompts(users, written, SETTINGS)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_summary_of_query_and_history_stands_where_the_history_stood(
    task: str, name: str
) -> None:
    users = prepared_users(task)
    summaries, answers = map(iter, asked(name, users))
    for user in users:
        for query in user.user.queries:
            first, prompt = next(summaries), next(answers)
            start = query_line(task, query.text)
            if name != "llm_rec_basic":
                start = f"{history_block(task, user.items)}\n{start}"
                instruct = answer_prompt(task, user.items, query.text, role="P", insight=None)
                assert instruct.startswith(f"{start}\n")  # the items of Instruct
            wish, cue = first.removeprefix(f"{start}\n").split("\n")
            assert wish.startswith("Write one short summary") and cue == SUMMARY_CUE
            assert ("recommend" in wish) == (name == "llm_rec_comb")
            assert ("history" in wish) != (name == "llm_rec_basic")
            line, rest = prompt.split("\n", 1)
            assert line.startswith("Summary of ") and line.endswith(f": {numbered(first)}")
            assert rest == unseen(task, query.text)
            assert not any(item.text in prompt for item in user.user.history)
            assert "INSIGHT" not in first + prompt


@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_the_basic_variant_does_not_notice_that_histories_are_swapped(task: str) -> None:
    users = prepared_users(task)
    turned = [*users[1:], users[0]]
    swapped = [
        replace(user, items=other.items, user=replace(user.user, history=other.user.history))
        for user, other in zip(users, turned, strict=True)
    ]
    assert asked("llm_rec_basic", users) == asked("llm_rec_basic", swapped)
    own, others = asked("llm_rec", users)[1], asked("llm_rec", swapped)[1]
    assert all(a != b for a, b in zip(own, others, strict=True))


def test_golds_are_out_of_reach() -> None:
    def told(gold: str) -> tuple[list[str], list[str]]:
        users = [
            replace(u, user=replace(u.user, queries=tuple(
                replace(query, gold=gold) for query in u.user.queries
            )))
            for u in prepared_users("LaMP_2")
        ]  # fmt: skip
        return asked("llm_rec", users)

    assert told("RUBBISH") == told("nonsense") and "RUBBISH" not in str(told("RUBBISH"))


@pytest.mark.parametrize("nothing", ["", " \n", "...", " . "])
@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_an_empty_summary_is_said_in_the_prompt(task: str, nothing: str) -> None:
    users = prepared_users(task)
    silent = users[1].user.queries[0].text
    backbone = scripted(lambda prompt: nothing if silent in prompt else "  both are\n loud ")
    written = VARIANTS["llm_rec"].write(backbone, users, SETTINGS)
    prompts = VARIANTS["llm_rec"].prompts(users, written, SETTINGS)
    texts = [query.text for user in users for query in user.user.queries]
    assert silent in texts
    for text, summary, prompt in zip(texts, written, prompts, strict=True):
        assert summary == ("" if text == silent else "both are loud")
        assert ("There is no summary of what the " in prompt) == (text == silent)
        assert ("Summary of " in prompt) == (text != silent)


def test_what_has_no_meaning_is_refused() -> None:
    mixed = [*prepared_users("LaMP_2"), *prepared_users("LaMP_3")]
    write = VARIANTS["llm_rec"].write
    for users in (mixed, []):
        with pytest.raises(UserError, match="one task, got"):
            write(scripted(numbered), users, SETTINGS)
    bare = [replace(user, items=()) for user in prepared_users("LaMP_2")]
    with pytest.raises(UserError, match="at least one item"):
        write(scripted(numbered), bare, SETTINGS)
    assert VARIANTS["llm_rec_basic"].write(scripted(numbered), bare, SETTINGS)
    assert not VARIANTS["llm_rec_comb"].suits("LaMP_7")  # nobody recommends a tweet
    with pytest.raises(UserError, match="llm_rec_comb asks what would recommend .*LaMP-7"):
        VARIANTS["llm_rec_comb"].write(scripted(numbered), prepared_users("LaMP_7"), SETTINGS)


def test_length_decoding_and_groups_of_a_summary() -> None:
    assert summary_tokens(EditSettings()) == 120 and summary_tokens(SETTINGS) == 8
    settings = SETTINGS.with_(decode_do_sample=True, prompts_baseline="drop_agent_block")
    users = prepared_users("LaMP_2")
    for name, groups in (("llm_rec", [0, 0, 1, 1, 2, 2]), ("llm_rec_basic", [])):
        backbone = scripted(numbered)
        written = VARIANTS[name].write(backbone, users, settings)
        assert backbone.groups == groups  # prompts that start with one history
        assert backbone.decodes == [(8, DecodeSettings())]  # greedy whatever the answers are
        prompts = VARIANTS[name].prompts(users, written, settings)
        assert not any("personalized assistant" in prompt for prompt in prompts)
        assert all(prompt.endswith(ANSWER_CUE) for prompt in prompts)


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_a_real_model_answers_and_its_margins_can_be_scored(family: str) -> None:
    backbone, users = small_backbone(family), prepared_users("LaMP_3")
    rival = VARIANTS["llm_rec"]
    written = rival.write(backbone, users, SETTINGS)
    prompts = rival.prompts(users, written, SETTINGS)
    # Prompt by prompt the model says the same: order and grouping change nothing.
    (alone,) = backbone.generate(
        [rival.summary_prompt(users[1], users[1].user.queries[1])], max_new_tokens=8
    )
    assert " ".join(alone.split()) == written[3]
    scores = backbone.score(backbone.prepare(prompts), ["5"] * 6)
    assert scores.shape == (6,) and bool(torch.isfinite(scores).all())
    assert len(set(backbone.generate(prompts, max_new_tokens=4))) > 1
