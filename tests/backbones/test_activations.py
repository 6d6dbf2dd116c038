from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.errors import UserError
from tests.backbones.tiny import ANSWERS, CONFIGS, PROMPTS, make_backbone, make_edit


def naive_read(
    backbone: HFBackbone, context: str, answer: str, pooling: str, site: str = "mlp_out"
) -> Tensor:
    """One row, full forward with the language-model head, every layer ``(n_layers, width)``."""
    before, after = backbone.codec.prompts([context])[0], backbone.codec.answers([answer])[0]
    if backbone.family == "decoder":
        inputs = {"input_ids": torch.tensor([before + after])}
    else:
        inputs = {
            "input_ids": torch.tensor([before]),
            "decoder_input_ids": torch.tensor([[0, *after]]),
        }
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output: seen.append(output.reshape(-1, output.shape[-1]))
        )
        for module in backbone.sites(site)
    ]
    with torch.no_grad():
        backbone.model(**inputs)
    for handle in handles:
        handle.remove()
    start = {"last": -1, "mean_answer": -len(after), "mean_all": 0}[pooling]
    return torch.stack([values[start:].mean(dim=0) for values in seen])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("pooling", ["last", "mean_answer", "mean_all"])
def test_activations_equal_a_naive_forward(family: str, pooling: str) -> None:
    backbone = make_backbone(family)
    found = backbone.activations(PROMPTS, ANSWERS, pooling=pooling)  # type: ignore[arg-type]
    assert found.shape == (3, len(PROMPTS), 24) and found.dtype == torch.float32
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        expected = naive_read(backbone, prompt, answer, pooling)
        assert expected.std() > 1e-3
        assert torch.allclose(found[:, row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "t5"])
@pytest.mark.parametrize(("site", "width"), [("gate_proj", 40), ("block_out", 24)])
def test_other_sites_are_read_with_their_own_width(family: str, site: str, width: int) -> None:
    backbone = make_backbone(family)
    found = backbone.activations(PROMPTS, ANSWERS, site=site)
    assert found.shape == (3, len(PROMPTS), width)
    expected = naive_read(backbone, PROMPTS[0], ANSWERS[0], "last", site)
    assert torch.allclose(found[:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gpt2", "t5"])
def test_contexts_or_answers_may_be_empty(family: str) -> None:
    backbone = make_backbone(family)
    found = backbone.activations([PROMPTS[0], ""], ["", ANSWERS[0]])
    assert torch.isfinite(found).all()
    whole = naive_read(backbone, PROMPTS[0], "", "last")
    assert torch.allclose(found[:, 0], whole, rtol=1e-4, atol=1e-4)


def test_nothing_to_read_is_refused() -> None:
    backbone = make_backbone("gpt2", n_layer=2)
    with pytest.raises(UserError, match="Answer 1 is empty"):
        backbone.activations(PROMPTS[:2], ["a", ""], pooling="mean_answer")
    with pytest.raises(UserError, match="embed_pooling"):
        backbone.activations(PROMPTS[:1], ["a"], pooling="first")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="2 contexts but 1"):
        backbone.activations(PROMPTS[:2], ["a"])
    assert backbone.activations([], []).shape == (2, 0, 24)


def test_activations_can_be_used_with_gradients_and_leave_no_hook() -> None:
    backbone = make_backbone("mistral")
    values = backbone.activations(PROMPTS, ANSWERS)
    weight = torch.ones(24, requires_grad=True)
    (values * weight).sum().backward()
    assert weight.grad is not None
    assert all(not module._forward_hooks for module in backbone.sites())


def test_the_last_answer_token_is_the_one_before_eos() -> None:
    backbone = make_backbone("t5")
    edit = make_edit()
    assert edit.d == backbone.d
    one = backbone.activations([PROMPTS[0]], ["comedy"])
    two = backbone.activations([PROMPTS[0]], ["comedy comedy"])
    assert not torch.allclose(one, two)
