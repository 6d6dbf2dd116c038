"""ALOE's fine-tuning: it learns on both families, repeats, and leaves no trace."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.families import MODEL_FAMILIES
from chameleon_lib.errors import UserError
from chameleon_lib.rivals import aloe as module
from chameleon_lib.rivals.aloe import train_aloe
from chameleon_lib.rivals.rows import IGNORED, AnswerRow, answer_rows
from chameleon_lib.rivals.tuned import tuned_backbone
from tests.backbones.tiny import CONFIGS, make_backbone, make_model
from tests.rivals.planted import FAMILIES, aloe, examples


def gold_logp(backbone: HFBackbone) -> torch.Tensor:
    prepared = backbone.prepare([example.prompt for example in examples()])
    with torch.no_grad():
        return backbone.score(prepared, [example.answer for example in examples()])


@pytest.mark.parametrize("params", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_the_gold_answers_and_repeats_bit_for_bit(family: str, params: str) -> None:
    backbone = make_backbone(family)
    rate = 2e-2 if params == "full" else 1e-1
    settings = aloe(params=params, loss_on="assistant", epochs=4, lr=rate)
    one = train_aloe(backbone, examples(), settings, seed=0)
    assert one.log.loss[-1] < 0.9 * one.log.loss[0]
    tuned = tuned_backbone(backbone, one)
    assert float((gold_logp(tuned) - gold_logp(backbone)).min()) > 0
    same = train_aloe(backbone, examples(), settings, seed=0)
    assert same.log == one.log
    assert all(torch.equal(same.tensors[name], one.tensors[name]) for name in one.tensors)
    log = one.log
    assert log.uses_gold and log.method == "aloe" and log.params == params
    assert (log.rows, log.steps, log.samples) == (8, 8, 32)
    counted = {"full": sum(p.numel() for p in backbone.model.parameters())}
    assert log.trainable_params == counted.get(params, sum(t.numel() for t in one.tensors.values()))


def test_training_leaves_the_process_and_the_disk_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets
    import trl  # noqa: F401  (importing may print and seed; that is not the training)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def reported(*_: Any, **__: Any) -> None:
        raise AssertionError("the training was reported to a server")

    monkeypatch.delenv("CI", raising=False)  # where it is set, TRL keeps quiet by itself
    # A test before this one may have imported it, and then progress is shown as in JupyterLab.
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", reported)
    backbones = [make_backbone(family) for family in FAMILIES]
    before = [{k: v.clone() for k, v in b.model.state_dict().items()} for b in backbones]
    bars, environment = datasets.are_progress_bars_disabled(), dict(os.environ)
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    capfd.readouterr()
    for backbone in backbones:
        train_aloe(backbone, examples(), aloe(packing="bfd", max_length=128, max_steps=2), seed=5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert repr(np.random.get_state()) == states[2]
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.rglob("*")) == []
    assert dict(os.environ) == environment
    assert datasets.are_progress_bars_disabled() == bars
    for backbone, old in zip(backbones, before, strict=True):
        assert not backbone.model.training
        assert not any(p.requires_grad for p in backbone.model.parameters())
        assert all(torch.equal(v, old[k]) for k, v in backbone.model.state_dict().items())


def trained_rows(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Any, Any]:
    """The data set that TRL trains on, and the token rows it was made of."""
    kept = {}
    build = module.decoder_trainer

    def noted(*args: Any) -> Any:
        trainer = build(*args)
        kept["data"], kept["rows"] = trainer.train_dataset, args[2]
        return trainer

    monkeypatch.setattr(module, "decoder_trainer", noted)
    settings = aloe(**changes)
    kept["log"] = train_aloe(make_backbone("mistral"), examples(), settings, seed=0).log
    return kept["data"], kept


def test_the_loss_covers_every_token_or_the_answer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data, kept = trained_rows(monkeypatch, loss_on="full", epochs=1)
    rows: list[AnswerRow] = kept["rows"]
    assert list(data["labels"]) == [[*row.prompt, *row.answer] for row in rows]
    tokens = sum(len(row.prompt) + len(row.answer) for row in rows)
    assert kept["log"].trained_tokens == tokens - len(rows)  # nothing predicts a first token
    assert kept["log"].forward_tokens == tokens
    monkeypatch.undo()
    data, kept = trained_rows(monkeypatch, loss_on="assistant", epochs=1)
    expected = [[IGNORED] * len(row.prompt) + row.answer for row in kept["rows"]]
    assert list(data["labels"]) == expected
    assert kept["log"].trained_tokens == sum(len(row.answer) for row in kept["rows"])


@pytest.mark.parametrize("packing", ["wrapped", "bfd"])
def test_packing_keeps_every_token(monkeypatch: pytest.MonkeyPatch, packing: str) -> None:
    data, kept = trained_rows(monkeypatch, packing=packing, max_length=100, epochs=1, mix="standin")
    rows: list[AnswerRow] = kept["rows"]
    packed = sorted(token for row in data["input_ids"] for token in row)
    assert packed == sorted(token for row in rows for token in [*row.prompt, *row.answer])
    assert max(len(row) for row in data["input_ids"]) <= 100
    assert len(data) < len(rows)
    log = kept["log"]
    assert log.samples == len(rows) == log.rows + log.mix_rows
    assert log.mix == "standin" and "mix=standin" in log.notes


@pytest.mark.parametrize("family", sorted(set(CONFIGS) - {"t5", "mt5", "umt5"}))
def test_bfd_is_offered_where_packed_documents_do_not_see_each_other(family: str) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    backbone = make_backbone(family)
    rows = [[*row.prompt, *row.answer] for row in answer_rows(backbone, examples(3))]
    collate = DataCollatorForLanguageModeling(0, padding_free=True)
    packed = {
        "input_ids": [token for row in rows for token in row],
        "seq_lengths": [len(row) for row in rows],
    }
    batch = collate([packed])
    model = make_model(family)
    with torch.no_grad():
        kept = {name: batch[name] for name in ("input_ids", "position_ids")}
        together = model(**kept, use_cache=False).logits[0]
        alone = torch.cat([model(torch.tensor([row])).logits[0] for row in rows])
    assert torch.allclose(together, alone, atol=1e-4) == MODEL_FAMILIES[family].packs
    if not MODEL_FAMILIES[family].packs:
        with pytest.raises(UserError, match="bfd is not offered for opt"):
            train_aloe(backbone, examples(), aloe(packing="bfd"), seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulated_batches_average_over_all_their_tokens(family: str) -> None:
    dry: dict[str, Any] = {"dropout_rate": 0.0} if family == "t5" else {}
    backbone = make_backbone(family, **dry)
    one = aloe(batch=8, accumulation=1, lr=1e-3, loss_on="assistant")
    whole = train_aloe(backbone, examples(), one.with_(max_steps=1), seed=0)
    split = one.with_(batch=2, accumulation=4)
    parts = train_aloe(backbone, examples(), split.with_(max_steps=1), seed=0)
    assert parts.log.loss == pytest.approx(whole.log.loss, abs=1e-5)
    answers = [example.answer for example in examples()]
    tokens = sum(len(ids) + 1 for ids in backbone.codec.answers(answers))
    expected = -float(gold_logp(backbone).sum()) / tokens
    # What is reported is what went backward, so a sum over micro-batches would show here.
    assert whole.log.loss[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_updates_too_small_for_bfloat16_weights_add_up(family: str) -> None:
    """At this rate a single step is lost in most weights of 16 bits; all steps together are not."""
    exact, rounded = make_backbone(family), make_backbone(family)
    rounded.model.to(torch.bfloat16)
    exact.model.to(torch.bfloat16).float()  # the same weights
    settings = aloe(lr=2e-5, epochs=40, schedule="constant")
    expected = train_aloe(exact, examples(), settings, seed=0)
    tuned = train_aloe(rounded, examples(), settings, seed=0)
    assert tuned.log.loss == expected.log.loss
    assert set(tuned.tensors) <= set(expected.tensors)
    for name, value in tuned.tensors.items():
        assert torch.equal(value, expected.tensors[name].to(torch.bfloat16))
    before = dict(rounded.model.named_parameters())
    moved = sum(int((value != before[name]).sum()) for name, value in tuned.tensors.items())
    assert moved > 0.2 * sum(value.numel() for value in before.values())
    note = "trained as a float32 copy, rounded to bfloat16 afterwards"
    assert note in tuned.log.notes and note not in expected.log.notes
    assert {value.dtype for value in before.values()} == {torch.bfloat16}
    after = dict(tuned_backbone(rounded, tuned).model.named_parameters())
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    assert all(torch.equal(after[name], value) for name, value in tuned.tensors.items())


def test_shares_lengths_and_dialogues_are_reported() -> None:
    backbone = make_backbone("mistral")
    tuned = train_aloe(
        backbone, examples(), aloe(share=0.5, mix="standin", max_length=8192, max_steps=1), seed=0
    )
    assert (tuned.log.queries, tuned.log.rows) == (4, 4)
    assert tuned.log.mix_rows <= 20
    assert any("at most 256 tokens" in note for note in tuned.log.notes)
    with pytest.raises(UserError, match="raise max_length"):
        train_aloe(backbone, examples(), aloe(max_length=16), seed=0)
    with pytest.raises(UserError, match="at least one gold example"):
        train_aloe(backbone, [], aloe(), seed=0)
    t5 = train_aloe(make_backbone("t5"), examples(), aloe(packing="bfd", max_steps=1), seed=0)
    assert any("not packed" in note for note in t5.log.notes)
