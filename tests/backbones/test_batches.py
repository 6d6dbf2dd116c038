"""Batches and prefixes: who runs together, what is padded, and what is used again."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from chameleon_lib.backbones.batches import common_prefix, pad, plan_batches
from chameleon_lib.backbones.prefix import GrowingLayer, unwrap_cache, wrap_cache
from chameleon_lib.core.backbone import DecodeSettings
from chameleon_lib.errors import UserError
from tests.backbones.tiny import ANSWERS, GROUPS, PROMPTS, make_backbone, make_edit


def test_every_row_is_in_exactly_one_batch_within_the_limits() -> None:
    lengths = [(7 * i) % 50 + 1 for i in range(300)]
    batches = plan_batches(lengths, max_rows=20, token_budget=400)
    assert sorted(row for rows in batches for row in rows) == list(range(300))
    for rows in batches:
        assert len(rows) <= 20
        assert len(rows) * max(lengths[row] for row in rows) <= 400


def test_rows_of_a_group_stay_together() -> None:
    lengths = [10, 50, 11, 51, 12, 52]
    assert plan_batches(lengths, groups=[0, 0, 1, 1, 2, 2], max_rows=2) == [[0, 1], [2, 3], [4, 5]]


def test_common_prefix_counts_shared_tokens() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix([[5, 6]]) == 2
    assert common_prefix([[], [1]]) == 0
    assert common_prefix([[1, 9], [1, 2, 9], [1, 2, 3]]) == 1


def test_padding_goes_to_the_named_side() -> None:
    ids, mask = pad([[1], [2, 3]], value=0, side="left", device=torch.device("cpu"))
    assert ids.tolist() == [[0, 1], [2, 3]] and mask.tolist() == [[0, 1], [1, 1]]
    ids, mask = pad([[1], [2, 3]], value=0, side="right", device=torch.device("cpu"))
    assert ids.tolist() == [[1, 0], [2, 3]] and mask.tolist() == [[1, 0], [1, 1]]
    assert pad([[], []], value=0, side="left", device=torch.device("cpu"))[0].shape == (2, 0)


def random_states(width: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, width, 4), torch.randn(rows, 2, width, 4)


def test_the_growing_layer_holds_what_the_stock_layer_holds() -> None:
    growing, stock = GrowingLayer(), DynamicLayer()
    for step, width in enumerate([5, 1, 1, 40, 1, 2]):
        states = random_states(width, rows=2 if step > 3 else 3)
        if step == 4:
            for layer in (growing, stock):
                layer.batch_select_indices(torch.tensor([2, 0]))
        grown, kept = growing.update(*states), stock.update(*states)
        assert torch.equal(grown[0], kept[0]) and torch.equal(grown[1], kept[1])
        assert growing.get_seq_length() == stock.get_seq_length()


def test_growing_a_wrapped_cache_leaves_the_shared_states_alone() -> None:
    shared = (random_states(6), random_states(6))
    before = [tensor.clone() for pair in shared for tensor in pair]
    cache = wrap_cache(shared, growing=True)
    for layer in range(2):
        cache.update(*random_states(2), layer)
    assert unwrap_cache(cache)[0][0].shape[-2] == 8
    after = [tensor for pair in shared for tensor in pair]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_rows_of_a_prefix_can_be_taken() -> None:
    for family in ("mistral", "t5"):
        backbone = make_backbone(family)
        prefix = backbone.prepare(PROMPTS).batches[0].prefix
        assert prefix is not None
        part = prefix.take([2, 0])
        assert torch.equal(part.lengths, prefix.lengths[[2, 0]])
        stored, taken = (prefix.key_values or prefix.cross), (part.key_values or part.cross)
        assert torch.equal(taken[0][0][1], stored[0][0][0])
        assert 0 < part.nbytes < prefix.nbytes


MAIN = ("mistral", "gpt2", "t5")
ROWS = [4, 0, 3, 0]  # another order, and one prompt twice


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", MAIN)
@pytest.mark.parametrize("positions", ["last", "all", "generated"])
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_chosen_rows_score_and_answer_as_if_they_alone_had_been_prepared(
    family: str, positions: str, groups: list[int] | None
) -> None:
    backbone, edit = make_backbone(family), make_edit(positions)
    chosen = backbone.rows(backbone.prepare(PROMPTS, groups=groups), ROWS)
    alone = backbone.prepare([PROMPTS[row] for row in ROWS])
    answers = [ANSWERS[row] for row in ROWS]
    assert len(chosen) == len(ROWS)
    for use in (None, edit):
        assert close(
            backbone.score(chosen, answers, edit=use), backbone.score(alone, answers, edit=use)
        )
        found = backbone.generate_prepared(chosen, max_new_tokens=5, edit=use)
        assert found == backbone.generate_prepared(alone, max_new_tokens=5, edit=use)
    noisy = DecodeSettings(do_sample=True, seed=3)
    sampled = backbone.generate_prepared(chosen, max_new_tokens=5, decode=noisy)
    assert sampled == backbone.generate_prepared(alone, max_new_tokens=5, decode=noisy)


@pytest.mark.parametrize("family", MAIN)
def test_nothing_is_computed_for_rows_and_all_rows_share_the_stored_prefix(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make_backbone(family)
    prepared = backbone.prepare(PROMPTS)
    monkeypatch.setattr(type(backbone), "prefill", lambda *_: pytest.fail("computed again"))
    chosen = backbone.rows(prepared, ROWS)
    [batch], [whole] = chosen.batches, backbone.rows(prepared, range(len(PROMPTS))).batches
    stored = prepared.batches[0].prefix
    assert batch.prefix is not None and stored is not None
    assert batch.prefix.mask.shape[1] == stored.mask.shape[1]  # the width of the batch stays
    assert whole.rows == prepared.batches[0].rows and whole.prefix is stored
    assert len(backbone.rows(prepared, [])) == 0
    assert backbone.score(backbone.rows(prepared, []), []).tolist() == []


@pytest.mark.parametrize("family", MAIN)
def test_a_per_row_edit_has_one_row_per_chosen_prompt(family: str) -> None:
    backbone, edit = make_backbone(family), make_edit(rows=len(PROMPTS))
    prepared = backbone.prepare(PROMPTS)
    chosen, answers = backbone.rows(prepared, ROWS), [ANSWERS[row] for row in ROWS]
    with pytest.raises(UserError, match="4 prompts but an edit of 6 rows"):
        backbone.score(chosen, answers, edit=edit)
    own = backbone.score(chosen, answers, edit=edit.rows(ROWS))
    assert close(own, backbone.score(prepared, ANSWERS, edit=edit)[ROWS])


def test_rows_of_several_batches_come_back_in_the_order_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = make_backbone("mistral")
    expected = backbone.score(backbone.prepare(PROMPTS), ANSWERS)
    monkeypatch.setattr("chameleon_lib.backbones.hf.plan_batches", _two_by_two)
    prepared = backbone.prepare(PROMPTS)
    assert [batch.rows for batch in prepared.batches] == [[0, 1], [2, 3], [4, 5]]
    chosen = backbone.rows(prepared, [5, 0, 1, 4])
    assert [batch.rows for batch in chosen.batches] == [[1, 2], [3, 0]]  # in bucket order
    found = backbone.score(chosen, [ANSWERS[row] for row in (5, 0, 1, 4)])
    assert close(found, expected[[5, 0, 1, 4]])


def _two_by_two(lengths: list[int], **_: object) -> list[list[int]]:
    return [[row, row + 1] for row in range(0, len(lengths), 2)]


def test_rows_taken_in_inference_mode_still_serve_a_gradient() -> None:
    backbone = make_backbone("mistral")
    with torch.inference_mode():
        chosen = backbone.rows(backbone.prepare(PROMPTS), ROWS)
    edit = make_edit()
    edit.theta_p.requires_grad_()
    backbone.score(chosen, [ANSWERS[row] for row in ROWS], edit=edit).sum().backward()
    assert edit.theta_p.grad is not None and bool(edit.theta_p.grad.abs().max() > 0)


@pytest.mark.parametrize("rows", [[6], [-1], [0, 99]])
def test_a_number_that_no_prompt_has_is_refused(rows: list[int]) -> None:
    backbone = make_backbone("mistral")
    with pytest.raises(IndexError, match=f"no prompt {rows[-1]} among 6"):
        backbone.rows(backbone.prepare(PROMPTS), rows)
