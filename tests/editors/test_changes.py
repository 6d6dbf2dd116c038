"""What edits add to weights, and a batch whose rows have edits of their own."""

from __future__ import annotations

import pytest
import torch

from chameleon_lib.editors import EDITORS, ROME, LoRA
from chameleon_lib.editors.changes import Change, _batches, _RowChanges, answer_rows
from chameleon_lib.editors.released import as_released
from chameleon_lib.errors import UserError
from tests.backbones.tiny import make_backbone
from tests.editors.test_editors import ASKED, FAMILIES, MAKERS, OTHER

QUESTIONS = ["What's my hobby, the hobby I like?", "Which movie tag fits?", "A robot?"]
ROOM = 6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", list(EDITORS))
def test_a_batch_of_edited_rows_answers_as_the_edited_models_do(name: str, family: str) -> None:
    backbone = make_backbone(family)
    editor, alone, changes, weights = MAKERS[name](backbone), [], [], []
    plain = {n: m.weight.detach().clone() for n, m in backbone.model.named_modules()
             if hasattr(m, "weight")}  # fmt: skip
    for requests in ([ASKED], [OTHER, ASKED]):
        with editor.edit(*requests) as undo:
            alone += backbone.generate(QUESTIONS, max_new_tokens=ROOM, groups=[0] * 3)
            changes.append(undo.changes())
            weights.append([editor.site.weight.detach().clone()] if name != "LoRA" else [])
    for own, after in zip(changes, weights, strict=True):
        for change, weight in zip(own, after, strict=False):
            before = plain[change.module]
            before = before.T if family == "gpt2" else before
            assert (change.matrix + before - weight).abs().max() < 1e-6 < change.matrix.abs().max()
    prompts = backbone.codec.prompts(QUESTIONS)
    # The last owner has nothing changed, and its rows answer as the model itself does.
    owners = [0] * 3 + [1] * 3 + [2] * 3
    found = answer_rows(backbone, prompts * 3, owners, [*changes, ()], ROOM)
    unedited = backbone.generate(QUESTIONS, max_new_tokens=ROOM, groups=[0] * 3)
    assert found == [*alone, *unedited]
    assert not any(module._forward_hooks for module in backbone.model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("name", list(EDITORS))
def test_the_logits_of_a_row_are_those_of_the_edited_model(name: str, family: str) -> None:
    backbone = make_backbone(family)
    editor = MAKERS[name](backbone)
    ids = backbone.codec.prompts(QUESTIONS[:1] * 2)
    inputs = {"input_ids": torch.tensor(ids)}
    if family == "t5":
        inputs["decoder_input_ids"] = torch.zeros(2, 1, dtype=torch.long)
    base = backbone.model(**inputs).logits
    with editor.edit(ASKED) as undo:
        edited = backbone.model(**inputs).logits
        changes = undo.changes()
    with _RowChanges(backbone.model, [changes, ()]) as active:
        active.owners = [0, 1]
        found = backbone.model(**inputs).logits
    assert (found[0] - edited[0]).abs().max() < 1e-4
    assert (found[1] - base[1]).abs().max() < 1e-6
    assert (edited[0] - base[0]).abs().max() > 1e-3


def test_several_changes_of_one_module_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right, whole, x = (
        torch.rand(*shape, generator=generator) for shape in ((4, 2), (2, 3), (4, 3), (1, 5, 3))
    )
    low, dense = Change("m", left, right), Change("m", whole)
    assert torch.allclose(low.of(x), x @ (left @ right).T) and low.matrix.shape == (4, 3)
    both = _RowChanges(torch.nn.ModuleDict({"m": torch.nn.Linear(3, 4)}), [[low, dense]])
    both.owners = [0]
    assert torch.allclose(
        both._added(x, {0: [low, dense]}), x @ (left @ right + whole).T, atol=1e-6
    )


def test_adalora_as_released_tells_what_it_adds() -> None:
    backbone = make_backbone("llama")
    with LoRA(backbone, steps=3, released=as_released()).edit(ASKED) as undo:
        alone = backbone.generate(QUESTIONS, max_new_tokens=ROOM)
        changes = undo.changes()
    prompts = backbone.codec.prompts(QUESTIONS)
    assert answer_rows(backbone, prompts, [0] * 3, [changes], ROOM) == alone


def test_changes_are_told_of_the_latest_edit_alone_and_no_prompt_is_cut() -> None:
    backbone = make_backbone("llama")
    editor = ROME(backbone, prefixes=[], steps=2)
    with editor.edit(ASKED) as first, editor.edit(OTHER) as second:
        assert second.changes()
        with pytest.raises(UserError, match="not the latest in its model"):
            first.changes()
    with pytest.raises(UserError, match="not the latest in its model"):
        second.changes()
    with pytest.raises(UserError, match="reads at most"):
        answer_rows(backbone, [[5] * 10_000], [0], [()], ROOM)


def test_questions_are_not_padded_to_the_length_of_talks() -> None:
    lengths, owners = [9, 400, 12, 380, 8, 10, 390, 11], [0, 0, 0, 1, 1, 2, 2, 2]
    batches = _batches(lengths, owners, 100_000)
    assert sorted(row for batch in batches for row in batch) == list(range(8))
    assert [{lengths[row] > 100 for row in batch} for batch in batches] == [{False}, {True}]
    for batch in batches:  # what the hooks need: one owner's rows side by side
        own = [owners[row] for row in batch]
        assert own == sorted(own, key=own.index)
    assert _batches([9, 12, 8], [0, 1, 1], 100_000) == [[0, 2, 1]]


def test_changes_may_leave_the_reading_of_a_prompt_to_the_model_as_it_is() -> None:
    backbone = make_backbone("llama")
    with MAKERS["FT-M"](backbone).edit(ASKED) as undo:
        changes = undo.changes()
    prompts = backbone.codec.prompts(QUESTIONS)
    found = answer_rows(backbone, prompts, [0, 1, 0], [changes, ()], ROOM, frozen_prompts=True)
    expected = []
    for at, text in enumerate(QUESTIONS):
        read = backbone.prepare([text])
        with _RowChanges(backbone.model, [changes if at != 1 else ()]) as active:
            active.owners = [0]
            expected += backbone.generate_prepared(read, max_new_tokens=ROOM)
    assert found == expected
