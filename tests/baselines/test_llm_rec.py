"""LLM-REC on LaMP: what its prompts show, and what becomes of a summary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chameleon_lib.backbones.demo.world import WorldSettings, build_world
from chameleon_lib.baselines.llm_rec import LlmRecAnswers, llm_rec_answers, summary_tokens
from chameleon_lib.baselines.llm_rec_prompts import SUMMARY_CUE, variants_for
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.core.protocols import DecodeSettings
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import (
    ANSWER_CUE,
    answer_prompt,
    history_block,
    query_line,
)
from chameleon_lib.lamp.tasks import TASKS
from tests.backbones.demo.small import small_backbone
from tests.core.scripted import scripted

SETTINGS = EditSettings(decode_insight_tokens=8, decode_max_new_tokens=4)
CASES = [(task, name) for task in TASKS for name in variants_for(task)]
WITH_HISTORY = ("llm_rec_hist", "llm_rec_comb_hist", "llm_rec_basic_hist")


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


@pytest.mark.parametrize(("task", "name"), CASES)
def test_no_string_of_the_history_is_in_an_answer_prompt_that_drops_it(
    task: str, name: str
) -> None:
    users = prepared_users(task)
    result = llm_rec_answers(scripted(lambda _: "short"), users, name, SETTINGS)
    prompts = iter(result.prompts)
    for user in users:
        for _ in user.user.queries:
            prompt = next(prompts)
            shown = [item.text in prompt for item in user.user.history]
            assert shown == [name in WITH_HISTORY and item in user.items
                             for item in user.user.history]  # fmt: skip
            assert "INSIGHT" not in prompt
    assert not any("INSIGHT" in prompt for prompt in result.summary_prompts)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_the_summary_is_asked_about_the_query_and_the_items_of_instruct(
    task: str, name: str
) -> None:
    users = prepared_users(task)
    prompts = iter(llm_rec_answers(scripted(numbered), users, name, SETTINGS).summary_prompts)
    for user in users:
        for query in user.user.queries:
            prompt = next(prompts)
            start = query_line(task, query.text)
            if not name.startswith("llm_rec_basic"):
                start = f"{history_block(task, user.items)}\n{start}"
                instruct = answer_prompt(task, user.items, query.text, role="P", insight=None)
                assert instruct.startswith(f"{start}\n")
            wish, cue = prompt.removeprefix(f"{start}\n").split("\n")
            assert wish.startswith("Write one short summary") and cue == SUMMARY_CUE
            assert ("recommend" in wish) == name.startswith("llm_rec_comb")
            assert ("history" in wish) != name.startswith("llm_rec_basic")


@pytest.mark.parametrize("task", list(TASKS))
def test_the_basic_variant_does_not_notice_that_histories_are_swapped(task: str) -> None:
    users = prepared_users(task)
    turned = [*users[1:], users[0]]
    swapped = [
        replace(user, items=other.items, user=replace(user.user, history=other.user.history))
        for user, other in zip(users, turned, strict=True)
    ]

    def said(name: str, asked: list[PreparedUser]) -> LlmRecAnswers:
        return llm_rec_answers(scripted(numbered), asked, name, SETTINGS)

    assert said("llm_rec_basic", users) == said("llm_rec_basic", swapped)
    for name in ("llm_rec", "llm_rec_basic_hist"):
        assert all(
            a != b
            for a, b in zip(said(name, users).prompts, said(name, swapped).prompts, strict=True)
        )


def test_golds_are_out_of_reach() -> None:
    def said(gold: str) -> LlmRecAnswers:
        users = [
            replace(u, user=replace(u.user, queries=tuple(
                replace(query, gold=gold) for query in u.user.queries
            )))
            for u in prepared_users("LaMP_2")
        ]  # fmt: skip
        return llm_rec_answers(scripted(numbered), users, "llm_rec", SETTINGS)

    assert said("RUBBISH") == said("nonsense")
    assert "RUBBISH" not in str(said("RUBBISH"))


def test_every_query_gets_its_own_summary_and_answer_in_order() -> None:
    backbone = scripted(numbered)
    users = prepared_users("LaMP_3")
    result = llm_rec_answers(backbone, users, "llm_rec", SETTINGS)
    queries = [query for user in users for query in user.user.queries]
    assert len(result.texts) == len(queries) == 6 and len(set(result.prompts)) == 6
    assert list(result.summaries) == [numbered(prompt) for prompt in result.summary_prompts]
    assert list(result.texts) == [numbered(prompt) for prompt in result.prompts]
    for query, summary, prompt in zip(queries, result.summaries, result.prompts, strict=True):
        assert query.text in prompt and f": {summary}\n" in prompt
    assert backbone.prompts == [*result.summary_prompts, *result.prompts]


@pytest.mark.parametrize(
    ("name", "shared"),
    [("llm_rec", 1), ("llm_rec_basic", 0), ("llm_rec_hist", 2), ("llm_rec_basic_hist", 1)],
)
def test_prompts_that_start_with_one_history_are_grouped_by_user(name: str, shared: int) -> None:
    backbone = scripted(numbered)
    llm_rec_answers(backbone, prepared_users("LaMP_2"), name, SETTINGS)
    assert backbone.groups == [0, 0, 1, 1, 2, 2] * shared


@pytest.mark.parametrize("nothing", ["", " \n", "...", " . "])
@pytest.mark.parametrize("task", list(TASKS))
def test_an_empty_summary_is_counted_and_said_in_the_prompt(task: str, nothing: str) -> None:
    users = prepared_users(task)
    silent = users[1].user.queries[0].text

    def reply(prompt: str) -> str:
        if prompt.endswith(ANSWER_CUE):
            return "answer"
        return nothing if silent in prompt else "  both are\n loud "

    result = llm_rec_answers(scripted(reply), users, "llm_rec", SETTINGS)
    asked = [query.text for user in users for query in user.user.queries]
    assert result.empty_summaries == asked.count(silent) >= 1
    for text, summary, prompt in zip(asked, result.summaries, result.prompts, strict=True):
        assert summary == ("" if text == silent else "both are loud")
        assert ("There is no summary of what the " in prompt) == (text == silent)
        assert ("Summary of " in prompt) == (text != silent)


def test_users_of_one_task_are_needed() -> None:
    mixed = [*prepared_users("LaMP_2"), *prepared_users("LaMP_3")]
    with pytest.raises(UserError, match="one task"):
        llm_rec_answers(scripted(numbered), mixed, "llm_rec", SETTINGS)
    with pytest.raises(UserError, match="no users"):
        llm_rec_answers(scripted(numbered), [], "llm_rec", SETTINGS)


def test_lengths_decoding_and_the_baseline_reading_come_from_the_settings() -> None:
    assert summary_tokens(EditSettings()) == 120 and summary_tokens(SETTINGS) == 8
    settings = SETTINGS.with_(
        decode_do_sample=True, decode_seed=4, prompts_baseline="drop_agent_block"
    )
    backbone = scripted(numbered)
    result = llm_rec_answers(backbone, prepared_users("LaMP_2"), "llm_rec", settings)
    # The summary is greedy whatever the answers are.
    assert backbone.decodes == [
        (8, DecodeSettings()),
        (4, DecodeSettings(do_sample=True, seed=4)),
    ]
    assert not any("personalized assistant" in prompt for prompt in result.prompts)


@pytest.mark.parametrize("family", ["mistral", "t5"])
@pytest.mark.parametrize("name", ["llm_rec", "llm_rec_hist"])
def test_a_real_model_answers_and_its_margins_can_be_scored(family: str, name: str) -> None:
    backbone = small_backbone(family)
    users = prepared_users("LaMP_3")
    result = llm_rec_answers(backbone, users, name, SETTINGS)
    # Prompt by prompt the model says the same: order and grouping change nothing.
    for at in (0, 3, 5):
        (summary,) = backbone.generate([result.summary_prompts[at]], max_new_tokens=8)
        (text,) = backbone.generate([result.prompts[at]], max_new_tokens=4)
        assert " ".join(summary.split()) == result.summaries[at] and text == result.texts[at]
    scores = backbone.score(backbone.prepare(result.prompts), ["5"] * 6)
    assert scores.shape == (6,) and bool(torch.isfinite(scores).all())
    assert len(set(result.texts)) > 1
