"""Tuned weights: stored, found again, and put into a backbone of the kit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.rivals.aloe import train_aloe
from chameleon_lib.rivals.dpo import train_dpo
from chameleon_lib.rivals.tuned import Tuned, tuned_backbone
from tests.backbones.tiny import ANSWERS, PROMPTS, make_backbone, make_edit, make_model
from tests.rivals.planted import FAMILIES, aloe, contrasts, dpo, examples, margin


def train(kind: str, backbone: Any) -> Tuned:
    if kind == "lora":
        return train_dpo(backbone, contrasts(4), dpo(max_steps=2), seed=0)
    return train_aloe(backbone, examples(4), aloe(max_steps=2), seed=0)


def scores(backbone: Any) -> torch.Tensor:
    with torch.no_grad():
        return backbone.score(backbone.prepare(PROMPTS), ANSWERS)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", ["mistral", "gpt2", "t5"])
def test_a_training_survives_the_store_and_gives_the_same_backbone(
    tmp_path: Path, family: str, kind: str
) -> None:
    backbone = make_backbone(family)
    tuned = train(kind, backbone)
    store = ArtifactStore(tmp_path)
    record = store.get_or_compute("tuned", [family, kind], tuned.record)
    again = Tuned.from_record(record)
    assert again.log == tuned.log and again.log.seconds == tuned.log.seconds
    assert again.fingerprint() == tuned.fingerprint()
    state, expected = torch.get_rng_state(), scores(backbone)
    one, two = tuned_backbone(backbone, tuned), tuned_backbone(backbone, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(scores(one), scores(two))
    assert not torch.allclose(scores(one), expected)
    assert torch.equal(scores(backbone), expected)
    assert one.fingerprint == two.fingerprint != backbone.fingerprint
    assert one.name == f"tiny-{family}+{tuned.log.method}"
    assert not one.model.training
    assert not any(weight.requires_grad for weight in one.model.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the library asks for its own old name
def test_merged_weights_say_what_the_adapter_says() -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    backbone = make_backbone("mistral")
    tuned = train("lora", backbone)
    assert tuned.adapter is not None
    wrapped = get_peft_model(make_model("mistral"), LoraConfig(**tuned.adapter)).eval()
    set_peft_model_state_dict(wrapped, dict(tuned.tensors))
    ids = torch.tensor([[5, 9, 30, 31, 7]])
    with torch.no_grad():
        merged = tuned_backbone(backbone, tuned).model(ids).logits
        assert torch.allclose(merged, wrapped(ids).logits, atol=1e-4)


def test_a_tuned_backbone_takes_an_edit_as_any_other() -> None:
    backbone = make_backbone("mistral")
    tuned = tuned_backbone(backbone, train("lora", backbone))
    plain = tuned.generate(PROMPTS, max_new_tokens=4)
    edited = tuned.generate(PROMPTS, max_new_tokens=4, edit=make_edit())
    assert plain != edited
    assert tuned.activations(PROMPTS, ANSWERS).shape == (3, len(PROMPTS), 24)


def test_tied_weights_stay_tied() -> None:
    backbone = make_backbone("t5")
    model = tuned_backbone(backbone, train("full", backbone)).model
    assert model.shared.weight is model.get_encoder().embed_tokens.weight


def test_weights_of_another_model_are_refused() -> None:
    backbone = make_backbone("mistral")
    lora, full = train("lora", backbone), train("full", backbone)
    other = make_backbone("gpt2")
    with pytest.raises(UserError, match="tiny-gpt2 has no weight"):
        tuned_backbone(other, full)
    longer = make_backbone("mistral", num_hidden_layers=4)
    with pytest.raises(UserError, match="not trained on a model like tiny-mistral"):
        tuned_backbone(longer, lora)
    cut = copy.copy(dict(lora.tensors))
    cut.pop(next(iter(cut)))
    with pytest.raises(UserError, match="not trained on a model like"):
        tuned_backbone(backbone, Tuned(cut, lora.adapter, lora.log))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_stays_beside_packed_weights_and_answers_alike(family: str) -> None:
    """Rounding the sum to 4 bits again would lose it; a flag stands in for packed weights here."""
    backbone = make_backbone(family)
    tuned = train_dpo(backbone, contrasts(6), dpo(epochs=4), seed=0)
    merged = tuned_backbone(backbone, tuned)
    backbone.model.is_quantized = True
    beside = tuned_backbone(backbone, tuned)
    assert any("lora_A" in name for name, _ in beside.model.named_parameters())
    assert not any("lora_A" in name for name, _ in merged.model.named_parameters())
    assert not any("lora_A" in name for name, _ in backbone.model.named_parameters())
    pairs = contrasts(8)[6:]
    assert torch.allclose(margin(beside, pairs), margin(merged, pairs), atol=1e-4)
    assert not torch.allclose(margin(beside, pairs), margin(backbone, pairs), atol=1e-3)
    assert len(beside.sites()) == backbone.n_layers
