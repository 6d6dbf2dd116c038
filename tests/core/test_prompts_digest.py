"""The digest of a profile's prompts changes with every wording that a setting chooses."""

from __future__ import annotations

from typing import Any

import pytest

from chameleon_lib.core import prompts_digest as module
from chameleon_lib.core.prompts_digest import prompts_digest
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.lamp.prompts import unseen_prompt
from chameleon_lib.lamp.tasks import TASKS


@pytest.mark.parametrize("task", TASKS)
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
