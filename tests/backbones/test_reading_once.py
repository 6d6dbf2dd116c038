"""Prompts beyond memory: read once for all that is asked about them, or once and kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from chameleon_lib.backbones import HFBackbone, batches, filed
from chameleon_lib.backbones.filed import FiledPrefix, free_memory
from chameleon_lib.core.backbone import DecodeSettings
from tests.backbones.tiny import ANSWERS, PROMPTS, make_backbone, make_edit

MAIN = ("mistral", "t5")
SAMPLED = DecodeSettings(do_sample=True, temperature=1.0)


@pytest.fixture(params=MAIN)
def backbone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HFBackbone:
    """A tiny model that has no memory for prefixes and small batches, and counts its readings."""
    monkeypatch.setattr(batches, "MAX_ROWS", 2)
    monkeypatch.setitem(batches.plan_batches.__kwdefaults__, "max_rows", 2)
    found = make_backbone(request.param)
    found.prefix_bytes = 0
    found.readings = []
    prefill = found.prefill

    def counted(prompts: Sequence[list[int]], groups: Sequence[int] | None) -> Any:
        found.readings.append(len(prompts))
        return prefill(prompts, groups)

    monkeypatch.setattr(found, "prefill", counted)
    return found


def filed_prompts(backbone: HFBackbone) -> Any:
    prepared = backbone.prepare(PROMPTS, filed=True)
    assert all(isinstance(batch.prefix, FiledPrefix) for batch in prepared.batches)
    return prepared


def test_states_come_back_from_their_file_bit_for_bit(backbone: HFBackbone) -> None:
    for batch in filed_prompts(backbone).batches:
        assert isinstance(batch.prefix, FiledPrefix)
        kept, anew = batch.prefix.load(), backbone.prefill(batch.prompts, batch.groups)
        pairs = zip(kept.key_values + kept.cross, anew.key_values + anew.cross, strict=True)
        for ours, theirs in pairs:
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        if anew.encoder is not None:
            assert kept.encoder is not None and torch.equal(kept.encoder, anew.encoder)
        assert torch.equal(kept.mask, anew.mask) and torch.equal(kept.lengths, anew.lengths)


def test_rows_of_a_file_are_those_of_memory(backbone: HFBackbone) -> None:
    rows, answers = [3, 0, 3], [ANSWERS[3], ANSWERS[0], ANSWERS[1]]
    prepared = filed_prompts(backbone)
    read = len(backbone.readings)
    taken = backbone.rows(backbone.rows(prepared, [0, 2, 3]), [2, 0, 2])
    edit = make_edit("last")
    found = backbone.score(taken, answers, edit=edit)
    assert len(backbone.readings) == read
    backbone.prefix_bytes = 1 << 30
    kept = backbone.score(backbone.rows(backbone.prepare(PROMPTS), rows), answers, edit=edit)
    assert torch.equal(found, kept)


def test_a_gradient_flows_through_states_of_a_file(backbone: HFBackbone) -> None:
    prepared, edit = filed_prompts(backbone), make_edit("last")
    edit.theta_p.requires_grad_()
    backbone.score(prepared, ANSWERS[: len(PROMPTS)], edit=edit).sum().backward()
    assert edit.theta_p.grad is not None and float(edit.theta_p.grad.norm()) > 0


def test_bfloat16_is_kept_as_it_is(tmp_path: Path) -> None:
    backbone = make_backbone("mistral")
    backbone.model.to(torch.bfloat16)
    prefix = backbone.prefix_of(backbone.prepare(PROMPTS).batches[0], None)
    again = FiledPrefix(prefix, tmp_path).take([1]).load()
    assert again.key_values[0][0].dtype == torch.bfloat16
    assert torch.equal(again.key_values[-1][1], prefix.key_values[-1][1][[1]])
    assert not list(tmp_path.iterdir())  # the file has no name that an end could leave behind


@pytest.mark.parametrize("decode", [None, SAMPLED])
def test_in_turn_gives_what_all_at_once_gives_and_reads_once(
    backbone: HFBackbone, decode: DecodeSettings | None
) -> None:
    prompts = [*PROMPTS, PROMPTS[0]]  # a sample of the same prompt is another one
    edits = [None, make_edit("last"), make_edit("last", rows=len(prompts))]
    whole = backbone.prepare(prompts)
    wanted = [
        backbone.generate_prepared(whole, max_new_tokens=5, edit=edit, decode=decode)
        for edit in edits
    ]
    backbone.readings.clear()
    found = [[""] * len(prompts) for _ in edits]
    for rows, part in backbone.in_turn(whole):
        for edit, texts in zip(edits, found, strict=True):
            own = None if edit is None else edit.rows(rows)
            said = backbone.generate_prepared(part, max_new_tokens=5, edit=own, decode=decode)
            for row, text in zip(rows, said, strict=True):
                texts[row] = text
    assert found == wanted
    assert sum(backbone.readings) == len(prompts)


def test_a_full_disk_costs_time_and_nothing_else(
    backbone: HFBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = backbone.score(filed_prompts(backbone), ANSWERS[: len(PROMPTS)])
    monkeypatch.setattr(filed, "_SPARE", 1 << 60)
    prepared = backbone.prepare(PROMPTS, filed=True)
    assert all(batch.prefix is None for batch in prepared.batches)
    assert torch.equal(backbone.score(prepared, ANSWERS[: len(PROMPTS)]), wanted)


def test_free_memory_is_that_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(filed, "_LIMIT", most)
    monkeypatch.setattr(filed, "_USED", used)
    everything = free_memory(torch.device("cpu"))
    assert everything > 1 << 20
    most.write_text("5000\n")
    used.write_text("2000\n")
    assert free_memory(torch.device("cpu")) == 3000
    most.write_text("max\n")
    assert free_memory(torch.device("cpu")) > 1 << 20


def test_batches_of_a_wide_model_are_small_on_a_cpu() -> None:
    backbone = make_backbone("mistral")
    narrow = backbone.token_budget
    backbone.model.config.hidden_size = 1024
    assert backbone.token_budget == batches.TOKEN_BUDGET // 8 and narrow == batches.TOKEN_BUDGET
