"""DPO: its loss by definition and by TRL's; it learns, repeats, and loses nothing in silence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone, load_backbone
from chameleon_lib.errors import UserError
from chameleon_lib.rivals.dpo import (
    decoder_trainer,
    dpo_loss,
    pair_logp,
    reference_scores,
    train_dpo,
)
from chameleon_lib.rivals.rows import IGNORED, answer_logp, pair_rows
from chameleon_lib.rivals.tuned import lora_config, silence_dropout, tuned_backbone, undisturbed
from chameleon_lib.serving.merged import merged_weights
from tests.backbones.tiny import CONFIGS, make_backbone, make_edit, make_model, make_tokenizer
from tests.rivals.planted import FAMILIES, contrasts, dpo, margin


def test_the_loss_is_what_the_formula_says() -> None:
    chosen, rejected = torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -2.0])
    ref_chosen, ref_rejected = torch.tensor([-2.0, -3.0]), torch.tensor([-2.5, -1.0])
    margins = [(-1 + 2) - (-3 + 2.5), (-4 + 3) - (-2 + 1)]
    expected = sum(math.log1p(math.exp(-0.3 * m)) for m in margins) / 2
    found = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3)
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert float(dpo_loss(chosen, rejected, chosen, rejected, 0.3)) == pytest.approx(math.log(2))


class Case:
    """TRL's trainer on a tiny decoder, adapter perturbed, and one batch of it."""

    def __init__(self, family: str = "mistral", *, noise: float = 0.2) -> None:
        from chameleon_lib.rivals.trainers import arguments

        self.settings = dpo(batch=6, lora_dropout=0.0)
        self.pairs = contrasts(6)
        self.backbone: HFBackbone = make_backbone(family)
        self.reference = reference_scores(self.backbone, self.pairs, self.settings)
        self.rows = pair_rows(self.backbone, self.pairs)
        model = make_model(family)
        silence_dropout(model)
        with undisturbed(torch.device("cpu")) as folder:
            self.trainer = decoder_trainer(
                self.backbone,
                model,
                self.rows,
                self.reference,
                self.settings,
                arguments(self.settings.with_(max_steps=1), 0, folder, torch.device("cpu")),
                lora_config(self.backbone, self.settings)[0],
            )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in self.trainer.model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * noise)
        data = self.trainer.train_dataset
        self.batch: dict[str, Tensor] = self.trainer.data_collator([data[at] for at in range(6)])

    def policy(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of chosen and rejected answers from the model's own logits."""
        ids, mask = self.batch["input_ids"], self.batch["attention_mask"]
        with torch.no_grad():
            output = self.trainer.model(input_ids=ids, attention_mask=mask)
        labels = ids.masked_fill(self.batch["completion_mask"] == 0, IGNORED)
        chosen, rejected = answer_logp(output.logits[:, :-1], labels[:, 1:]).chunk(2)
        return chosen, rejected

    def library_loss(self) -> float:
        self.trainer.model.train()
        with torch.no_grad():
            return float(self.trainer.compute_loss(self.trainer.model, dict(self.batch)))


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_our_loss_equals_the_librarys_on_a_perturbed_policy(family: str) -> None:
    case = Case(family)
    chosen, rejected = case.policy()
    reference = case.reference
    own = dpo_loss(chosen, rejected, reference[:, 0], reference[:, 1], case.settings.beta)
    assert abs(float(own) - math.log(2)) > 1e-2  # the policy did move
    assert float(own) == pytest.approx(case.library_loss(), abs=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the library asks for its own old name
def test_the_librarys_own_reference_gives_the_loss_of_ours() -> None:
    case = Case()
    ours = case.library_loss()
    assert case.trainer.precompute_ref_logps  # the kit's scores are what it used
    case.trainer.precompute_ref_logps = False  # TRL then runs the policy with its adapter off
    assert case.library_loss() == pytest.approx(ours, abs=1e-6)


def test_an_encoder_decoder_starts_at_ln_2_and_is_scored_as_the_kit_scores() -> None:
    backbone = make_backbone("t5")
    pairs = contrasts(6)
    policy = pair_logp(backbone, backbone.model, pair_rows(backbone, pairs))
    reference = reference_scores(backbone, pairs, dpo())
    loss = dpo_loss(policy[0], policy[1], reference[:, 0], reference[:, 1], 0.1)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    assert torch.allclose(policy.T, reference, atol=1e-4)


def test_the_library_sees_the_log_probabilities_that_the_kit_scores() -> None:
    case = Case(noise=0.0)
    chosen, rejected = case.policy()
    assert torch.allclose(torch.stack([chosen, rejected], dim=1), case.reference, atol=1e-4)
    assert len(case.trainer.train_dataset) == len(case.rows)
    assert int(case.batch["completion_mask"].sum(dim=1).min()) > 1


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
    other = train_dpo(backbone, contrasts(8), settings.with_(max_steps=3), seed=1)
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


def _long(n: int, words: int) -> list[Any]:
    """Pairs whose prompt alone is longer than TRL's default ``max_length`` of 1,024 tokens."""
    return [replace(pair, prompt=f"{'x7 ' * words}{pair.prompt}") for pair in contrasts(n)]


def test_no_pair_vanishes_because_its_prompt_is_long() -> None:
    """TRL drops rows whose prompt reaches ``max_length`` from its data, without a word."""
    backbone = make_backbone("mistral", max_position_embeddings=4096)
    pairs = [*_long(2, 600), *contrasts(2)]
    lengths = [len(ids) for ids in backbone.codec.prompts([pair.prompt for pair in pairs])]
    assert min(lengths[:2]) > 1024 > max(lengths[2:])
    tuned = train_dpo(backbone, pairs, dpo(epochs=1, batch=4, warmup=0.0), seed=0)
    assert (tuned.log.rows, tuned.log.samples) == (4, 4)
    answers = [len(ids) + 1 for ids in backbone.codec.answers(["comedy", "action"])]
    assert tuned.log.trained_tokens == 4 * sum(answers)  # of no answer is the end cut
    assert tuned.log.forward_tokens > 2 * sum(lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_of_a_changed_model_is_that_model_and_no_file(
    family: str, tmp_path: Path
) -> None:
    """TRL without ``ref_model`` reads the model's folder again: here it holds other weights."""
    folder = tmp_path / "base"
    make_model(family).save_pretrained(folder)
    make_tokenizer(closes=family == "t5").save_pretrained(folder)
    backbone = load_backbone(folder)
    plain = reference_scores(backbone, contrasts(6), dpo())
    with merged_weights(make_edit("all"), backbone):
        reference = reference_scores(backbone, contrasts(6), dpo())
        assert not torch.allclose(reference, plain, atol=1e-2)  # the edit is in the weights
        tuned = train_dpo(backbone, contrasts(6), dpo(epochs=1, warmup=0.0), seed=0)
    assert tuned.log.loss[0] == pytest.approx(math.log(2), abs=1e-5)


def test_only_ties_are_refused() -> None:
    backbone = make_backbone("t5")
    for pairs in ([], contrasts(0, ties=3)):
        with pytest.raises(UserError, match="at least one pair"):
            train_dpo(backbone, pairs, dpo(), seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapters_dropout_is_not_lost(family: str) -> None:
    backbone = make_backbone(family)
    settings = dpo(epochs=1, batch=8, warmup=0.0)
    dry = train_dpo(backbone, contrasts(8), settings.with_(lora_dropout=0.0, max_steps=3), seed=0)
    wet = train_dpo(backbone, contrasts(8), settings.with_(lora_dropout=0.5, max_steps=3), seed=0)
    assert dry.log.loss[0] == pytest.approx(wet.log.loss[0], abs=1e-6)  # B is still zero
    assert dry.log.loss[1:] != wet.log.loss[1:]


def test_rank_is_capped_by_the_width_and_keeps_its_scale() -> None:
    settings = dpo(lora_r=256, lora_alpha=128.0)
    tuned = train_dpo(make_backbone("t5"), contrasts(4), settings.with_(max_steps=1), seed=0)
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
        train_dpo(make_backbone(family), contrasts(4), dpo(lr=5e-5, max_steps=20), seed=0)
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
