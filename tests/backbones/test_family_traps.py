"""What single architectures do beyond the matrix of ``test_families``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from chameleon_lib.backbones import backbone_from, load_backbone
from chameleon_lib.core.algebra import edit_factors
from chameleon_lib.core.edit import EditHook
from chameleon_lib.errors import UserError
from tests.backbones import naive
from tests.backbones.test_families import ALL, ASKED, GROUPS, N, seed_of, tiny
from tests.backbones.tiny import make_backbone, make_edit, make_model, make_tokenizer

T5 = ("t5", "mt5", "umt5")
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {},
    "mixtral": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3": {},
}


@pytest.mark.parametrize("family", WINDOWED)
def test_sliding_windows_of_some_layers_are_kept(family: str) -> None:
    backbone = make_backbone(family, seed_of(family), sliding_window=8, **WINDOWED[family])
    edit = make_edit("last")
    expected = [naive.greedy(backbone, prompt, N, edit) for prompt in ASKED]
    assert backbone.generate(ASKED, max_new_tokens=N, edit=edit, groups=GROUPS) == expected
    assert expected != tiny(family).generate(ASKED, max_new_tokens=N, edit=edit)


def folded(weight: Tensor, u: Tensor, z: Tensor, *, transposed: bool) -> Tensor:
    """``(I + U Z) W`` for a projection ``(out, in)``, or ``(in, out)`` if transposed."""
    wide = weight.mT if transposed else weight
    changed = wide + u @ (z @ wide)
    return changed.mT if transposed else changed


OUTPUTS = {
    "gpt2": "c_proj.weight",
    "opt": "weight",
    "mixtral": "experts.down_proj",
    **dict.fromkeys(T5, "wo.weight"),
}


@pytest.mark.parametrize("family", ALL)
def test_the_edit_is_a_change_of_the_output_weights_of_every_expert(family: str) -> None:
    backbone, edit = make_backbone(family), make_edit("all")
    edited = naive.logits_of(backbone, ASKED[0], [5, 6], edit)
    plain = naive.logits_of(backbone, ASKED[0], [5, 6])
    for row, layer in enumerate(edit.layers):
        u, z = edit_factors(edit.theta_p[row], edit.theta_n[row], edit.alpha_p, edit.alpha_n)
        site = backbone.sites()[layer]
        name = OUTPUTS.get(family, "down_proj.weight")
        weight = site.get_parameter(name)
        weight.data = folded(weight, u.float(), z.float(), transposed=family == "gpt2")
        bias = getattr(site.get_submodule(name.rpartition(".")[0]), "bias", None)
        if bias is not None:
            assert bias.abs().max() > 0.1  # else the bias trap would not be seen
            bias.data = bias + u.float() @ (z.float() @ bias)
    merged = naive.logits_of(backbone, ASKED[0], [5, 6])
    effect = (edited - plain).abs().max()
    assert effect > 0.1 and (merged - edited).abs().max() < 1e-4 * effect


@pytest.mark.parametrize("family", T5)
def test_half_precision_is_refused_for_t5_and_its_float32_output_layer_keeps_its_type(
    family: str, tmp_path: Path
) -> None:
    make_model(family).save_pretrained(tmp_path)
    make_tokenizer(closes=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="overflows in float16 .* bfloat16"):
        load_backbone(tmp_path, dtype="float16")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float16)
    with pytest.raises(UserError, match="overflows in float16"):
        backbone_from(model, make_tokenizer(closes=True), name="half")
    sites = [block.layer[2].DenseReluDense for block in model.decoder.block]
    assert {site.wo.weight.dtype for site in sites} == {torch.float32}
    assert model.shared.weight.dtype == torch.float16
    seen: list[Tensor] = []
    with EditHook(sites, make_edit("all")), torch.no_grad():
        handle = sites[0].register_forward_hook(lambda *args: seen.append(args[2]))
        model(input_ids=torch.tensor([[5, 1]]), decoder_input_ids=torch.tensor([[0, 5]]))
        handle.remove()
    assert seen[0].dtype == torch.float32 and bool(seen[0].isfinite().all())


def test_a_decoder_starts_from_padding_where_no_file_says_otherwise() -> None:
    backbone = make_backbone("t5", decoder_start_token_id=None)
    for config in (backbone.model.config, backbone.model.generation_config):
        config.decoder_start_token_id = None
    assert backbone.generate(ASKED, max_new_tokens=N) == tiny("t5").generate(
        ASKED, max_new_tokens=N
    )
