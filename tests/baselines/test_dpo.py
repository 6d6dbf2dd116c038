"""DPO: it learns on both families, repeats, and avoids the libraries' silent losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from chameleon_lib.baselines.dpo import train_dpo
from chameleon_lib.baselines.lora import silence_dropout
from chameleon_lib.baselines.tuning import tuned_backbone
from chameleon_lib.errors import UserError
from tests.backbones.tiny import CONFIGS, make_backbone, make_model
from tests.baselines.planted import FAMILIES, contrasts, dpo, margin


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_to_prefer_the_chosen_answers_and_repeats_bit_for_bit(family: str) -> None:
    backbone = make_backbone(family)
    settings = dpo(epochs=6, warmup=0.1)
    one = train_dpo(backbone, contrasts(8), settings, seed=0)
    assert one.log.loss[0] == pytest.approx(math.log(2), abs=1e-5)
    assert one.log.loss[-1] < 0.9 * one.log.loss[0]
    tuned = tuned_backbone(backbone, one)
    pairs = contrasts(12)[8:]
    gain = margin(tuned, pairs) - margin(backbone, pairs)
    assert float(gain.min()) > 0  # for users the training never saw

    same = train_dpo(backbone, contrasts(8), settings, seed=0)
    assert same.log == one.log
    assert all(torch.equal(same.tensors[name], one.tensors[name]) for name in one.tensors)
    other = train_dpo(backbone, contrasts(8), settings, seed=1, max_steps=3)
    assert other.log.loss[1:] != one.log.loss[1:3]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_log_counts_queries_ties_steps_and_tokens(family: str) -> None:
    backbone = make_backbone(family)
    tuned = train_dpo(backbone, contrasts(6, ties=4), dpo(epochs=3), seed=0)
    log = tuned.log
    assert (log.queries, log.ties, log.rows) == (10, 4, 6)
    assert (log.steps, log.samples) == (6, 18)  # batches of 4 and 2, three times
    codec = backbone.codec
    answers = [len(ids) + 1 for ids in codec.answers(["comedy", "action"])]
    assert log.trained_tokens == 18 * sum(answers)
    read = sum(len(ids) for ids in codec.prompts([c.prompt for c in contrasts(6)]))
    passes = {"mistral": 2, "t5": 1}[family]  # a decoder reads the prompt with each answer
    assert log.forward_tokens == (3 * passes + 1) * read + (18 + 6) * sum(answers)
    assert log.trainable_params == sum(t.numel() for t in tuned.tensors.values())
    assert not log.uses_gold and log.method == "dpo" and log.params == "lora"
    assert "beta=0.1" in log.assumed and any("nf4" in note for note in log.notes)
    assert log.seconds > 0


def test_share_counts_queries_and_max_steps_sizes_the_schedule() -> None:
    backbone = make_backbone("t5")
    half = train_dpo(backbone, contrasts(6, ties=6), dpo(share=0.5), seed=0, max_steps=3)
    assert half.log.queries == 6 and half.log.rows + half.log.ties == 6
    assert half.log.steps == 3
    gold = train_dpo(backbone, contrasts(4), dpo(pairs="gold"), seed=0, max_steps=1)
    assert gold.log.uses_gold


def test_only_ties_are_refused() -> None:
    backbone = make_backbone("t5")
    for pairs in ([], contrasts(0, ties=3)):
        with pytest.raises(UserError, match="at least one pair"):
            train_dpo(backbone, pairs, dpo(), seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapters_dropout_is_not_lost(family: str) -> None:
    backbone = make_backbone(family)
    settings = dpo(epochs=1, batch=8, warmup=0.0)
    dry = train_dpo(backbone, contrasts(8), settings.with_(lora_dropout=0.0), seed=0, max_steps=3)
    wet = train_dpo(backbone, contrasts(8), settings.with_(lora_dropout=0.5), seed=0, max_steps=3)
    assert dry.log.loss[0] == pytest.approx(wet.log.loss[0], abs=1e-6)  # B is still zero
    assert dry.log.loss[1:] != wet.log.loss[1:]


def test_rank_is_capped_by_the_width_and_keeps_its_scale() -> None:
    settings = dpo(lora_r=256, lora_alpha=128.0)
    tuned = train_dpo(make_backbone("t5"), contrasts(4), settings, seed=0, max_steps=1)
    assert tuned.adapter is not None
    assert (tuned.adapter["r"], tuned.adapter["lora_alpha"]) == (12, 6.0)
    assert any("rank 12 instead of 256" in note for note in tuned.log.notes)
    modules = set(tuned.adapter["target_modules"])
    assert {"q", "k", "v", "o", "wi_0", "wi_1", "wo"} == {m.split(".")[-1] for m in modules}


def test_the_learning_rate_warms_up_over_a_tenth_of_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    seen = {}
    for family in FAMILIES:
        rates.clear()
        train_dpo(make_backbone(family), contrasts(4), dpo(lr=5e-5), seed=0, max_steps=20)
        seen[family] = list(rates)
    assert seen["mistral"][:3] == pytest.approx([0.0, 2.5e-5, 5e-5])
    assert seen["mistral"] == pytest.approx(seen["t5"]) and len(seen["t5"]) == 20


_DROPOUT: dict[str, dict[str, Any]] = {
    "mistral": {"attention_dropout": 0.4},
    "gpt2": {"attn_pdrop": 0.4, "resid_pdrop": 0.4, "embd_pdrop": 0.4},
    "opt": {"dropout": 0.4, "attention_dropout": 0.4},
    "t5": {"dropout_rate": 0.4},
}


@pytest.mark.parametrize("family", _DROPOUT)
def test_a_silenced_model_trains_as_it_evaluates(family: str) -> None:
    assert family in CONFIGS
    model = make_model(family, **_DROPOUT[family])
    ids = torch.tensor([[5, 9, 30, 31, 7]])
    inputs = {"input_ids": ids, **({"labels": ids} if family == "t5" else {})}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        assert not torch.allclose(model.train()(**inputs).logits, expected)
        silence_dropout(model)
        assert torch.equal(model.train()(**inputs).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_and_policy_run_in_one_precision(family: str) -> None:
    settings = dpo(precision="bf16", warmup=0.0, epochs=4)
    tuned = train_dpo(make_backbone(family), contrasts(4), settings, seed=0)
    assert tuned.log.loss[0] == pytest.approx(math.log(2), abs=2e-2)
    assert tuned.log.loss[-1] < tuned.log.loss[0]


def test_t5_dropout_does_not_move_the_first_loss() -> None:
    backbone = make_backbone("t5", dropout_rate=0.4)
    tuned = train_dpo(backbone, contrasts(4), dpo(), seed=0, max_steps=1)
    assert tuned.log.loss[0] == pytest.approx(math.log(2), abs=1e-5)
    assert backbone.model.config.dropout_rate == 0.4
