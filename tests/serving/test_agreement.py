"""The comparison behind every export: it sees what it must see, in every precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.errors import UserError
from chameleon_lib.serving.agreement import View, compare, view
from chameleon_lib.serving.export import export_edit
from tests.backbones.naive import greedy
from tests.backbones.tiny import make_backbone
from tests.serving.exported import (
    PROMPTS,
    backbone_of,
    edit_of,
    hook_view,
    ids_of,
)


def _half(family: str, dtype: torch.dtype = torch.bfloat16) -> HFBackbone:
    backbone = make_backbone(family)
    backbone.model.to(dtype)
    return backbone


@pytest.mark.parametrize("family", ["mistral", "gpt2", "t5"])
def test_a_view_holds_the_tokens_of_plain_greedy_decoding(family: str) -> None:
    backbone = backbone_of(family)
    found = view(backbone, ids_of(backbone), None, new_tokens=5)
    texts = backbone.codec.decode(torch.tensor(found.tokens))
    assert texts == [greedy(backbone, prompt, 5) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["mistral", "gpt2", "t5"])
@pytest.mark.parametrize("form", ["peft", "merged"])
def test_in_bfloat16_a_right_export_stays_within_its_rounding(
    family: str, form: str, tmp_path: Path
) -> None:
    done = export_edit(edit_of(), _half(family), tmp_path / "a", form=form, prompts=PROMPTS)
    assert 0.05 < done.agreement.effect and done.agreement.error <= done.agreement.bound


def test_in_bfloat16_another_users_edit_is_told_apart() -> None:
    backbone = _half("mistral")

    def other(hook: View) -> View:
        return view(backbone, ids_of(backbone), edit_of(2), forced=hook.tokens)

    with pytest.raises(UserError, match="differs from the edit"):
        compare(backbone, edit_of(1), PROMPTS, other)


def _weak(backbone: HFBackbone) -> Edit:
    """An edit whose whole effect lies within the bound of bfloat16."""
    edit = edit_of(alpha_p=0.1, alpha_n=0.1)
    right = compare(backbone, edit, PROMPTS, lambda hook: hook)
    assert 0 < right.effect < right.bound
    return edit


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_in_bfloat16_neither_the_bare_base_nor_twice_the_edit_is_a_form_of_a_weak_edit(
    strength: float,
) -> None:
    backbone = _half("mistral")
    edit = _weak(backbone)
    other = replace(edit, alpha_p=strength * edit.alpha_p, alpha_n=strength * edit.alpha_n)

    def form(hook: View) -> View:
        return view(backbone, ids_of(backbone), other, forced=hook.tokens)

    with pytest.raises(UserError, match="too little effect .* in bfloat16; prove it in float32"):
        compare(backbone, edit, PROMPTS, form)


def _shifted(found: View, by: float) -> View:
    return replace(found, logits=tuple(row + by for row in found.logits))


def test_the_bound_is_2e_5_of_the_effect_and_not_a_number_fails() -> None:
    backbone, edit = backbone_of("mistral"), edit_of()
    right = hook_view(backbone, edit, n=8)
    effect = compare(backbone, edit, PROMPTS, lambda _: right).effect
    bound = 2e-5 * max(1.0, effect)
    compare(backbone, edit, PROMPTS, lambda _: _shifted(right, 0.9 * bound))
    for by in (1.1 * bound, float("nan")):
        with pytest.raises(UserError, match="differs from the edit"):
            compare(backbone, edit, PROMPTS, lambda _, by=by: _shifted(right, by))


def test_other_greedy_tokens_fail_even_where_logits_agree() -> None:
    backbone, edit = backbone_of("mistral"), edit_of()
    right = hook_view(backbone, edit, n=8)
    wrong = replace(right, tokens=((0,) * 8, *right.tokens[1:]))
    with pytest.raises(UserError, match="greedy tokens differ"):
        compare(backbone, edit, PROMPTS, lambda _: wrong)
