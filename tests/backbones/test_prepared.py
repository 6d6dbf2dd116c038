from __future__ import annotations

import pytest
import torch

from chameleon_lib.core.protocols import DecodeSettings
from chameleon_lib.errors import UserError
from tests.backbones.tiny import ANSWERS, GROUPS, PROMPTS, make_backbone, make_edit

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
def test_a_batch_without_a_stored_prefix_stays_without_one(family: str) -> None:
    backbone = make_backbone(family)
    backbone.prefix_bytes = 0
    unstored = backbone.rows(backbone.prepare(PROMPTS), ROWS)
    assert [batch.prefix for batch in unstored.batches] == [None]
    answers = [ANSWERS[row] for row in ROWS]
    expected = backbone.score(backbone.prepare(PROMPTS), ANSWERS)[ROWS]
    assert close(backbone.score(unstored, answers), expected)


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
    monkeypatch.setattr("chameleon_lib.backbones.backbone.plan_batches", _two_by_two)
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
