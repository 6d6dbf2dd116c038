"""The prompts of LLM-REC on LaMP: which variants there are, and what a prompt shows."""

from __future__ import annotations

import pytest

from chameleon_lib.baselines.llm_rec import llm_rec_answers
from chameleon_lib.baselines.llm_rec_prompts import (
    VARIANTS,
    answer_prompt_with_summary,
    get_variant,
    summary_prompt,
    variants_for,
)
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import ANSWER_CUE, answer_prompt, unseen_prompt
from tests.baselines.test_llm_rec import CASES, SETTINGS, WITH_HISTORY, prepared_users
from tests.core.scripted import scripted


@pytest.mark.parametrize(("task", "name"), CASES)
def test_the_answer_prompt_is_instruct_with_the_summary_for_the_history(
    task: str, name: str
) -> None:
    for user in prepared_users(task):
        for query in user.user.queries:
            prompt = answer_prompt_with_summary(task, user.items, query.text, "a  b\nc", name)
            line = next(part for part in prompt.split("\n") if part.startswith("Summary of "))
            assert line.endswith(": a b c") and prompt.endswith(ANSWER_CUE)
            instruct = answer_prompt(task, user.items, query.text, role="P", insight=None)
            plain = instruct if name in WITH_HISTORY else unseen_prompt(task, query.text)
            assert prompt.replace(f"{line}\n", "") == plain


def test_a_variant_is_known_and_has_a_meaning_for_the_task() -> None:
    assert variants_for("LaMP_2") == variants_for("LaMP-3") == tuple(VARIANTS)
    assert set(VARIANTS) - set(variants_for("LaMP_7")) == {"llm_rec_comb", "llm_rec_comb_hist"}
    assert get_variant("llm_rec_hist", "LaMP_7").history
    with pytest.raises(UserError, match="'llm-rec'.*llm_rec_basic"):
        get_variant("llm-rec", "LaMP_2")
    user = prepared_users("LaMP_7")[0]
    for name in ("llm_rec_comb", "llm_rec_comb_hist"):
        with pytest.raises(UserError, match=f"{name} asks what would recommend .*LaMP-7"):
            llm_rec_answers(scripted(lambda _: ""), [user], name, SETTINGS)
        with pytest.raises(UserError, match="recommend"):
            summary_prompt("LaMP_7", user.items, "a tweet", name)
        with pytest.raises(UserError, match="recommend"):
            answer_prompt_with_summary("LaMP_7", user.items, "a tweet", "a summary", name)


def test_a_history_is_needed_where_the_prompt_shows_it() -> None:
    with pytest.raises(UserError, match="at least one item"):
        summary_prompt("LaMP_2", (), "a film", "llm_rec")
    assert "a film" in summary_prompt("LaMP_2", (), "a film", "llm_rec_basic")
