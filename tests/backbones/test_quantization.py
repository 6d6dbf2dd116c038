from __future__ import annotations

from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chameleon_lib.backbones import HFBackbone, load_backbone
from chameleon_lib.backbones import load as module
from chameleon_lib.backbones.families import MODEL_FAMILIES
from chameleon_lib.backbones.load import check_quantization
from chameleon_lib.errors import UserError
from chameleon_lib.rivals.dpo import train_dpo
from chameleon_lib.rivals.tuned import tuned_backbone
from tests.backbones.tiny import ANSWERS, PROMPTS, make_edit, save
from tests.rivals.planted import contrasts, dpo, margin

LINEAR = sorted(family for family, paths in MODEL_FAMILIES.items() if not paths.experts)
ASKED, N = PROMPTS[:3], 4
needs_bitsandbytes = pytest.mark.skipif(
    util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def unpacked(backbone: HFBackbone) -> dict[str, torch.Tensor]:
    """The float weights that the 4-bit layers multiply with, by parameter name."""
    from bitsandbytes.functional import dequantize_4bit

    return {
        name: dequantize_4bit(weight.data, weight.quant_state)
        for name, weight in backbone.model.named_parameters()
        if hasattr(weight, "quant_state")
    }


def quantized_share(model: Any) -> float:
    """Share of the decoder's and encoder's linear weights that are held in 4 bits."""
    packed = plain = 0
    output = model.get_output_embeddings()
    for part in model.modules():
        weight = getattr(part, "weight", None)
        if part is output or not isinstance(weight, torch.Tensor) or weight.dim() != 2:
            continue
        if hasattr(weight, "quant_state"):
            packed += part.in_features * part.out_features
        elif not isinstance(part, nn.Embedding):
            plain += weight.numel()
    return packed / max(packed + plain, 1)


@needs_bitsandbytes
@pytest.mark.parametrize("family", LINEAR)
def test_a_4_bit_model_is_read_and_edited_as_the_float_model_of_its_own_weights(
    family: str, tmp_path: Path
) -> None:
    folder = save(tmp_path, family)
    packed = load_backbone(folder, dtype="float32", quantization="nf4")
    plain = load_backbone(folder, dtype="float32")
    before = plain.activations(ASKED, ANSWERS[:3])
    weights = unpacked(packed)
    share = quantized_share(packed.model)
    # T5 keeps its output projections; a vision tower is none of our business.
    least = {"gemma3": 0.9, "t5": 0.6, "mt5": 0.6, "umt5": 0.6}.get(family, 1.0)
    assert len(weights) >= 12 and share >= least and (share < 1 or least == 1)
    for name, value in weights.items():
        # GPT-2 holds its weights transposed; they are packed the common way round.
        plain.model.get_parameter(name).data = value.mT.contiguous() if family == "gpt2" else value
    after = plain.activations(ASKED, ANSWERS[:3])
    read = packed.activations(ASKED, ANSWERS[:3])
    assert torch.allclose(read, after, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(read, before, atol=1e-2, rtol=1e-2)
    edit = make_edit("last")
    expected = plain.score(plain.prepare(ASKED), ANSWERS[:3], edit=edit)
    scores = packed.score(packed.prepare(ASKED), ANSWERS[:3], edit=edit)
    assert torch.allclose(scores, expected, atol=1e-2, rtol=1e-3)
    theta = edit.theta_p.clone().requires_grad_()
    moving = replace(edit, theta_p=theta)
    packed.score(packed.prepare(ASKED), ANSWERS[:3], edit=moving).sum().backward()
    assert theta.grad is not None and bool((theta.grad.abs().sum(dim=-1) > 0).all())
    assert packed.fingerprint != load_backbone(folder, dtype="float32").fingerprint


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_a_4_bit_model_computes_in_the_precision_asked_for_and_answers(
    family: str, tmp_path: Path
) -> None:
    packed = load_backbone(save(tmp_path, family), dtype="bfloat16", quantization="nf4")
    seen: list[torch.Tensor] = []
    edit = make_edit("last", rows=3)
    with packed.editing(make_edit("last")):
        handle = packed.sites()[0].register_forward_hook(lambda *args: seen.append(args[2]))
        packed.activations(ASKED, ANSWERS[:3])
        handle.remove()
    assert seen[0].dtype == torch.bfloat16 and bool(seen[0].isfinite().all())
    answers = packed.generate(ASKED, max_new_tokens=N, edit=edit)
    alone = [
        packed.generate([prompt], max_new_tokens=N, edit=edit.rows([row]))[0]
        for row, prompt in enumerate(ASKED)
    ]
    assert len(answers) == len(alone) == 3


class PackedLinear(nn.Module):
    """What the kit relies on in a quantised layer: integer weights, float outputs, a state."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.scale = float(weight.abs().max()) / 127
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), False)
        self.weight.quant_state = self.scale  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, (self.weight.float() * self.scale).to(x.dtype))


def test_edits_and_readings_never_touch_the_weights_of_a_quantised_layer(tmp_path: Path) -> None:
    plain = load_backbone(save(tmp_path, "mistral"))
    packed = load_backbone(tmp_path)
    for layer in packed.model.model.layers:
        layer.mlp.down_proj = PackedLinear(layer.mlp.down_proj)
    for layer in plain.model.model.layers:
        copy = PackedLinear(layer.mlp.down_proj)
        layer.mlp.down_proj.weight.data = copy.weight.float() * copy.scale
    assert 0 < quantized_share(packed.model) < 1
    edit = make_edit("all", rows=3)
    assert torch.equal(
        packed.activations(ASKED, ANSWERS[:3]), plain.activations(ASKED, ANSWERS[:3])
    )
    assert packed.generate(ASKED, max_new_tokens=N, edit=edit) == plain.generate(
        ASKED, max_new_tokens=N, edit=edit
    )


def test_what_cannot_be_quantised_is_told_in_one_sentence_before_any_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_quantization("none", "mixtral", "bfloat16")
    with pytest.raises(UserError, match="quantization is 'int3'; use none or nf4"):
        check_quantization("int3", "mistral", "bfloat16")
    present: Any = lambda name: name  # noqa: E731
    monkeypatch.setattr(module.util, "find_spec", present)
    with pytest.raises(UserError, match="leave the experts of 'mixtral'"):
        check_quantization("nf4", "mixtral", "bfloat16")
    for package in ("bitsandbytes", "accelerate"):
        monkeypatch.setattr(
            module.util, "find_spec", lambda name, lost=package: None if name == lost else name
        )
        with pytest.raises(UserError, match=f"needs the package {package}.*pip install {package}"):
            check_quantization("nf4", "mistral", "bfloat16")


def test_a_missing_package_stops_the_load_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, "mistral")
    monkeypatch.setattr(module.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes"):
        load_backbone(folder, quantization="nf4")


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_dpo_trains_an_adapter_beside_4_bit_weights_and_leaves_them_alone(
    family: str, tmp_path: Path
) -> None:
    packed = load_backbone(save(tmp_path, family), dtype="float32", quantization="nf4")
    before = unpacked(packed)
    settings = dpo(quantisation="nf4", epochs=6)
    tuned = train_dpo(packed, contrasts(8), settings, seed=0)
    assert tuned.log.loss[-1] < 0.9 * tuned.log.loss[0] and tuned.log.params == "lora"
    pairs = contrasts(12)[8:]
    gain = margin(tuned_backbone(packed, tuned), pairs) - margin(packed, pairs)
    assert float(gain.min()) > 0  # for users the training never saw
    after = unpacked(packed)
    assert all(torch.equal(after[name], before[name]) for name in before)
