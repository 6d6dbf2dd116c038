"""Our DPO loss against its definition and against TRL's, on the same batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.baselines.dpo import decoder_trainer, reference_scores
from chameleon_lib.baselines.dpo_loop import pair_logp
from chameleon_lib.baselines.dpo_loss import IGNORED, answer_logp, dpo_loss
from chameleon_lib.baselines.lora import lora_config, silence_dropout
from chameleon_lib.baselines.rows import pair_rows
from chameleon_lib.baselines.undisturbed import undisturbed
from tests.backbones.tiny import make_backbone, make_model
from tests.baselines.planted import contrasts, dpo


def test_the_loss_is_what_the_formula_says() -> None:
    chosen, rejected = torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -2.0])
    ref_chosen, ref_rejected = torch.tensor([-2.0, -3.0]), torch.tensor([-2.5, -1.0])
    margins = [(-1 + 2) - (-3 + 2.5), (-4 + 3) - (-2 + 1)]
    expected = sum(math.log1p(math.exp(-0.3 * m)) for m in margins) / 2
    found = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3)
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert float(dpo_loss(chosen, rejected, chosen, rejected, 0.3)) == pytest.approx(math.log(2))


def test_answer_logp_is_minus_the_summed_cross_entropy_of_the_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 7, generator=generator)
    labels = torch.tensor([[3, 1, 6, 2], [5, 0, IGNORED, IGNORED]])
    for row, value in enumerate(answer_logp(logits, labels)):
        entropy = torch.nn.functional.cross_entropy(
            logits[row], labels[row], ignore_index=IGNORED, reduction="sum"
        )
        assert float(value) == pytest.approx(-float(entropy), abs=1e-5)


class Case:
    """TRL's trainer on a tiny decoder, adapter perturbed, and one batch of it."""

    def __init__(self, family: str = "mistral", *, noise: float = 0.2) -> None:
        from chameleon_lib.baselines.trainers import arguments

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
                arguments(self.settings, 1, 0, folder, torch.device("cpu")),
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


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_an_untrained_policy_starts_at_ln_2(family: str) -> None:
    if family == "mistral":
        assert Case(noise=0.0).library_loss() == pytest.approx(math.log(2), abs=1e-6)
        return
    backbone = make_backbone("t5")
    pairs = contrasts(6)
    policy = pair_logp(backbone, backbone.model, pair_rows(backbone, pairs))
    reference = reference_scores(backbone, pairs, dpo())
    loss = dpo_loss(policy[0], policy[1], reference[:, 0], reference[:, 1], 0.1)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    # The loop's answers are scored as the kit scores them.
    assert torch.allclose(policy.T, reference, atol=1e-4)


def test_the_library_sees_the_log_probabilities_that_the_kit_scores() -> None:
    case = Case(noise=0.0)
    chosen, rejected = case.policy()
    assert torch.allclose(torch.stack([chosen, rejected], dim=1), case.reference, atol=1e-4)
    assert len(case.trainer.train_dataset) == len(case.rows)
    assert int(case.batch["completion_mask"].sum(dim=1).min()) > 1
