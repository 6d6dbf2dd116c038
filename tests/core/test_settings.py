"""Settings refuse unknown options and contradictions, and list every ambiguity."""

from __future__ import annotations

import json

import pytest

from chameleon_lib.core.settings import NOT_OFFERED, EditSettings, ambiguity_ledger
from chameleon_lib.errors import UserError


def test_the_ledger_names_every_ambiguity_with_its_reason() -> None:
    rows = ambiguity_ledger()
    ids = {row["id"] for row in rows}
    assert ids == {f"A{i}" for i in range(1, 24)} | {f"B{i}" for i in range(1, 11)}
    assert all(row["help"] for row in rows)
    assert [row["id"] for row in rows][0] == "A1" and rows[-1]["id"] == "B10"
    settings = EditSettings()
    for row in rows:
        assert getattr(settings, row["field"]) == row["default"]


@pytest.mark.parametrize(
    "changes",
    [
        {"edit_order": "both"},
        {"selection_k": 0},
        {"ccs_lr": 0.0},
        {"ccs_lr": float("nan")},
        {"ccs_epochs": 10.5},
        {"infer_edit": 1},
        {"seed": True},
        {"insight_template": ""},
        {"insight_template": "my_template.txt"},
        {"edit_alpha_p": -1.0},
        {"ccs_probe": "mlp"},
        {"layers_rule": "top_k"},
        {"layers_k": 3},
        {"layers_rule": "top_k", "layers_k": 0},
        {"selection_rule": "oldest"},
        {"selection_seed": -1},
        {"selection_rule": "random", "selection_n_components": 5},
        {"selection_rule": "recent", "selection_center": "none"},
        {"selection_rule": "nearest", "selection_norm": "l1"},
        {"pairs_text": "answer_history"},
        {"pairs_text": "answer_history", "embed_pooling": "mean_answer"},
        {"decode_temperature": 0.7},
        {"group_draws": 2},
        {"group_seeds": (0, 0, 1)},
        {"group_seeds": "012"},
        {"eval_user_mode": "unseen", "infer_insight_in_prompt": True},
        {"theta_method": "fitted", "edit_sign_gate": "class_mean"},
        {"theta_method": "fitted", "edit_site": "gate_proj"},
        {"decode_do_sample": True, "decode_num_beams": 4},
        {"decode_num_beams": 2, "edit_positions": "generated"},
        {"controls_label_token": ("none",)},
        {"fit_holdout": 1.0},
        {"no_such_field": 1},
    ],
)
def test_bad_values_and_contradictions_raise(changes: dict[str, object]) -> None:
    with pytest.raises(UserError):
        EditSettings().with_(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_rule": "top_k", "layers_k": 5},
        {"selection_rule": "random", "selection_seed": 3},
        {"selection_rule": "nearest", "selection_item_text": "body"},
        {"selection_n_components": 5, "selection_center": "none", "selection_norm": "l1"},
        {"pairs_text": "answer_history", "embed_pooling": "mean_all"},
        {"decode_do_sample": True, "decode_temperature": 0.7},
        {"decode_num_beams": 4, "edit_positions": "all"},
        {"theta_method": "fitted", "edit_site": "block_out"},
        {"group_draws": 1, "group_seeds": [7]},
    ],
)
def test_sensible_combinations_pass(changes: dict[str, object]) -> None:
    assert EditSettings().with_(**changes) != EditSettings()


def test_canonical_form_is_json_and_ignores_the_spelling_of_numbers() -> None:
    whole = EditSettings().with_(edit_alpha_p=2)
    exact = EditSettings().with_(edit_alpha_p=2.0)
    assert whole == exact
    assert json.dumps(whole.canonical()) == json.dumps(exact.canonical())
    assert whole.canonical() != EditSettings().canonical()


def test_settings_of_a_key_are_those_that_start_with_a_prefix() -> None:
    assert set(EditSettings().starting("layers_", "theta_")) == {
        "layers_rule", "layers_k", "layers_loss_stat", "theta_method"
    }  # fmt: skip


@pytest.mark.parametrize(("field", "value", "offered"), NOT_OFFERED)
def test_a_known_reading_that_is_not_offered_is_refused_in_one_sentence(
    field: str, value: str, offered: str
) -> None:
    rows = [row for row in ambiguity_ledger() if row["field"] == field]
    assert value in rows[0]["options"] and rows[0]["default"] == offered
    with pytest.raises(UserError) as caught:
        EditSettings().with_(**{field: value})
    sentence = str(caught.value)
    assert field in sentence and repr(value) in sentence and repr(offered) in sentence
    assert sentence.endswith(".") and ". " not in sentence
