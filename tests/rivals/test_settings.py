"""Settings of the trained baselines: the paper's values, and refusal of everything else."""

from __future__ import annotations

from typing import Any

import pytest

from chameleon_lib.core.backbone import Family
from chameleon_lib.errors import UserError
from chameleon_lib.rivals.settings import AloeSettings, DpoSettings

FAMILIES: tuple[Family, ...] = ("decoder", "encoder-decoder")


def test_dpo_defaults_are_those_of_appendix_a5() -> None:
    s = DpoSettings()
    assert (s.epochs, s.batch, s.accumulation, s.lr) == (1, 16, 1, 5e-5)
    assert (s.schedule, s.warmup, s.max_grad_norm) == ("cosine", 0.1, 0.3)
    assert (s.lora_r, s.lora_alpha, s.lora_dropout) == (256, 128.0, 0.05)
    assert (s.precision, s.beta, s.target_modules, s.pairs) == ("bf16", 0.1, "all-linear", "self")
    assert s.departures() == ()


def test_aloe_defaults_are_those_of_appendix_a5_and_need_a_local_copy_of_the_mix() -> None:
    with pytest.raises(UserError, match="mix codeact needs a local copy"):
        AloeSettings()
    s = AloeSettings(mix_path="codeact.parquet")
    assert (s.epochs, s.batch, s.accumulation, s.lr, s.max_length) == (1, 1, 48, 1e-5, 8192)
    assert (s.params, s.history, s.loss_on, s.mix) == ("full", "a3", "full", "codeact")
    assert (s.mix_ratio, s.packing, s.precision) == ("fraction", "wrapped", "bf16")
    assert s.departures() == ("mix_path=codeact.parquet",)


def test_values_the_paper_does_not_give_are_reported_as_assumed() -> None:
    named = {entry.split("=")[0] for entry in DpoSettings().assumptions()}
    assert named == {"beta", "target_modules", "pairs", "weight_decay"}
    assert "beta=0.9" in DpoSettings(beta=0.9).assumptions()
    named = {entry.split("=")[0] for entry in AloeSettings(mix="none").assumptions()}
    assert {"params", "history", "loss_on", "mix_ratio", "packing", "schedule"} <= named
    assert not {"lr", "epochs", "batch", "accumulation", "max_length"} & named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": "half"}, "choose one of full, lora"),
        ({"lr": "5e-4"}, "lr must be float"),  # what YAML makes of 5e-4
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "finite"),
        ({"share": 1.5}, "at most 1"),
        ({"share": 0.0}, "above 0"),
        ({"warmup": 1.0}, "below 1"),
        ({"batch": 0}, "at least 1"),
        ({"batch": True}, "batch must be int"),
        ({"max_steps": 0}, "at least 1"),
        ({"lora_dropout": 1.0}, "below 1"),
        ({"mix": "standin", "mix_path": "x.json"}, "mix_path belongs to mix codeact"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AloeSettings(**{"mix": "none", **change})


def test_the_papers_quantisation_is_no_departure_and_any_other_is_refused() -> None:
    assert DpoSettings(quantisation="nf4").departures() == ()
    with pytest.raises(UserError, match="quantisation"):
        DpoSettings(quantisation="int8")


def test_what_only_fits_a_training_into_memory_is_no_departure_and_divides_the_batch() -> None:
    small = DpoSettings(micro_batch=4, checkpointing=True)
    assert small.departures() == () and small.assumptions() == DpoSettings().assumptions()
    assert (small.at_once, DpoSettings().at_once) == (4, 16)
    assert small.canonical() != DpoSettings().canonical()
    with pytest.raises(UserError, match="micro_batch is 5, which does not divide batch 16"):
        DpoSettings(micro_batch=5)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(UserError, match="has no field 'learning_rate'"):
        DpoSettings().with_(learning_rate=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_demo_scale_says_what_it_changes(family: Family) -> None:
    aloe, dpo = AloeSettings.demo(family), DpoSettings.demo()
    assert any(entry.startswith("lr=") for entry in aloe.departures())
    assert any(entry.startswith("lr=") for entry in dpo.departures())
    assert (aloe.at_once, dpo.at_once) == (aloe.batch, dpo.batch)  # and nothing computed twice
    assert not aloe.checkpointing and not dpo.checkpointing
    assert aloe.mix == "standin" and aloe.precision == dpo.precision == "fp32"
    assert dpo.lora_alpha / dpo.lora_r == 0.5  # the paper's scale
    assert (dpo.beta, dpo.pairs, dpo.schedule, dpo.max_grad_norm) == (0.1, "self", "cosine", 0.3)
