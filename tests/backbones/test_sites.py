from __future__ import annotations

import pytest
import torch

from chameleon_lib.backbones import site_modules, site_paths
from chameleon_lib.backbones.sites import SITES
from chameleon_lib.errors import UserError
from tests.backbones.tiny import CONFIGS, make_model


def test_every_family_of_the_table_has_a_test_model() -> None:
    assert set(CONFIGS) == set(SITES)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_mlp_output_has_model_width_and_no_residual(family: str) -> None:
    model = make_model(family)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 5]])
    seen: list[torch.Tensor] = []
    modules = site_modules(model, family, "mlp_out", 3)
    for module in modules:
        module.register_forward_hook(lambda _m, _i, output: seen.append(output))
    # A site without residual gives zero when the weights behind it are zero.
    with torch.no_grad():
        for module in modules:
            for weight in module.parameters():
                weight.zero_()
        model(**inputs)
    assert len(seen) == 3
    assert all(values.shape[-1] == 24 and not values.any() for values in seen)


def test_t5_block_output_holds_the_residual_and_is_another_module() -> None:
    model = make_model("t5")
    paths = site_paths("t5")
    assert paths.mlp_out == paths.block_out + ".DenseReluDense"
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        for site in ("mlp_out", "block_out"):
            module = site_modules(model, "t5", site, 3)[0]
            module.register_forward_hook(lambda _m, _i, output: seen.append(output))
        model(input_ids=torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor([[0, 5]]))
    assert not torch.allclose(seen[0], seen[1])


@pytest.mark.parametrize("family", ["gpt2", "opt", "phi3"])
def test_families_without_a_gate_say_so(family: str) -> None:
    with pytest.raises(UserError, match="no gate_proj site"):
        site_modules(make_model(family), family, "gate_proj", 3)


def test_an_ungated_t5_has_no_gate() -> None:
    model = make_model("t5", feed_forward_proj="relu")
    with pytest.raises(UserError, match="no module"):
        site_modules(model, "t5", "gate_proj", 3)


def test_unknown_families_and_sites_are_refused_with_the_fix() -> None:
    with pytest.raises(UserError, match=r"'bloom' is unknown .*sites\.py"):
        site_paths("bloom")
    with pytest.raises(UserError, match="attn"):
        site_modules(make_model("gpt2"), "gpt2", "attn", 3)
