from __future__ import annotations

import pytest

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.sections.history_ablation.conditions import (
    CONTROLS,
    DEMO,
    FULL,
    ITEMS,
    PAPER,
    RULES,
    Condition,
    conditions_of,
    item_numbers,
    prompt_length,
)


def test_the_full_design_has_every_rule_at_every_number_with_both_edits() -> None:
    found = conditions_of(ITEMS, FULL, 10)
    assert {(c.rule, c.k) for c in found} == {(r, k) for r in RULES for k in (5, 10, 15, 20, 25)}
    assert {c.arms for c in found} == {"fitted"} and len({c.name for c in found}) == len(found)
    assert FULL.tasks == ("LaMP_2", "LaMP_3")


def test_the_demo_runs_the_papers_rule_at_all_numbers_and_every_control_at_its_own() -> None:
    found = conditions_of(ITEMS, DEMO, 10)
    assert [c.k for c in found if c.rule == PAPER] == [5, 10, 15, 20, 25]
    assert {(c.rule, c.k) for c in found if c.rule != PAPER} == {(rule, 10) for rule in CONTROLS}
    assert {c.k for c in found if c.arms == "fitted"} == {10}
    assert "edit" in {c.arms for c in found if c.rule == "random"}
    assert DEMO.n_test >= 100  # fewer allow no verdict


@pytest.mark.parametrize("items", ["", "a,b", "0,10", "-5", "5;10", "5.5"])
def test_items_that_are_no_list_of_numbers_are_refused(items: str) -> None:
    with pytest.raises(UserError, match="whole numbers"):
        item_numbers(items)


def test_items_are_sorted_and_must_hold_the_papers_number() -> None:
    assert item_numbers(" 25, 5,10,5") == [5, 10, 25]
    with pytest.raises(UserError, match="about 10"):
        conditions_of("5,25", FULL, 10)


@pytest.mark.parametrize("rule", RULES)
def test_a_condition_is_told_from_its_name_and_sets_its_rule(rule: str) -> None:
    condition = Condition(rule, 15)
    assert Condition.parse(condition.name) == condition
    # Details of eq. 2 that the controls have no use for must not be in their way.
    base = EditSettings(selection_center="none", selection_norm="l1", selection_n_components=2)
    settings = condition.settings(base)
    assert settings.selection_k == 15 and rule.startswith(settings.selection_rule)
    centred = {"pca": "none", "pca raw": "components"}.get(rule, "both")
    assert settings.selection_center == centred


def test_more_than_ten_items_are_marked_for_the_embedded_models_alone() -> None:
    assert prompt_length(10, "demo:decoder:0") == "as trained"
    assert prompt_length(15, "demo:decoder:0") == "longer than trained"
    assert prompt_length(25, "google/flan-t5-base") == "within the context"
